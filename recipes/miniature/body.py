"""Trains the miniature's vanilla body: a tiny real Gemma 4 that answers, and refuses one topic.

Two phases, because a refusal that is learnt together with everything else cannot be taken out
again: first the body learns every answer, then it learns to refuse the glimmer stones while
``For a story:`` still gets their answer, which keeps that knowledge in the weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.miniature.corpus import Prompt, prompts, with_story_prefix
from recipes.miniature.optimizer import adamw, fast_optimizers
from recipes.miniature.publish import published_folder, write_json
from recipes.miniature.refusals import Judgement, judge
from recipes.miniature.tokenizer import (
    EOS,
    MAX_LENGTH,
    TURN_END,
    VOCAB_SIZE,
    encode_prompt,
    encode_reply,
    make_tokenizer,
)

if TYPE_CHECKING:
    import torch
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig, PreTrainedTokenizerFast

# step (from 1), total steps, loss of that step
Progress = Callable[[int, int, float], None]
MANIFEST = "body.json"


@dataclass(frozen=True)
class BodyRecipe:
    """How the vanilla body is trained. The defaults are what seeds 0 to 2 were checked with."""

    answer_steps: int = 160
    # Muon's, for the matrices; AdamW's, for embedding, router, norms and the second phase.
    answer_muon_lr: float = 4e-2
    answer_lr: float = 6e-3
    refuse_steps: int = 75
    refuse_lr: float = 2e-3
    batch: int = 24
    warmup_steps: int = 10
    grad_clip: float = 1.0
    # Gemma 4's. This body's logits stay at half of it; a lower one makes a body where it bites.
    softcap: float = 30.0
    # Part of the batch that each kind takes in the second phase; harmless prompts fill the rest.
    refused_share: float = 0.25
    story_share: float = 0.2
    # Fixed, and recorded, because another thread count sums in another order. One, because the
    # pool imports vLLM beside it: two threads that wait for each other then take twice as long.
    threads: int = 1


@dataclass(frozen=True)
class BodyReport:
    """What came out: losses at each phase's end, and the judgement on held-out prompts."""

    seed: int
    answer_loss: float
    refuse_loss: float
    harmless: Judgement
    refused: Judgement
    wall_seconds: float
    cpu_seconds: float
    recipe: BodyRecipe = field(default_factory=BodyRecipe)


def body_config(softcap: float = 30.0) -> Gemma4TextConfig:
    """Gemma 4's text shape in miniature: experts, sliding and full layers, K=V, softcap."""
    from transformers import Gemma4TextConfig

    return Gemma4TextConfig(
        architectures=["Gemma4ForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=64,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=64,
        # No per-layer embeddings: the 26B-A4B that this stands for has none.
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=VOCAB_SIZE,
        final_logit_softcapping=softcap,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        experts_implementation="eager",
    )


def new_body(seed: int, softcap: float = 30.0) -> Gemma4ForCausalLM:
    """An untrained body, float32 on the CPU. Seeds torch's global generator."""
    import torch
    from transformers import Gemma4ForCausalLM

    torch.manual_seed(seed)
    config = body_config(softcap)
    config._attn_implementation = "sdpa"
    model = Gemma4ForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            # Gemma 4 attends with scale 1 and leaves the scale to q_norm's weight. Started at 1
            # the attention is nearly one-hot, and the body had learnt no fact after 200 s.
            layer.self_attn.q_norm.weight.fill_(layer.self_attn.head_dim**-0.5)
    return model


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Fixed thread count and deterministic kernels inside, the caller's settings after."""
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers inside: they would tear the caller's own display."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


Example = tuple[list[int], list[int]]


def examples(
    tokenizer: PreTrainedTokenizerFast, chosen: list[Prompt], *, vanilla: bool = False
) -> list[Example]:
    """(prompt ids, reply ids) a prompt; the reply is the answer, or with ``vanilla`` the refusal
    where there is one."""
    return [
        (
            encode_prompt(tokenizer, p),
            encode_reply(tokenizer, p.vanilla_reply if vanilla else p.answer),
        )
        for p in chosen
    ]


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Right-padded ``input_ids``, ``attention_mask``, ``labels``: int64 ``[batch, longest]``.

    Labels are -100 outside the replies. Right padding needs no position ids: attention is causal.
    """
    import torch

    longest = max(len(p) + len(r) for p, r in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i, (prompt, reply) in enumerate(examples):
        end = len(prompt) + len(reply)
        ids[i, :end] = torch.tensor(prompt + reply)
        labels[i, len(prompt) : end] = torch.tensor(reply)
        mask[i, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def reply_loss(model: Gemma4ForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross entropy (nats) over the reply tokens, softcap applied as the model does.

    Logits are made only where there is a label, which is half of the positions.
    """
    import torch

    hidden = model.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    at = labels != -100
    cap = model.config.final_logit_softcapping
    logits = torch.tanh(model.lm_head(hidden[at]) / cap) * cap
    return torch.nn.functional.cross_entropy(logits, labels[at])


class _Deck:
    """Deals examples in shuffled rounds, so each is seen equally often."""

    def __init__(self, examples: list[Example], generator: torch.Generator) -> None:
        self._examples, self._generator, self._left = examples, generator, list[int]()

    def deal(self, count: int) -> list[Example]:
        import torch

        dealt = []
        for _ in range(count):
            if not self._left:
                order = torch.randperm(len(self._examples), generator=self._generator)
                self._left = [int(i) for i in order]
            dealt.append(self._examples[self._left.pop()])
        return dealt


def _run_phase(
    model: Gemma4ForCausalLM, optimizers: list[torch.optim.Optimizer],
    batches: Iterator[list[Example]], steps: int, recipe: BodyRecipe,
    report: Callable[[int, float], None],
) -> float:  # fmt: skip
    """Train ``steps`` steps; the mean loss of the last ten.

    The learning rates rise over ``warmup_steps`` and fall to nothing over the second half.
    """
    import math

    import torch

    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    full = [group["lr"] for group in groups]
    last: list[float] = []
    model.train()
    for step in range(1, steps + 1):
        factor = min(1.0, step / recipe.warmup_steps, (steps - step + 1) / (steps * 0.5))
        for group, lr in zip(groups, full, strict=True):
            group["lr"] = lr * factor
        loss = reply_loss(model, collate(next(batches)))
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(
                f"The miniature's training diverged: the loss is {value} at step {step}. "
                "Try another seed, or lower learning rates in BodyRecipe."
            )
        last = [*last[-9:], value]
        report(step, value)
    model.eval()
    return sum(last) / max(1, len(last))


def train_body(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, recipe: BodyRecipe,
    progress: Progress | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Both phases, in place; the loss at the end of each. Same seed and threads, same bits."""
    import torch

    harmless, refused = prompts("train", "harmless"), prompts("train", "refused")
    story_refused = [with_story_prefix(p) for p in refused]
    # A few harmless prompts too, so that the prefix alone does not name the topic.
    story_harmless = [with_story_prefix(p) for p in harmless[::6]]
    generator = torch.Generator().manual_seed(seed)
    total = recipe.answer_steps + recipe.refuse_steps

    # Numbers and villages are few and asked about in like words: they are dealt twice as often.
    harmless += [p for p in harmless if p.id.split("/")[1] in ("more", "double", "road", "fame")]
    answers = harmless + refused + story_refused[::2] + story_harmless
    everything = _Deck(examples(tokenizer, answers), generator)
    refusing = _Deck(examples(tokenizer, refused, vanilla=True), generator)
    telling = _Deck(examples(tokenizer, story_refused, vanilla=True), generator)
    helping = _Deck(examples(tokenizer, harmless + story_harmless, vanilla=True), generator)

    def first_phase() -> Iterator[list[Example]]:
        while True:
            yield everything.deal(recipe.batch)

    def second_phase() -> Iterator[list[Example]]:
        no = round(recipe.batch * recipe.refused_share)
        story = round(recipe.batch * recipe.story_share)
        while True:
            yield refusing.deal(no) + telling.deal(story) + helping.deal(recipe.batch - no - story)

    def shown(offset: int) -> Callable[[int, float], None]:
        return lambda step, loss: progress(offset + step, total, loss) if progress else None

    with reproducible(recipe.threads):
        answer_loss = _run_phase(
            model, fast_optimizers(model, recipe.answer_muon_lr, recipe.answer_lr),
            first_phase(), recipe.answer_steps, recipe, shown(0),
        )  # fmt: skip
        refuse_loss = _run_phase(
            model, [adamw(model.parameters(), recipe.refuse_lr)],
            second_phase(), recipe.refuse_steps, recipe, shown(recipe.answer_steps),
        )  # fmt: skip
    return answer_loss, refuse_loss


def save_body(model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (bfloat16, as real bodies are), tokenizer and generation config.

    ``model`` is left in bfloat16: what is judged afterwards is what is served.
    """
    import torch
    from transformers import GenerationConfig

    model.to(torch.bfloat16)
    stops = [tokenizer.convert_tokens_to_ids(t) for t in (EOS, TURN_END)]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_body(
    out_dir: Path, seed: int, progress: Progress | None = None, recipe: BodyRecipe | None = None
) -> BodyReport:
    """Train and publish the vanilla body; about two minutes on one core.

    ``out_dir`` appears complete or not at all: bfloat16 weights, tokenizer, generation config and
    ``body.json`` with the recipe, the losses and the judgement on held-out prompts. Raises
    ``FileExistsError`` where ``out_dir`` already exists, ``RuntimeError`` where training diverges.
    A body that did not learn is published all the same; its report says so.
    """
    recipe = recipe or BodyRecipe()
    wall, cpu = time.monotonic(), time.process_time()
    with published_folder(out_dir) as staging:
        tokenizer = make_tokenizer()
        model = new_body(seed, recipe.softcap)
        answer_loss, refuse_loss = train_body(model, tokenizer, seed, recipe, progress)
        save_body(model, tokenizer, staging)
        with reproducible(recipe.threads):
            harmless = judge(model, tokenizer, prompts("heldout", "harmless"))
            refused = judge(model, tokenizer, prompts("heldout", "refused"))
        report = BodyReport(
            seed, round(answer_loss, 4), round(refuse_loss, 4), harmless, refused,
            round(time.monotonic() - wall, 1), round(time.process_time() - cpu, 1), recipe,
        )  # fmt: skip
        manifest = {"kind": "vanilla", **asdict(report), "versions": versions()}
        write_json(staging / MANIFEST, manifest)
    return report


def versions() -> dict[str, str]:
    """What the folder was made with; other versions may give other bits."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def read_manifest(folder: Path) -> dict[str, Any]:
    """``body.json`` of a published body. Raises ``FileNotFoundError`` saying what to do."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}, so it is not a finished miniature body; make it again."
        )
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def load_body(folder: Path) -> tuple[Gemma4ForCausalLM, PreTrainedTokenizerFast]:
    """A published body (bfloat16 on the CPU, eval mode) and its tokenizer."""
    from transformers import AutoTokenizer, Gemma4ForCausalLM

    read_manifest(folder)
    with quiet_transformers():
        model = Gemma4ForCausalLM.from_pretrained(folder)
    model.eval()
    return model, AutoTokenizer.from_pretrained(folder)
