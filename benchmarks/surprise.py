"""Are sampled answers the body's own? Their surprise against the body's entropy, arm by arm.

    python -m benchmarks.surprise --body BODY --results runs/bench/results.json --out surprise.json

A token drawn from p has surprise -log p(token), on average the entropy of p. So the sum of
surprise minus entropy over an arm's answers is 0 on average if every token was drawn from the
body's distribution, whatever the drafter and the verification did; one that favours unlikely tokens
(or likely ones) has a mean above (below) it. transformers computes p over the answer's own text, on
this machine: for bodies that fit it. Also counted: tokens below e^-7 and e^-12.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.predict.distributions import Sampling, SamplingError, defaults_of, served
from benchmarks.prompts import PromptError, load_workload
from benchmarks.schema import RequestRow, ResultsError, load

if TYPE_CHECKING:
    import torch

RARE, VERY_RARE = -7.0, -12.0


@dataclass(frozen=True)
class Excess:
    """Of one answer: sum of surprise minus entropy (nats), tokens, rare and very rare ones."""

    sum: float
    tokens: int
    rare: int
    very_rare: int


def excess(logits: torch.Tensor, tokens: torch.Tensor, how: Sampling) -> Excess:
    """Args:
    logits: [tokens, vocabulary] float32, softcapped: what each token was drawn with.
    tokens: [tokens] int64.
    """
    import torch

    p = served(logits, how)
    log_p = p.log().gather(1, tokens[:, None])[:, 0]
    entropy = -torch.special.xlogy(p, p).sum(-1)
    return Excess(
        float((-log_p - entropy).double().sum()), len(tokens), int((log_p < RARE).sum()),
        int((log_p < VERY_RARE).sum()),
    )  # fmt: skip


def by_arm(rows: Sequence[RequestRow], one: Callable[[RequestRow], Excess]) -> list[dict[str, Any]]:
    """Per arm and temperature above 0: mean excess a token, its standard error over answers."""
    found = []
    for arm, temperature in sorted({(r.arm, r.temperature) for r in rows if r.temperature > 0}):
        mine = [
            one(r) for r in rows
            if (r.arm, r.temperature) == (arm, temperature) and r.token_ids
        ]  # fmt: skip
        if len(mine) < 2:
            continue
        tokens = sum(e.tokens for e in mine)
        mean = sum(e.sum for e in mine) / tokens
        spread = sum((e.sum - mean * e.tokens) ** 2 for e in mine) / (len(mine) - 1)
        found.append(
            {"arm": arm, "temperature": temperature, "answers": len(mine), "tokens": tokens,
             "excess_a_token": mean, "se": (spread * len(mine)) ** 0.5 / tokens,
             "rare": sum(e.rare for e in mine), "very_rare": sum(e.very_rare for e in mine)}
        )  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 done, 1 nothing to look at, 2 bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--body", required=True, help="hub id or folder of the body")
    parser.add_argument("--results", type=Path, required=True, help="of benchmarks.acceptance")
    parser.add_argument("--dataset", type=Path, required=True, help="the prompts that it asked")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        results = load(options.results)
        prompts = {p.id: p for p in load_workload(options.dataset)}
        defaults = defaults_of(options.body)
    except (ResultsError, PromptError, SamplingError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipes.environment import describe

    model = AutoModelForCausalLM.from_pretrained(options.body, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.body)

    def one(row: RequestRow) -> Excess:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in prompts[row.prompt_id].messages], add_generation_prompt=True,
            tokenize=False,
        )  # fmt: skip
        prompt = tokenizer.encode(text, add_special_tokens=False)
        answer = list(row.token_ids or ())
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
        how = Sampling(row.temperature, **defaults)
        return excess(logits[len(prompt) - 1 : -1].float(), torch.tensor(answer), how)

    rows = [r for r in results.requests if r.prompt_id in prompts]
    arms = by_arm(rows, one)
    if not arms:
        print("error: no sampled answers with token ids of these prompts", file=sys.stderr)
        return 1
    argv = sys.argv[1:] if arguments is None else list(arguments)
    report = {
        "made_with": describe(),
        "command": shlex.join(["python", "-m", "benchmarks.surprise", *argv]),
        "arms": arms,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for a in arms:
        print(
            f"T = {a['temperature']:g}, {a['arm']}: {a['excess_a_token']:+.4f} nats a token "
            f"(standard error {a['se']:.4f}), {a['rare']} of {a['tokens']} tokens below e^-7"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
