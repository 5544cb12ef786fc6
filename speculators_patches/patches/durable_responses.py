"""`regenerate-responses` loses no answer, doubles none, waits for no dead server and says so.

Upstream appends rows through a text buffer: a kill leaves half a line, or the first rows of a
conversation that then counts as done; --resume glues its next row to the half line; a run without
--resume appends everything again; a request may take forever; a dead server, or a full disk, ends
in exit code 0 or never. Here a conversation is appended whole or not at all
(`responses_file`), what an earlier kill left is repaired first, a run always goes on where the file
ends, requests have time limits, and too many failures end the run with exit code 1.

`--endpoint` may list several servers of one model, separated by commas (`endpoints`). In the
environment: `SPECULATORS_PATCHES_ERROR_SHARE` (0.02 of the conversations),
`SPECULATORS_PATCHES_CONNECT_TIMEOUT_S` (10), `SPECULATORS_PATCHES_READ_TIMEOUT_S` (900, for one
whole answer), `SPECULATORS_PATCHES_SERVER_WAIT_S` (900, for servers that are down or a full disk),
and `SPECULATORS_PATCHES_SYSTEM_PROMPT` (given to conversations without one).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.endpoints import Endpoints, NoServer
from speculators_patches.registry import Patch, Target
from speculators_patches.responses_file import ROWS, Busy, WholeAppends, locked, repair
from speculators_patches.stops import RunStopped, setting

_MODULE = "speculators.cli.regenerate_responses"
_RANGE = ">=0.8.1,<0.9.1"


def _target(qualname: str, *known: str, observed: bool = False) -> Target:
    specs = (_RANGE,) if len(known) == 1 else ("==0.8.1", "==0.9.0")
    return Target(_MODULE, qualname, dict(zip(specs, known, strict=True)), observed=observed)


PATCH = Patch(
    name="durable_responses",
    defect="regenerate-responses, killed, resumes onto half a line or loses a conversation's later "
    "rows; run again it doubles every row; a dead server is a success, a silent one is waited for "
    "without end.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        _target("_run", "8869a11bb99ec3f0", "3bf0ae58f3255881"),
        _target("_worker", "a03a00b99a3ad69d"),
        _target("load_seen", "0f5605260b05fd89"),
        _target("detect_model", "978d818590f7d9ae"),
        _target("prepare_row", "00148693b5dfb4fc"),
        _target("regenerate_conversation", "a5733e687db16ce0"),
        _target("_sample_from_response", "55119b428e37bcff"),
        _target("_post_chat", "cddee61cfb8740e6"),
        _target("_log_summary", "e212bc96ca924387"),
        _target("_primary_identifier", "be88b21955057444", observed=True),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream appends conversations atomically, limits waiting, and fails when its "
    "requests do",
    proof="tests/faults/test_durable_responses.py::test_a_restart_loses_and_doubles_nothing",
    tested=("0.8.1", "0.9.0"),
)

_originals: Mapping[str, Any] = {}
# The server that answered the request that this task sent last.
_answered_by: ContextVar[str] = ContextVar("answered_by")
_FIRST_BACKOFF_S = 0.5
# A share means little over fewer conversations, where their number is not known.
_ENOUGH = 100


@dataclass
class _Run:
    """The run of this process: its settings, and how to end it."""

    endpoints: Endpoints
    error_share: float
    connect_s: float
    read_s: float
    wait_s: float
    system_prompt: str
    task: Any
    stopped: str = ""
    seen: int = 0
    answered: int = 0
    failed: int = 0
    expected: int | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def stop(self, reason: str) -> None:
        if not self.stopped:
            self.stopped = reason
            self.task.cancel()

    def too_many(self, conversations: int) -> str:
        """Why the failures are too many for so many conversations in all; "" if they are not."""
        if self.failed <= self.error_share * max(1, conversations):
            return ""
        return (
            f"{self.failed} of {conversations} conversations failed, more than "
            f"SPECULATORS_PATCHES_ERROR_SHARE={self.error_share:g}; the reasons are in the errors "
            "file beside the responses. Mend the cause and run the same command again: what was "
            "answered is kept"
        )


_current: _Run | None = None


def _this_run() -> _Run:
    assert _current is not None, "called outside of _run"
    return _current


async def run(**options: Any) -> None:
    """Upstream's, always resuming; its failures are one sentence and exit code 1.

    Raises:
        SystemExit: too many conversations failed, no server answers, or the disk is full.
    """
    global _current
    try:
        wait = setting("SPECULATORS_PATCHES_SERVER_WAIT_S", 900.0, 0.0, 1e6)
        _current = _Run(
            endpoints=Endpoints([u.strip() for u in options["endpoint"].split(",") if u], wait),
            error_share=setting("SPECULATORS_PATCHES_ERROR_SHARE", 0.02, 0.0, 1.0),
            connect_s=setting("SPECULATORS_PATCHES_CONNECT_TIMEOUT_S", 10.0, 0.001, 1e6),
            read_s=setting("SPECULATORS_PATCHES_READ_TIMEOUT_S", 900.0, 0.001, 1e6),
            wait_s=wait,
            system_prompt=os.environ.get("SPECULATORS_PATCHES_SYSTEM_PROMPT", ""),
            task=asyncio.current_task(),
            expected=options.get("limit"),
        )
        with contextlib.ExitStack() as held:
            _current.held = held
            await _originals["_run"](**options | {"resume": True})
    except (RunStopped, Busy) as stop:
        raise SystemExit(f"speculators_patches: {stop}") from stop
    except asyncio.CancelledError:
        if _current is None or not _current.stopped:
            raise
        raise SystemExit(f"speculators_patches: regeneration stopped: {_current.stopped}") from None


class _Claims(set[str]):
    """Ids that need no answer. Asking for one claims it: a prompt given twice is answered once."""

    def __contains__(self, item: object) -> bool:
        known = super().__contains__(item)
        self.add(str(item))
        return known


def load_seen(path: str) -> set[str]:
    """The conversations in the file, after its repair; from here on it is ours alone.

    Raises:
        Busy: another process writes it.
    """
    _this_run().held.enter_context(locked(Path(path)))
    found = repair(Path(path))
    if found.changed:
        import typer

        typer.echo(f"speculators_patches: repaired {path}: {found}; they are asked again")
    _this_run().seen = len(found.conversations)
    return _Claims(found.conversations)


async def detect_model(endpoint: str) -> str:
    """The model that every server names; `endpoint` may list several.

    Raises:
        RunStopped: they serve different models.
    """
    urls = _this_run().endpoints.urls
    names = {url: await _originals["detect_model"](url) for url in urls}
    if len(set(names.values())) > 1:
        each = ", ".join(f"{url}: {name}" for url, name in names.items())
        raise RunStopped(f"--endpoint lists servers of different models ({each})")
    return str(names[urls[0]])


def prepare_row(row: dict[str, Any], config: Any) -> Any:
    """Upstream's, with the system prompt where the conversation has none."""
    prepared = _originals["prepare_row"](row, config)
    prompt = _this_run().system_prompt
    if prepared is not None and prompt and prepared[1][0]["role"] != "system":
        prepared[1].insert(0, {"role": "system", "content": prompt})
    return prepared


async def worker(session: Any, queue: Any, **options: Any) -> None:
    """Upstream's, with whole appends and counted failures."""
    this = _this_run()

    def disk_failed(error: OSError) -> None:
        this.stop(
            f"an answer could not be written ({error.strerror or error}); what is in the file is "
            "whole. Make room and run the same command again"
        )

    def disk_full(error: OSError) -> None:
        import typer

        typer.echo(
            f"speculators_patches: an answer waits for room ({error.strerror or error}), up to "
            f"{this.wait_s:g} s"
        )

    options["out_fh"] = _Rows(options["out_fh"], disk_failed, this.wait_s, disk_full)
    options["err_fh"] = _Errors(options["err_fh"])
    await _originals["_worker"](session, queue, **options)


class _Rows(WholeAppends):
    def flush(self) -> None:
        super().flush()
        _this_run().answered += 1


class _Errors:
    """Upstream's errors file, which counts, and whose own failure ends no worker."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> None:
        this = _this_run()
        this.failed += 1
        known = this.seen + this.answered + this.failed
        if this.expected is not None:
            known = max(known, this.seen + this.expected)
        if this.expected is not None or known >= _ENOUGH:
            reason = this.too_many(known)
            if reason:
                this.stop(reason)
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            this.stop(f"the errors file cannot be written ({error.strerror or error})")

    def flush(self) -> None:
        """Done by `write`."""


async def regenerate_conversation(post: Any, item: Any, **options: Any) -> bool:
    """Upstream's; each row then says how many rows its conversation has."""
    truncated: bool = await _originals["regenerate_conversation"](post, item, **options)
    for sample in options["samples"]:
        sample["metadata"][ROWS] = len(options["samples"])
    return truncated


def sample_from_response(data: dict[str, Any], **options: Any) -> Any:
    """Upstream's, naming the server that answered and where in `text` the answer begins."""
    options["endpoint"] = _answered_by.get(options["endpoint"])
    result = _originals["_sample_from_response"](data, **options)
    prompt = options["detokenize"](data["prompt_token_ids"])
    result[0]["metadata"]["answer_start"] = len(prompt)
    return result


async def post_chat(
    session: Any, endpoint: str, payload: dict[str, Any], max_retries: int = 3
) -> Any:
    """One request to whichever server has the least to do, tried again where that may help.

    A refused connection costs no try: the server is up again, or there is another, or `NoServer`
    ends the run.
    """
    import aiohttp
    from speculators.data_generation.vllm_client import InvalidResponseError

    this = _this_run()
    once = _originals["_post_chat"].__wrapped__  # without upstream's retries
    limited = _Limited(session, this)
    tries = 0
    while True:
        try:
            url = await this.endpoints.acquire()
        except NoServer as error:
            this.stop(str(error))
            raise
        try:
            answer = await once(limited, url, payload)
        except InvalidResponseError:  # 4xx: the request is wrong, the server is well
            this.endpoints.answered(url)
            raise
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            this.endpoints.unreachable(url, error)
            if not _took_no_connection(error):
                tries += 1
        except Exception as error:
            if str(error).startswith(_AWAY):  # a proxy before a server that is down, or too busy
                this.endpoints.unreachable(url, error)
            else:
                tries += 1
            if tries > max_retries:
                raise
        else:
            this.endpoints.answered(url)
            _answered_by.set(url)
            return answer
        finally:
            this.endpoints.release(url)
        if tries > max_retries:
            raise TimeoutError(f"no answer within {this.read_s:g} s, tried {tries} times")
        await asyncio.sleep(_FIRST_BACKOFF_S * 2 ** min(tries, 6) if tries else 0)


# How upstream words an answer with one of these statuses.
_AWAY = tuple(f"HTTP {status} " for status in (429, 502, 503, 504))


def _took_no_connection(error: BaseException) -> bool:
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorError):
        return True
    return isinstance(error, getattr(aiohttp, "ConnectionTimeoutError", ()))


class _Limited:
    """A session whose requests have time limits."""

    def __init__(self, session: Any, this: _Run) -> None:
        import aiohttp

        self._session = session
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=this.connect_s, sock_read=this.read_s
        )

    def post(self, url: str, **options: Any) -> Any:
        return self._session.post(url, timeout=self._timeout, **options)


def log_summary(stats: dict[str, Any]) -> None:
    """Upstream's summary, then its verdict.

    Raises:
        RunStopped: more conversations failed than are tolerated.
    """
    _originals["_log_summary"](stats)
    this = _this_run()
    this.failed = stats["errors"]
    reason = this.too_many(this.seen + stats["ok"] + stats["errors"])
    if reason:
        raise RunStopped(reason)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _originals
    _originals = {path.partition(":")[2]: found for path, found in originals.items()}
    ours = {
        "_run": run,
        "_worker": worker,
        "load_seen": load_seen,
        "detect_model": detect_model,
        "prepare_row": prepare_row,
        "regenerate_conversation": regenerate_conversation,
        "_sample_from_response": sample_from_response,
        "_post_chat": post_chat,
        "_log_summary": log_summary,
    }
    return {f"{_MODULE}:{name}": replacement for name, replacement in ours.items()}
