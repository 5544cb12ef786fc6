"""draft_sample_method=auto: which way of drafting this run's own bench showed to be faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import stats
from benchmarks.schema import RequestRow, Results, ResultsError, load
from recipes.calibrate_stage import served_drafter
from recipes.config import Recipe
from recipes.process import StageError
from recipes.run_folder import RunFolder
from recipes.vllm.drafting import DraftSampleMethod


@dataclass(frozen=True)
class Chosen:
    """How to draft in production, and why, as a clause."""

    method: DraftSampleMethod
    reason: str


def choose(recipe: Recipe, run: RunFolder) -> Chosen:
    """The recipe's own setting, or with `auto` what the bench of this run's drafter says."""
    if recipe.draft_sample_method != "auto":
        method = recipe.draft_sample_method
        return Chosen(method, f"{method} drafts, as set (draft_sample_method)")
    if recipe.serve_temperature == 0:
        return Chosen("greedy", "greedy drafts: at temperature 0 both ways are the same")
    results = run.stage_dir("bench") / "results.json"
    if not run.manifest("bench") or not results.is_file():
        return Chosen("greedy", "greedy drafts, vLLM's default: this run's bench is not done")
    try:
        served = served_drafter(recipe, run)
        # A copy at another temperature, or a drafter trained anew, has the same folder's name.
        if run.made_from("bench").get("drafter", served.output) != served.output:
            return Chosen(
                "greedy", "greedy drafts, vLLM's default: this run's bench is of another drafter"
            )
        return from_bench(load(results), served.folder, recipe)
    except (ResultsError, StageError) as e:  # no bench of the drafter that is served
        return Chosen("greedy", f"greedy drafts, vLLM's default: {e}")


def from_bench(results: Results, drafter: Path, recipe: Recipe) -> Chosen:
    """Probabilistic where it is shown to be faster on the same prompts, else greedy.

    The temperature benched that is nearest to `serve_temperature` decides, at one request at a
    time and the production server's n.
    """
    rows: dict[str, list[RequestRow]] = {"greedy": [], "probabilistic": []}
    n = recipe.num_speculative_tokens
    for arm in results.arms:
        config = arm.speculative_config or {}
        if arm.n == n and config.get("model") == str(drafter) and arm.body in ("", results.body):
            method = str(config.get("draft_sample_method", "greedy"))
            mine = [
                r for r in results.requests
                if (r.arm, r.n) == (arm.name, arm.n) and r.concurrency == 1 and r.temperature > 0
            ]  # fmt: skip
            rows.get(method, []).extend(mine)
    temperatures = {r.temperature for r in rows["greedy"]} & {
        r.temperature for r in rows["probabilistic"]
    }
    if not temperatures:
        return Chosen(
            "greedy",
            "greedy drafts, vLLM's default: this run's bench compares no probabilistic ones at "
            f"n = {n} and a temperature above 0",
        )
    nearest = min(temperatures, key=lambda t: (abs(t - recipe.serve_temperature), t))
    ratio = _ratio(
        [r for r in rows["probabilistic"] if r.temperature == nearest],
        [r for r in rows["greedy"] if r.temperature == nearest],
    )
    told = (
        f"at T = {nearest:g} probabilistic drafts ran at {ratio.value:.2f} times the speed of "
        f"greedy ones (95 % interval {ratio.low:.2f} to {ratio.high:.2f}, {ratio.prompts} prompts)"
    )
    if ratio.low > 1:
        return Chosen("probabilistic", f"probabilistic drafts: {told}")
    return Chosen("greedy", f"greedy drafts: {told}, which does not show them to be faster")


def _ratio(mine: Sequence[RequestRow], base: Sequence[RequestRow]) -> stats.Interval:
    common = sorted({r.prompt_id for r in mine} & {r.prompt_id for r in base})

    def totals(rows: Sequence[RequestRow]) -> tuple[list[int], list[float]]:
        by_prompt = [[r for r in rows if r.prompt_id == name] for name in common]
        return (
            [sum(r.completion_tokens for r in found) for found in by_prompt],
            [sum(r.seconds for r in found) for found in by_prompt],
        )

    return stats.rate_ratio(*totals(mine), *totals(base))
