"""`worth-it`: before hours are spent, what the vanilla drafter is worth with this body as it is.

The body answers held-out prompts and gives its hidden states; the drafter to start from (and the
trained one, once there is one) drafts over them; from both distributions follows what vLLM would
accept, and with a bench's step costs how fast that is. See `benchmarks.predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.predict.session import Question, predict
from benchmarks.predict.wording import lines
from benchmarks.schema import Results, load
from recipes.bench_stage import FINE_TUNED, VANILLA, bench_prompts
from recipes.calibrate_stage import served_drafter
from recipes.config import ConfigError, Recipe
from recipes.drafting_choice import choose
from recipes.process import StageError
from recipes.run_folder import RunFolder
from recipes.server_specs import plain_server
from recipes.servers import ServerPool
from recipes.stage import trained_drafter


def folder_of(run: RunFolder) -> Path:
    """Where answers, states and the prediction are kept."""
    return run.root / "worth-it"


def question(recipe: Recipe, run: RunFolder, closes: float) -> Question:
    """What is predicted for these settings.

    Raises:
        ConfigError: there is no drafter to judge.
    """
    drafters = {VANILLA: recipe.draft_start} if recipe.draft_start else {}
    if run.manifest("train"):
        try:
            drafters[FINE_TUNED] = str(served_drafter(recipe, run).folder)
        except StageError:  # its head_temperature is not applied yet
            drafters[FINE_TUNED] = str(trained_drafter(run))
    if not drafters:
        raise ConfigError(
            "worth-it: draft_start is empty and nothing is trained yet, so there is no drafter to "
            "judge; set draft_start."
        )
    temperatures = sorted({0.0, recipe.serve_temperature, *recipe.bench_temperatures})
    request: dict[str, Any] = {}
    if recipe.thinking is not None:
        request["chat_template_kwargs"] = {"enable_thinking": recipe.thinking}
    return Question(
        body=recipe.body,
        drafters=drafters,
        prompts=bench_prompts(recipe),
        temperatures=temperatures,
        depth=max(recipe.num_speculative_tokens, *recipe.bench_n),
        n=recipe.num_speculative_tokens,
        drafting=choose(recipe, run).method,
        max_tokens=recipe.bench_max_tokens,
        seed=recipe.seed,
        bench=_bench(run),
        closes=closes,
        request=request,
    )


def _bench(run: RunFolder) -> Results | None:
    results = run.stage_dir("bench") / "results.json"
    return load(results) if run.manifest("bench") and results.is_file() else None


def worth_it(
    recipe: Recipe,
    run: RunFolder,
    pool: ServerPool,
    closes: float,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[str]:
    """Runs the prediction and yields its report, line by line.

    Raises:
        ConfigError, BenchError, ServerError: see `benchmarks.predict.session.predict`.
    """
    asked = question(recipe, run, closes)
    report = predict(asked, folder_of(run), pool, plain_server(recipe), progress)
    if asked.bench is None:
        yield (
            "step costs: this run's bench is not done, so tokens a step stand in for speed; a "
            "drafting step costs more than a plain one (run `bench`, or read the published ones)."
        )
    yield from lines(report)
    yield f"written: {folder_of(run) / 'prediction.json'}"
