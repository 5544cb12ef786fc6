"""Which temperature the drafter's head wants, by what held-out answers show.

    python -m benchmarks.predict.calibration --question FILE.json --out FILE.json

The body's answers to prompts that were not trained on, drawn as production draws them, say what
vLLM would accept of drafts from softmax(logits / T) for every T tried, without serving any. All
temperatures are judged on the same answers, so each one's difference to 1 is paired by
conversation. The best of several is a little too good by luck: its interval is widened for their
number (Bonferroni), and where it does not lie above 0, T stays 1.

Towards 0 drawn drafts become greedy ones, which no T changes. So where greedy drafts may be served
instead (draft_sample_method=auto), a T must be shown to be better than those too: else it would
only bring drawn drafts as far as greedy ones are without it.

`--question` is what `recipes.calibrate_stage` wrote; the answers are collected already. A process
of its own, since what it holds of a GPU is free again when it ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import stats
from benchmarks.predict.answers import Answer, Collection
from benchmarks.predict.drafting import Drafter
from benchmarks.predict.evaluate import GREEDY, PROBABILISTIC, Row
from benchmarks.predict.summary import by_prompt

if TYPE_CHECKING:
    import torch

    from benchmarks.predict.drafting import Body

# A widened interval lies in the outermost resamples, which few conversations do not reach: of
# values worth nothing one was taken in 11 % of 150 trials with 8, 7 % with 12, 3 % with 24.
FEWEST = 24
TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.2)


@dataclass
class Tempered(Drafter):
    """A drafter at several temperatures over one text, with one pass of its model."""

    temperature: float = 1.0
    _seen: list[torch.Tensor] | None = None

    def logits(self, ids: torch.Tensor, aux: torch.Tensor, depth: int) -> list[torch.Tensor]:
        """See `Drafter`; divided by `temperature`. The text must stay the same."""
        if self._seen is None:
            self._seen = super().logits(ids, aux, depth)
        return [logits / self.temperature for logits in self._seen]


def rows_by_temperature(
    answers: Sequence[Answer],
    collection: Collection,
    drafter: Drafter,
    body: Body,
    sampling: dict[str, Any],
    depth: int,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[float, list[Row]]:
    """Rows of `evaluate` for 1 and each of TEMPERATURES.

    Args:
        sampling: the body's top_k and top_p (`distributions.defaults_of`).
    """
    from benchmarks.predict.distributions import Sampling
    from benchmarks.predict.evaluate import evaluate

    found: dict[float, list[Row]] = {t: [] for t in (1.0, *TEMPERATURES)}
    for done, answer in enumerate(answers):
        progress(f"answer {done + 1} of {len(answers)}")
        states = collection.states(answer)
        how = Sampling(answer.temperature, **sampling)
        tempered = Tempered(drafter.name, drafter.model, drafter.sayable)
        for tempered.temperature, rows in found.items():
            rows.append(evaluate(answer, states, tempered, body, how, depth))
    return found


def judge(
    rows: dict[float, list[Row]], n: int, seed: int = 0, *, or_greedy: bool = False
) -> dict[str, Any]:
    """The temperature to serve with, why, and what was seen of each.

    Args:
        rows: for 1 and each temperature tried, of the same answers.
        n: drafted tokens a step.
        or_greedy: greedy drafts would be served where they are as good.

    Returns:
        `head_temperature`; `reason`, a clause; `conversations`; `tried`, one record each with
        `temperature`, `tokens_a_step` (95 % interval), its `difference` to 1 and that `to_greedy`
        (widened intervals); `greedy`, tokens a step of greedy drafts.
    """
    kept = {t: [r for r in mine if r.starts > 0] for t, mine in rows.items()}
    conversations = len({r.prompt_id for r in kept[1.0]})
    if conversations < FEWEST:
        return {
            "head_temperature": 1.0, "conversations": conversations, "tried": [],
            "reason": f"{conversations} held-out answers of more than one token are too few to "
            f"judge by ({FEWEST} at least)",
        }  # fmt: skip
    confidence = 1 - (1 - stats.CONFIDENCE) / (len(rows) - 1)
    base, greedy = by_prompt(kept[1.0], PROBABILISTIC, n), by_prompt(kept[1.0], GREEDY, n)
    tried = []
    for temperature in sorted(rows):
        mine = by_prompt(kept[temperature], PROBABILISTIC, n)
        record: dict[str, Any] = {
            "temperature": temperature,
            "tokens_a_step": stats.accepted_length(*mine, seed=seed).to_json(),
        }
        for name, other in (("difference", base), ("to_greedy", greedy)):
            if temperature != 1 or other is greedy:
                record[name] = stats.length_difference(
                    *mine, *other, seed=seed, confidence=confidence
                ).to_json()
        tried.append(record)
    best = max(
        (r for r in tried if "difference" in r), key=lambda r: float(r["difference"]["value"])
    )
    told = (
        f"{best['temperature']:g} is expected to bring {_words(best['difference'])} tokens a step "
        f"against 1, and {_words(best['to_greedy'])} against greedy drafts (intervals widened for "
        f"the {len(rows) - 1} tried; {conversations} conversations)"
    )
    value = 1.0
    if best["difference"]["low"] <= 0:
        reason = f"none is shown to be better than 1: {told}"
    elif or_greedy and best["to_greedy"]["low"] <= 0:
        reason = f"none is shown to be better than greedy drafts, which need none: {told}"
    else:
        value, reason = best["temperature"], told
    return {
        "head_temperature": value, "reason": reason, "conversations": conversations,
        "tried": tried, "greedy": stats.accepted_length(*greedy, seed=seed).to_json(),
    }  # fmt: skip


def _words(difference: dict[str, Any]) -> str:
    return f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict.calibration", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--question", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)

    import torch

    from benchmarks.predict.answers import Wanted
    from benchmarks.predict.distributions import defaults_of
    from benchmarks.predict.drafting import load
    from recipes.run_folder import write_atomically

    asked = json.loads(options.question.read_text("utf-8"))
    wanted = {**asked["wanted"], "layers": tuple(asked["wanted"]["layers"])}
    collection = Collection(Path(asked["answers"]), Wanted(**wanted))
    chosen = [
        a for a in collection.answers
        if a.temperature == asked["temperature"] and a.prompt_id in set(asked["prompts"])
        and a.end - a.start > 1
    ]  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    drafter, body = load("trained", asked["drafter"], collection.wanted.body, device, dtype)
    rows = rows_by_temperature(
        chosen, collection, drafter, body, defaults_of(collection.wanted.body), asked["n"],
        lambda text: print(text, flush=True),
    )  # fmt: skip
    found = judge(rows, asked["n"], asked["seed"], or_greedy=asked["or_greedy"])
    write_atomically(options.out, json.dumps(found, indent=1) + "\n")
    print(found["reason"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
