"""results.json: everything a bench measured, one row a request, and what it was made with.

The raw rows are the result; `summary` is computed from them by `benchmarks.summary` and stored
beside them for readers that do not want to compute. A file of a newer schema is refused; a change
of meaning raises `SCHEMA_VERSION`. `digest` is there to catch an edit or a merge gone wrong, not a
forger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.break_even import BreakEvenError, StepCost

SCHEMA_VERSION = 1
ENDPOINTS = ("chat", "raw")


class ResultsError(ValueError):
    """A results file that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class ArmSpec:
    """One way of serving. `n` = 0 is no speculation; `server_refused` why it never started.

    `body` is empty where it is the run's. An arm is compared with the one without speculation that
    has the same body and flags. `synthetic` arms accept at random for the break-even page; their
    text means nothing.
    """

    name: str
    n: int
    speculative_config: dict[str, Any] | None = None
    server_flags: tuple[str, ...] = ()
    experimental: bool = False
    synthetic: bool = False
    server_refused: str | None = None
    body: str = ""

    @property
    def like(self) -> tuple[str, tuple[str, ...]]:
        """What two arms must share for a ratio of their speeds to mean something."""
        return self.body, tuple(self.server_flags)

    @property
    def key(self) -> str:
        return f"{self.name}, n = {self.n}" if self.n else self.name


@dataclass(frozen=True)
class RequestRow:
    """One answered request, as measured.

    `seconds` from sending to the last byte, `ttft_s` to the first token, `itl_s` the mean time
    between tokens after it; `started_s` on a clock common to the run. `accepted` counts drafts
    accepted up to each position; `drafts` the verify steps. `counted_by` is "request" (vLLM's
    per-request metrics), "counters" (differences of the server's, only at concurrency 1) or "none".
    `gaps` are the reference's log-probability gaps between its two best tokens, per token.
    """

    prompt_id: str
    workload: str
    length: str
    arm: str
    n: int
    temperature: float
    concurrency: int
    block: int
    seed: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    started_s: float
    seconds: float
    ttft_s: float | None = None
    itl_s: float | None = None
    drafts: int = 0
    draft_tokens: int = 0
    accepted: tuple[int, ...] = ()
    counted_by: str = "none"
    token_ids: tuple[int, ...] | None = None
    gaps: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Results:
    """A whole run of the bench. `made_with` is `recipes.environment.describe()`.

    `prompts` holds each prompt's text by id: template marks in it are allowed in its answer.
    `settings` is what the bench was called with. `gpu_flags` and the like belong to the arms.
    """

    created: str
    endpoint: str
    body: str
    made_with: dict[str, Any]
    settings: dict[str, Any]
    arms: tuple[ArmSpec, ...]
    requests: tuple[RequestRow, ...]
    prompts: dict[str, str] = field(default_factory=dict)
    costs: tuple[StepCost, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def raw(self) -> bool:
        return self.endpoint == "raw"


def dumps(results: Results, summary: dict[str, Any] | None = None) -> str:
    """The text of results.json, with the summary if there is one."""
    row = asdict(results)
    row["costs"] = [c.to_json() for c in results.costs]
    row["digest"] = _digest(row)
    if summary is not None:
        row["summary"] = summary
    return json.dumps(row, ensure_ascii=False, indent=1) + "\n"


def load(path: Path) -> Results:
    """Read a results file.

    Raises:
        ResultsError: names the file and the row or field that is wrong.
    """
    try:
        row = json.loads(path.read_text("utf-8"))
    except OSError as e:
        raise ResultsError(f"Cannot read the results {path}: {e.strerror}.") from None
    except ValueError:
        raise ResultsError(f"{path} is not valid JSON; was the bench stopped in writing?") from None
    results = from_json(row, str(path))
    if row.get("digest", _digest(row)) != _digest(row):
        raise ResultsError(
            f"{path} is not as the bench wrote it: something in it was changed and its digest was "
            "not. Take the file that the bench wrote."
        )
    return results


def _digest(row: Mapping[str, Any]) -> str:
    """Of everything but the summary, which is computed anew, and the digest itself."""
    kept = {k: v for k, v in row.items() if k not in ("digest", "summary")}
    text = json.dumps(kept, ensure_ascii=False, sort_keys=True, default=list)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def from_json(row: Any, where: str = "results") -> Results:
    """Build `Results` from parsed JSON; errors as `load`."""
    if not isinstance(row, dict) or "schema_version" not in row:
        raise ResultsError(
            f"{where} has no schema_version, so it is no results.json of this bench."
        )
    if row["schema_version"] != SCHEMA_VERSION:
        raise ResultsError(
            f"{where} has schema version {row['schema_version']}, this bench reads "
            f"{SCHEMA_VERSION}; use the project version it was made with (made_with.commit)."
        )
    if row.get("endpoint") not in ENDPOINTS:
        raise ResultsError(f"{where}: endpoint is {row.get('endpoint')!r}, not one of {ENDPOINTS}.")
    try:
        costs = tuple(StepCost.from_json(c) for c in row.get("costs", []))
    except (BreakEvenError, TypeError, KeyError) as e:
        raise ResultsError(f"{where}: costs: {e}") from None
    known = {f.name for f in fields(Results)}
    kept = {k: v for k, v in row.items() if k in known}
    kept["arms"] = tuple(_build(ArmSpec, a, f"{where}: arm {k}") for k, a in _rows(row, "arms"))
    kept["requests"] = tuple(
        _build(RequestRow, r, f"{where}: request {k}") for k, r in _rows(row, "requests")
    )
    kept["costs"] = costs
    results: Results = _build(Results, kept, where)
    _check(results, where)
    return results


def row_of(row: dict[str, Any]) -> RequestRow:
    """One raw row from parsed JSON; errors as `load`."""
    built: RequestRow = _build(RequestRow, row, "a request")
    return built


def _rows(row: dict[str, Any], key: str) -> Sequence[tuple[int, Any]]:
    return list(enumerate(row.get(key, [])))


def _build(kind: Any, row: Any, where: str) -> Any:
    if not isinstance(row, dict):
        raise ResultsError(f"{where} is not an object.")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    try:
        return kind(**values)
    except TypeError as e:
        # Python's sentence without the name of the constructor: "missing 1 required ... 'text'".
        raise ResultsError(f"{where}: {str(e).partition('() ')[2] or e}.") from None


def _check(results: Results, where: str) -> None:
    arms = {(a.name, a.n) for a in results.arms}
    if len(arms) != len(results.arms):
        raise ResultsError(f"{where}: two arms have the same name and n.")
    for k, r in enumerate(results.requests):
        if (r.arm, r.n) not in arms:
            raise ResultsError(f"{where}: request {k} is of arm {r.arm!r}, n = {r.n}: not listed.")
        if r.seconds <= 0 or r.completion_tokens < 0:
            raise ResultsError(f"{where}: request {k} took {r.seconds} s; a time is above 0.")
        if r.accepted and (r.accepted[0] > r.drafts or list(r.accepted) != sorted(
            r.accepted, reverse=True
        )):  # fmt: skip
            raise ResultsError(
                f"{where}: request {k} accepted {list(r.accepted)} of {r.drafts} drafts; counts "
                "by position are unconditional and never rise."
            )
