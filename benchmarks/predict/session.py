"""A whole prediction: answers from an extraction server, every drafter over them, the report."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.break_even import StepCost
from benchmarks.client import BenchError
from benchmarks.predict import summary
from benchmarks.predict.answers import Answer, Collection, Prompt, Wanted
from benchmarks.predict.distributions import Sampling, defaults_of
from benchmarks.predict.drafting import config_of, layers_read, softcap_of
from benchmarks.predict.evaluate import GREEDY, Row
from benchmarks.predict.verdict import judge
from benchmarks.schema import Results
from recipes.vllm_server import ServerSpec

if TYPE_CHECKING:
    from recipes.servers import ServerPool

SCHEMA = 1
REPORT = "prediction.json"
# Tokens collected behind an answer's end, so that other depths need no other answers.
BEYOND = 8


@dataclass(frozen=True)
class Question:
    """What is to be predicted.

    Attributes:
        body: hub id or folder.
        drafters: name -> hub id or folder; all read the same layers.
        depth: the largest n.
        n, drafting: how it is served now, for the verdict.
        repeats: answers a prompt at temperatures above 0.
        bench: results of a bench of this body, for step costs and to be compared with.
        closes: see `verdict`.
        request: merged into every chat request.
    """

    body: str
    drafters: Mapping[str, str]
    prompts: Sequence[Prompt]
    temperatures: Sequence[float]
    depth: int = 4
    n: int = 4
    drafting: str = GREEDY
    max_tokens: int = 256
    repeats: int = 1
    seed: int = 0
    bench: Results | None = None
    closes: float = 0.5
    request: Mapping[str, Any] = field(default_factory=dict)


def predict(
    question: Question,
    folder: Path,
    pool: ServerPool,
    template: ServerSpec,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The report, also written as `prediction.json` into `folder`.

    Args:
        template: how the body is served (dtype, context, flags); it is started as an extraction
            server, if an answer is missing.

    Raises:
        BenchError: the drafters do not fit together or the body, or the server does not answer.
    """
    collection = collect(question, folder, pool, template, progress)
    chosen = _chosen(collection.answers, question)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "body": Path(question.body).name,
        "temperatures": list(question.temperatures),
        "depth": question.depth,
        "answers": len(chosen),
        "drafters": {},
    }
    defaults = defaults_of(question.body)
    found["sampling"] = defaults
    for name, drafter in question.drafters.items():
        rows = _rows(question, collection, chosen, name, drafter, defaults, progress)
        found.setdefault("softcap", summary.reach(rows, softcap_of(question.body)))
        found["drafters"][name] = _report(question, rows, drafter)
    from recipes.environment import describe

    found["made_with"] = describe()
    (folder / REPORT).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def collect(
    question: Question,
    folder: Path,
    pool: ServerPool,
    template: ServerSpec,
    progress: Callable[[str], None] = lambda _: None,
) -> Collection:
    """The body's answers and states; a server is started if one is missing. Raises as `predict`."""
    layers = _layers(question)
    wanted = Wanted(
        question.body, layers, max(BEYOND, question.depth), question.max_tokens, question.seed,
        dict(question.request),
    )  # fmt: skip
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    with (folder / "answers" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another prediction over the same answers collects first
        collection = Collection(folder / "answers", wanted)
        missing = collection.missing(question.prompts, question.temperatures, question.repeats)
        if missing:
            server = replace(
                template, name="predict", model=question.body, speculative_config=None,
                extraction_layers=layers, extraction_folder=folder / "states",
            )  # fmt: skip
            (folder / "states").mkdir(parents=True, exist_ok=True)
            with pool.lease(server) as endpoint:
                collection.collect(endpoint, missing, progress)
    return collection


def rows_of(
    question: Question,
    collection: Collection,
    name: str,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """What is expected of one of the question's drafters, one row an answer."""
    chosen = _chosen(collection.answers, question)
    defaults = defaults_of(question.body)
    drafter = question.drafters[name]
    return _rows(question, collection, chosen, name, drafter, defaults, progress)


def _layers(question: Question) -> tuple[int, ...]:
    read = {name: layers_read(drafter) for name, drafter in question.drafters.items()}
    if len(set(read.values())) != 1:
        raise BenchError(f"The drafters read different layers ({read}): predict for each alone.")
    told = config_of(question.body)
    last = int(told.get("text_config", told)["num_hidden_layers"])
    layers = next(iter(read.values()))
    # A drafter's config may list the body's last layer for its targets too.
    return (*(layer for layer in layers if layer != last), last)


def _chosen(answers: Sequence[Answer], question: Question) -> list[Answer]:
    prompts = {p.id for p in question.prompts}
    return [
        a for a in answers
        if a.prompt_id in prompts and a.temperature in question.temperatures
        and a.repeat < question.repeats and a.end - a.start > 1
    ]  # fmt: skip


def _rows(
    question: Question,
    collection: Collection,
    chosen: Sequence[Answer],
    name: str,
    drafter: str,
    defaults: Mapping[str, Any],
    progress: Callable[[str], None],
) -> list[Row]:
    import torch

    from benchmarks.predict.drafting import load
    from benchmarks.predict.evaluate import evaluate

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    loaded, body = load(name, drafter, question.body, device, dtype)
    rows = []
    for done, answer in enumerate(chosen):
        progress(f"{name}: answer {done + 1} of {len(chosen)}")
        how = Sampling(answer.temperature, **defaults)
        states = collection.states(answer)
        rows.append(evaluate(answer, states, loaded, body, how, question.depth))
    return rows


def _report(question: Question, rows: list[Row], drafter: str) -> dict[str, Any]:
    cells = summary.summarise(rows, question.depth, question.seed)
    costs = _costs(question, drafter)
    verdicts = [
        judge(cell, question.n, question.drafting, costs, question.closes) for cell in cells
    ]
    return {
        "cells": cells,
        "costs": {f"{way}, n = {n}": cost.to_json() for (way, n), cost in costs.items()},
        "verdicts": [v.to_json() for v in verdicts],
        "against_bench": []
        if question.bench is None
        else summary.errors(
            question.bench, rows, drafter, question.body, question.depth, question.seed
        ),
    }


def _costs(question: Question, drafter: str) -> dict[tuple[str, int], StepCost]:
    """Costs of this drafter's steps, else of any drafter's of the bench: same n, same work."""
    bench = question.bench
    if bench is None:
        return {}
    own = {(a.name, a.n): a for a in summary.arms_of(bench, drafter, question.body)}
    arms = {(a.name, a.n): a for a in bench.arms}
    found: dict[tuple[str, int], StepCost] = {}
    for source in (own, arms):
        for cost in bench.costs:
            arm = source.get((cost.arm, cost.n))
            if cost.concurrency == 1 and arm is not None and cost.n <= question.depth:
                found.setdefault((summary.sample_method(arm), cost.n), cost)
    return found
