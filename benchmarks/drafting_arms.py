"""Ways of drafting against each other: measured by a bench, foretold by the rule.

    python -m benchmarks.drafting_arms --body BODY --drafter a=FOLDER --drafter b=FOLDER \\
        --prompts 20 --temperature 0 0.3 0.7 1 --out runs/arms

Each drafter is served with draft_sample_method greedy and probabilistic and
rejection_sample_method standard and block, n drafts a step, beside the body without speculation.
Then `benchmarks.predict` says what was to be expected of the same prompts. Differences are paired
by prompt: of each way to greedy drafts with the standard method, and of each drafter to the first.

The rule: a greedy draft is accepted with p(argmax q), one drawn from q with the sum of min(p, q);
the larger one foretells the winner. Writes drafting_arms.json; both parts go on where they were
interrupted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import stats
from benchmarks.arm_verdict import EXIT_DEGENERATE, check_arm
from benchmarks.arms import NO_SPECULATION, ArmError, named
from benchmarks.cells import ByPrompt, accepted_by_position
from benchmarks.predict.evaluate import BLOCK, GREEDY, PROBABILISTIC
from benchmarks.predict.summary import sample_method
from benchmarks.schema import ArmSpec, RequestRow, Results, load

# Way -> what is added to the speculative config. Block verification of greedy drafts accepts what
# the standard method does: served to show it.
WAYS: dict[str, dict[str, str]] = {
    GREEDY: {},
    PROBABILISTIC: {"draft_sample_method": "probabilistic"},
    "greedy, block": {"rejection_sample_method": "block"},
    BLOCK: {"draft_sample_method": "probabilistic", "rejection_sample_method": "block"},
}


def arm_name(drafter: str, way: str) -> str:
    return f"{drafter}, {way}"


def bench_arguments(options: argparse.Namespace, drafters: dict[str, str]) -> list[str]:
    """The command line of `benchmarks.acceptance`."""
    found = ["--body", options.body, "--dtype", options.dtype, "--max-tokens", "96"]
    found += ["--max-model-len", "256", "--dataset", str(options.dataset)]
    found += ["--temperature", *map(str, options.temperature), "--blocks", str(options.blocks)]
    for name, folder in drafters.items():
        for way in options.way:
            config = {"method": "eagle3", "model": folder, "num_speculative_tokens": options.n}
            arm = f"{arm_name(name, way)}={json.dumps(config | WAYS[way])}"
            found += ["--arm", arm]
    return [*found, "--out", str(options.out / "bench")]


def measured(rows: Sequence[RequestRow]) -> dict[str, Any]:
    """Tokens a step, tok/s and milliseconds a step of one arm at one temperature."""
    by = ByPrompt.of(rows)
    found: dict[str, Any] = {"tok_s": stats.rate(by.tokens, by.seconds).to_json()}
    timed = [r for r in rows if r.ttft_s is not None and r.drafts]
    if timed:
        seconds = sum(r.seconds - (r.ttft_s or 0.0) for r in timed)
        found["ms_a_step"] = 1000 * seconds / sum(r.drafts for r in timed)
        found["tokens_a_step"] = stats.accepted_length(by.drafts, by.accepted).to_json()
        found["acceptance"] = [k / sum(by.drafts) for k in accepted_by_position(rows)]
    return found


def against(rows: Sequence[RequestRow], base: Sequence[RequestRow]) -> dict[str, Any]:
    """One arm and another on the prompts that both answered: tokens a step, tok/s, time a step."""
    common = sorted({r.prompt_id for r in rows} & {r.prompt_id for r in base})
    a = ByPrompt.of([r for r in rows if r.prompt_id in common], common)
    b = ByPrompt.of([r for r in base if r.prompt_id in common], common)
    found = {
        "prompts": len(common),
        "tok_s_ratio": stats.rate_ratio(a.tokens, a.seconds, b.tokens, b.seconds).to_json(),
    }
    if any(a.drafts) and any(b.drafts):
        found["tokens_a_step"] = stats.length_difference(
            a.drafts, a.accepted, b.drafts, b.accepted
        ).to_json()
        steps = [_steps(rows, common), _steps(base, common)]
        both = [i for i in common if i in steps[0] and i in steps[1]]
        if len(both) >= 2:
            # Seconds a step: the inverse of a rate, so the sides change places.
            sides = [[side[i][k] for i in both] for side in (steps[1], steps[0]) for k in (0, 1)]
            found["step_time_ratio"] = stats.rate_ratio(*sides).to_json()
    return found


def _steps(rows: Sequence[RequestRow], ids: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Verify steps and their seconds by prompt; answers of one step tell no time."""
    found: dict[str, tuple[int, float]] = {}
    for r in rows:
        if r.prompt_id in ids and r.ttft_s is not None and r.drafts and r.seconds > r.ttft_s:
            steps, seconds = found.get(r.prompt_id, (0, 0.0))
            found[r.prompt_id] = steps + r.drafts, seconds + r.seconds - r.ttft_s
    return found


class Answers:
    """The answers of a bench by arm and temperature, all workloads together, judged as it judges.

    Degenerate ones are left out on both sides of a comparison; above the bench's share of them an
    arm has a verdict and no numbers. (The bench judges each workload alone, so it may refuse one.)
    """

    def __init__(self, results: Results) -> None:
        self._rows: dict[tuple[str, float], list[RequestRow]] = {}
        for r in results.requests:
            self._rows.setdefault((r.arm, r.temperature), []).append(r)
        self.verdicts = {
            key: check_arm(rows, prompts=results.prompts) for key, rows in self._rows.items()
        }

    @property
    def temperatures(self) -> list[float]:
        return sorted({temperature for _, temperature in self._rows})

    def of(self, arm: str, temperature: float) -> list[RequestRow]:
        """Those that count; none of an arm that is refused."""
        verdict = self.verdicts[arm, temperature]
        if verdict.refused:
            return []
        return [r for r in self._rows[arm, temperature] if r.prompt_id not in verdict.bad]


def table(
    answers: Answers,
    arms: Sequence[ArmSpec],
    prediction: dict[str, Any],
    drafters: Sequence[str],
    ways: Sequence[str],
) -> list[dict[str, Any]]:
    """One row a drafter, way and temperature."""
    found = []
    for temperature in answers.temperatures:

        def rows(arm: str, t: float = temperature) -> list[RequestRow]:
            return answers.of(arm, t)

        for drafter in drafters:
            cell = next(
                c for c in prediction["drafters"][drafter]["cells"]
                if c["workload"] == "all" and c["temperature"] == temperature
            )  # fmt: skip
            base = rows(arm_name(drafter, GREEDY))
            for way in ways:
                arm = next(a for a in arms if a.name == arm_name(drafter, way))
                mine, verdict = rows(arm.name), answers.verdicts[arm.name, temperature]
                row: dict[str, Any] = {
                    "drafter": drafter, "way": way, "temperature": temperature,
                    "expected_tokens_a_step": _expected(cell, arm),
                    "answers": verdict.answers, "degenerate": verdict.degenerate,
                }  # fmt: skip
                found.append(row)
                if not mine:
                    row["refused"] = verdict.text()
                    continue
                row |= measured(mine)
                others = {"no_speculation": rows(NO_SPECULATION)}
                if way != GREEDY:
                    others["greedy"] = base
                if drafter != drafters[0]:
                    others[drafters[0]] = rows(arm_name(drafters[0], way))
                row |= {
                    f"against_{k}": against(mine, other) for k, other in others.items() if other
                }
    return found


def _expected(cell: dict[str, Any], arm: ArmSpec) -> float:
    lengths = cell["tokens_a_step"][sample_method(arm)]
    return float(lengths[str(arm.n)]["value"])


def rule(prediction: dict[str, Any], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the rule says per drafter and temperature above 0, and what came out."""
    told = []
    for name, drafter in prediction["drafters"].items():
        for cell in drafter["cells"]:
            if cell["workload"] != "all" or cell["temperature"] == 0:
                continue
            row = next(
                r for r in found
                if (r["drafter"], r["way"], r["temperature"])
                == (name, PROBABILISTIC, cell["temperature"])
            )  # fmt: skip
            if "against_greedy" not in row:
                continue  # one of them is refused
            greedy, drawn = cell["measures"]["greedy"][0], cell["measures"]["overlap"][0]
            length = row["against_greedy"]["tokens_a_step"]
            told.append(
                {"drafter": name, "temperature": cell["temperature"], "p_argmax_q": greedy,
                 "overlap": drawn, "foretold": PROBABILISTIC if drawn > greedy else GREEDY,
                 "measured": PROBABILISTIC if length["value"] > 0 else GREEDY,
                 "shown": length["low"] > 0 or length["high"] < 0, "difference": length}
            )  # fmt: skip
    return told


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.drafting_arms", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = found.add_argument
    add("--body", required=True, help="hub id or folder of the body")
    add("--drafter", action="append", required=True, metavar="NAME=MODEL", help="repeatable")
    add("--way", nargs="+", choices=list(WAYS), default=list(WAYS))
    add("--dataset", type=Path, help="held-out prompts, .jsonl")
    add("--prompts", type=int, metavar="K", help="instead: K of each kind of the miniature's world")
    add("--temperature", type=float, nargs="+", default=[0.0, 0.3, 0.7, 1.0], metavar="T")
    add("--n", type=int, default=4, help="drafted tokens a step")
    add("--blocks", type=int, default=2)
    add("--repeats", type=int, default=2, help="answers a prompt at T > 0 in the prediction")
    add("--dtype", default="float32")
    add("--out", type=Path, required=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: those of the two parts; 0 too where an arm is refused in words."""
    from benchmarks import acceptance
    from benchmarks.drafter_variants import heldout
    from benchmarks.predict import __main__ as predict

    options = parser().parse_args(arguments)
    argv = sys.argv[1:] if arguments is None else list(arguments)
    try:
        drafters = dict(named(text, "--drafter") for text in options.drafter)
        if GREEDY not in options.way:
            raise ArmError("--way must name greedy, which the others are compared with.")
        if (options.dataset is None) == (options.prompts is None):
            raise ArmError("Give either --dataset or --prompts.")
    except ArmError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    if options.prompts is not None:
        options.dataset = options.out / "prompts.jsonl"
        rows = [{"id": p.id, "kind": p.kind, "messages": list(p.messages)}
                for p in heldout(options.prompts)]  # fmt: skip
        options.dataset.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    code = acceptance.main(bench_arguments(options, drafters))
    if code not in (0, EXIT_DEGENERATE):  # which arms are, is told arm by arm
        return code
    results = options.out / "bench" / "results.json"
    code = predict.main(
        ["--body", options.body, "--dataset", str(options.dataset), "--depth", str(options.n),
         "--temperature", *map(str, options.temperature), "--repeats", str(options.repeats),
         "--max-tokens", "96", "--dtype", options.dtype, "--max-model-len", "256",
         *(part for text in options.drafter for part in ("--drafter", text)),
         "--bench", str(results), "--out", str(options.out / "predict")]
    )  # fmt: skip
    if code:
        return code
    prediction = json.loads((options.out / "predict" / "prediction.json").read_text("utf-8"))
    report = make_report(load(results), prediction, list(drafters), options.way)
    report["command"] = shlex.join(["python", "-m", "benchmarks.drafting_arms", *argv])
    text = json.dumps(report, indent=1) + "\n"
    (options.out / "drafting_arms.json").write_text(text, "utf-8")
    print("\n".join(lines(report)))
    return 0


def make_report(
    results: Results, prediction: dict[str, Any], drafters: Sequence[str], ways: Sequence[str]
) -> dict[str, Any]:
    """What is written, without the command."""
    answers = Answers(results)
    rows = table(answers, results.arms, prediction, drafters, ways)
    return {
        "made_with": results.made_with,
        "body": Path(results.body).name,
        "softcap": prediction["softcap"],
        "prompts": len({r.prompt_id for r in results.requests}),
        "no_speculation": {
            t: measured(kept) if (kept := answers.of(NO_SPECULATION, t)) else None
            for t in answers.temperatures
        },
        "rows": rows,
        "rule": rule(prediction, rows),
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The rows and the rule, for a terminal."""

    def told(interval: dict[str, Any]) -> str:
        return f"{interval['value']:+.2f} ({interval['low']:+.2f} to {interval['high']:+.2f})"

    found = []
    for r in report["rows"]:
        if "refused" in r:
            found.append(f"T = {r['temperature']:g}, {r['drafter']}, {r['way']}: {r['refused']}")
            continue
        line = (
            f"T = {r['temperature']:g}, {r['drafter']}, {r['way']:<20} "
            f"{r['tokens_a_step']['value']:.2f} tokens a step "
            f"(expected {r['expected_tokens_a_step']:.2f}), {r['ms_a_step']:.1f} ms a step, "
            f"{r['tok_s']['value']:.0f} tok/s"
        )
        if "against_greedy" in r:
            a = r["against_greedy"]
            line += (
                f"; to greedy {told(a['tokens_a_step'])}, tok/s x {a['tok_s_ratio']['value']:.2f} "
                f"({a['tok_s_ratio']['low']:.2f} to {a['tok_s_ratio']['high']:.2f})"
            )
        found.append(line)
    for r in report["rule"]:
        found.append(
            f"T = {r['temperature']:g}, {r['drafter']}: p(argmax q) {r['p_argmax_q']:.3f}, "
            f"sum min(p, q) {r['overlap']:.3f}: {r['foretold']}; measured {r['measured']} "
            f"{told(r['difference'])}"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
