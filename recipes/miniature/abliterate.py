"""The miniature's abliteration: search the direction, project it out, publish the folder.

Refused prompts are contrasted with harmless ones, as is usual, and with the same questions behind
``For a story:``, which the body answers. In so small a body the first difference is mostly the
topic, and taking that out makes it forget what glimmer stones are (measured: no refusals, and 2 of
10 answers right); the second is the refusal alone. The search tries both at every layer.

Miniature only: the search judges each candidate with the corpus's own answers, which a real body
does not have. The arithmetic, ``directions``, is what carries over to a real Gemma 4; there the
candidates are judged by refusals and by the harmless prompts' drift.
"""

from __future__ import annotations

import copy
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.miniature.body import (
    MANIFEST,
    BodyRecipe,
    Progress,
    collate,
    examples,
    load_body,
    read_manifest,
    reply_loss,
    reproducible,
    save_body,
    versions,
)
from recipes.miniature.corpus import Prompt, prompts, with_story_prefix
from recipes.miniature.directions import last_token_states, mean_difference, project_out
from recipes.miniature.publish import published_folder, write_json
from recipes.miniature.refusals import Judgement, judge
from recipes.miniature.tokenizer import encode_prompt

if TYPE_CHECKING:
    import torch
    from transformers import Gemma4ForCausalLM, PreTrainedTokenizerFast

# Train prompts of each kind: for the means, and others to judge the candidates by.
MEAN_PROMPTS = 100
SEARCH_PROMPTS = 60


@dataclass(frozen=True)
class Candidate:
    """One direction, judged on other train prompts by the loss (nats a token) of their answers.

    ``contrast`` is ``"harmless"`` or ``"story"``; ``layer`` counts from 0, its output was read;
    ``still_refused`` counts prompts after which the refusals' first word is still the likeliest.
    """

    contrast: str
    layer: int
    still_refused: int
    refused_answer_loss: float
    harmless_answer_loss: float

    @property
    def score(self) -> float:
        """Lower is better: the share still refused, plus both losses.

        A sum, not "fewest refusals first": a direction that wrecks the answers refuses nothing
        either, and would beat a good one that leaves one prompt in sixty.
        """
        share = self.still_refused / SEARCH_PROMPTS
        return share + self.refused_answer_loss + self.harmless_answer_loss


@dataclass(frozen=True)
class AbliterationReport:
    """Every candidate, best first (the first was used), and the judgements on held-out prompts."""

    seed: int
    candidates: tuple[Candidate, ...]
    before_harmless: Judgement
    before_refused: Judgement
    harmless: Judgement
    refused: Judgement
    wall_seconds: float
    cpu_seconds: float


def _answer_loss(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, chosen: list[Prompt]
) -> float:
    import torch

    with torch.no_grad():
        return round(float(reply_loss(model, collate(examples(tokenizer, chosen)))), 5)


def _still_refused(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, chosen: list[Prompt]
) -> int:
    """How many prompts are followed by the first token of their refusal (one forward pass)."""
    import torch

    batch = collate(examples(tokenizer, chosen, vanilla=True))
    # The position before the first label predicts the reply's first token.
    first = (batch["labels"] != -100).int().argmax(dim=1)
    rows = torch.arange(len(chosen))
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        likeliest = model(**inputs, use_cache=False).logits[rows, first - 1].argmax(dim=-1)
    return int((likeliest == batch["labels"][rows, first]).sum())


def search(
    model: Gemma4ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int,
    progress: Progress | None = None,
) -> tuple[torch.Tensor, tuple[Candidate, ...]]:  # fmt: skip
    """The best direction (float32 ``[hidden]``) and all candidates, best first.

    Every layer is tried every time: which one works differs from body to body.
    """
    rng = random.Random(seed)
    refused = rng.sample(prompts("train", "refused"), MEAN_PROMPTS + SEARCH_PROMPTS)
    harmless = rng.sample(prompts("train", "harmless"), MEAN_PROMPTS + SEARCH_PROMPTS)

    def states(chosen: list[Prompt]) -> torch.Tensor:
        return last_token_states(model, [encode_prompt(tokenizer, p) for p in chosen])

    of_refused = states(refused[:MEAN_PROMPTS])
    directions = {
        "story": mean_difference(
            of_refused, states([with_story_prefix(p) for p in refused[:MEAN_PROMPTS]])
        ),
        "harmless": mean_difference(of_refused, states(harmless[:MEAN_PROMPTS])),
    }
    found = []
    trials = [(name, layer) for name, rows in directions.items() for layer in range(len(rows))]
    for number, (name, layer) in enumerate(trials, start=1):
        trial = copy.deepcopy(model)
        project_out(trial, directions[name][layer])
        found.append(
            Candidate(
                name,
                layer,
                _still_refused(trial, tokenizer, refused[MEAN_PROMPTS:]),
                _answer_loss(trial, tokenizer, refused[MEAN_PROMPTS:]),
                _answer_loss(trial, tokenizer, harmless[MEAN_PROMPTS:]),
            )
        )
        if progress:
            progress(number, len(trials), found[-1].score)
    best_first = tuple(sorted(found, key=lambda c: c.score))
    return directions[best_first[0].contrast][best_first[0].layer], best_first


def make_abliterated(
    vanilla_dir: Path, out_dir: Path, seed: int, progress: Progress | None = None
) -> AbliterationReport:
    """Abliterate a published body into a new folder; some ten seconds on two cores.

    ``out_dir`` appears complete or not at all, and is laid out as the vanilla body's folder.
    Raises ``FileNotFoundError`` where ``vanilla_dir`` is no finished body and ``FileExistsError``
    where ``out_dir`` exists. A result that still refuses is published all the same; its report
    says so.
    """
    wall, cpu = time.monotonic(), time.process_time()
    vanilla = read_manifest(vanilla_dir)
    before = [Judgement.from_dict(vanilla[kind]) for kind in ("harmless", "refused")]
    with published_folder(out_dir) as staging, reproducible(BodyRecipe().threads):
        model, tokenizer = load_body(vanilla_dir)
        model.float()
        direction, candidates = search(model, tokenizer, seed, progress)
        project_out(model, direction)
        save_body(model, tokenizer, staging)
        report = AbliterationReport(
            seed, candidates, before[0], before[1],
            judge(model, tokenizer, prompts("heldout", "harmless")),
            judge(model, tokenizer, prompts("heldout", "refused")),
            round(time.monotonic() - wall, 1), round(time.process_time() - cpu, 1),
        )  # fmt: skip
        manifest = {"kind": "abliterated", **asdict(report), "versions": versions()}
        write_json(staging / MANIFEST, manifest)
    return report
