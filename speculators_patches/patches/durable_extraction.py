"""`generate-offline-data` waits for its server, and what it stores is sound.

Upstream asks a few times and then leaves the sample out (and ends as a success) or, with
--fail-on-error, ends at once: a vLLM that is started again costs a night. It moves a file to its
final name and looks at it afterwards, so one that does not fit the sample, or holds a NaN, counts
as done the next time.

Here a request that failed is asked again once the server answers and has room, as in training
(`wait_for_producer`; the same settings). A file is checked and on the disk before it gets its name;
one that cannot be read any more is made again. A sample at fault (refused, or failed three times by
itself; `strikes` says what counts with several servers) is left out and named; more than
SPECULATORS_PATCHES_MAX_LOST_SHARE (0.02) of them, or a server that stays away, are one sentence and
exit code 1. The same command goes on.

`--endpoint` also takes several addresses, separated by commas: each request goes to the server with
the least to do, and one that failed is out until it answers (`extraction_servers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches import patience
from speculators_patches.blame import blame
from speculators_patches.registry import Patch, Target
from speculators_patches.stops import RunStopped, setting

_MODULE = "speculators.cli.generate_offline_data"
_ASK = "speculators.data_generation.vllm_client:generate_hidden_states_async"
_WORKER = f"{_MODULE}:_worker"
_EXTRACT = f"{_MODULE}:_generate_and_save_hidden_states"
_BOTH = ">=0.8.1,<0.9.1"

PATCH = Patch(
    name="durable_extraction",
    defect="generate-offline-data leaves samples out, or ends, while vLLM is gone, and takes a "
    "file that does not fit its sample for done.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.data_generation.vllm_client",
            "generate_hidden_states_async",
            fingerprints={"==0.8.1": "3ddd13e26ce2065f", "==0.9.0": "4d42be0c01e71f56"},
            aliases=(_MODULE,),
        ),
        Target(
            _MODULE,
            "_worker",
            fingerprints={"==0.8.1": "d864c6b64be8fdb2", "==0.9.0": "128554513872fb1e"},
        ),
        Target(
            _MODULE,
            "_generate_and_save_hidden_states",
            fingerprints={"==0.8.1": "5df542facc9fbbb7", "==0.9.0": "c5690e1e6df2bb78"},
        ),
        # They end when `cancel_event` is set, and the first worker's exception is raised.
        Target(_MODULE, "_feed_queue", {_BOTH: "5ca1ab90622cb361"}, observed=True),
        Target(_MODULE, "_shutdown_workers", {_BOTH: "7c6f403803ebc5b9"}, observed=True),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream's command waits for its server and checks a file before it moves it",
    proof="tests/faults/test_durable_extraction.py::test_a_server_that_is_gone_costs_no_sample",
    tested=("0.8.1", "0.9.0"),
)

logger = logging.getLogger("speculators")

_ask: Any = None
_worker: Any = None
_extract: Any = None


class SampleAtFault(Exception):
    """A request fails because of what it asks; upstream leaves the sample out."""


class _Run:
    """One call of the command, and the servers that it depends on.

    Args:
        servers: an `extraction_servers.Servers`.
    """

    def __init__(self, servers: Any) -> None:
        self.servers = servers
        self.tries = patience.tries()
        self.share = setting("SPECULATORS_PATCHES_MAX_LOST_SHARE", 0.02, 0.0, 1.0)
        self.folder: Path | None = None  # where the servers leave their files
        self.skipped: Sequence[int] = ()  # upstream's list
        self.alone = asyncio.Lock()  # one suspect at a time

    async def problem(self, server: Any, prompt: Sequence[int]) -> str | None:
        """Why the server cannot be asked now; None if it has just answered."""
        found: str | None = await asyncio.to_thread(server.producer.problem, prompt, _discard)
        return found

    async def is_enough(self, strikes: Any, prompt: Sequence[int]) -> bool:
        """See `Strikes.enough`."""
        by_url = {server.url: server.producer for server in self.servers.all}
        found: bool = await asyncio.to_thread(
            strikes.enough, lambda url: by_url[url].answers(url, prompt, _discard)
        )
        return found

    async def away(self, server: Any, recoveries: int, why: str, prompt: Sequence[int]) -> None:
        """See `Servers.away`."""
        await self.servers.away(server, recoveries, why, prompt, self.folder, _discard)


_run: _Run | None = None


async def ask(client: Any, model: str, item: Mapping[str, Any], **options: Any) -> Any:
    """Upstream's answer, for a file that is sound and on the disk.

    Raises:
        SampleAtFault: see the module's text.
        Gone: the server is gone for too long.
    """
    run = _run
    if run is None:  # not asked by the command
        return await _ask(client, model, item, **options)
    from speculators_patches.strikes import Strikes

    tokens = list(item["input_ids"])
    strikes = Strikes([server.url for server in run.servers.all], run.tries)
    while True:
        server = run.servers.free()
        recoveries = server.recoveries
        there = client.with_options(base_url=server.url)
        try:
            async with run.alone if strikes else contextlib.nullcontext():
                with server.asked():
                    answer = await _ask(there, model, item, **options | {"max_retries": 0})
                    path = Path(answer[0] if isinstance(answer, tuple) else answer)
                    run.folder = path.parent
                    limit = options.get("timeout") or 120.0
                    sample = await asyncio.to_thread(_sound, path, tokens, limit)
                server.producer.answered(sample)
                return answer
        except TimeoutError as error:  # upstream's own, around the request
            whose, why = "struck", f"no answer in time ({type(error).__name__})"
        except Exception as error:  # noqa: BLE001  (`blame` sorts them)
            whose, why = blame(error)
        if whose == "refused" and await run.problem(server, tokens[:4]) is not None:
            whose = "away"  # it refuses anything: another program may have its port
        full = server.producer.has_no_room(tokens, run.folder)
        struck = whose in ("struck", "other") and not full
        if struck:
            strikes.add(server.url)
        if whose == "refused" or (struck and await run.is_enough(strikes, tokens)):
            server.producer.not_to_blame()
            times = "" if whose == "refused" else f" {len(strikes)} times"
            raise SampleAtFault(f"its own request failed{times}: {why}")
        if whose != "other" or full:
            await run.away(server, recoveries, why, tokens)


def _sound(path: Path, tokens: list[int], limit: float) -> dict[str, Any]:
    """The sample (hidden_states [tokens, layers, hidden], token_ids [tokens]) in a file.

    Args:
        limit: seconds that the server may take to write it.

    Raises:
        Exception: it cannot be read, or does not fit; it is removed then.
    """
    from safetensors.torch import load_file
    from speculators.data_generation.offline import check_hidden_states

    from speculators_patches.patches.cached_sample_errors import wait_until_unlocked

    try:
        wait_until_unlocked(Path(f"{path}.lock"), limit)
        loaded: dict[str, Any] = load_file(path)
        check_hidden_states(loaded, tokens)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except TimeoutError as error:
        raise OSError(str(error)) from error
    except Exception:
        _discard(str(path))
        raise
    return loaded


def _discard(handle: str) -> None:
    for name in (handle, f"{handle}.lock"):
        with contextlib.suppress(OSError):
            Path(name).unlink(missing_ok=True)


async def worker(*args: Any, **kwargs: Any) -> None:
    """Upstream's; a server that is gone for good ends all of them."""
    from speculators_patches.producer import Gone

    given = inspect.signature(_worker).bind(*args, **kwargs).arguments
    if _run is not None:
        _run.skipped = given["skipped_indices"]
    try:
        await _worker(*args, **kwargs)
    except Gone as gone:
        given["cancel_event"].set()
        raise RunStopped(str(gone)) from None


async def extract(**options: Any) -> None:
    """Upstream's, begun again while its server is away.

    Raises:
        SystemExit: one sentence, where the server stays away or too many samples are at fault.
    """
    global _run
    from speculators_patches.extraction_servers import Servers
    from speculators_patches.producer import Gone
    from speculators_patches.several import addresses

    folder = Path(options["output"] or Path(options["preprocessed_data"]) / "hidden_states")
    try:
        _run = _Run(Servers(addresses(options["endpoint"]), patience.wait_s()))
        _remove_unreadable(folder)
        while True:
            server = _run.servers.free()
            try:
                await _extract(**options | {"endpoint": server.url})
                break
            except RunStopped:
                raise
            except Exception as error:
                # Samples never raise here; the name of the model could not be had.
                recoveries, (_, why) = server.recoveries, blame(error)
                if await _run.problem(server, _PROBE) is None:
                    raise
                await _run.away(server, recoveries, why, _PROBE)
        _judge(_run, folder)
    except (RunStopped, Gone) as stop:
        raise SystemExit(f"speculators_patches: extraction stopped: {stop}") from None
    finally:
        _run = None


_PROBE = [5] * 4


def _judge(run: _Run, folder: Path) -> None:
    lost = sorted(run.skipped)
    total = len(lost) + sum(1 for _ in folder.glob("hs_*.safetensors"))
    if len(lost) > run.share * total:
        some = ", ".join(map(str, lost[:5])) + (", ..." if len(lost) > 5 else "")
        raise RunStopped(
            f"{len(lost)} of {total} samples could not be had (rows {some}), more than "
            f"{run.share:.1%}; look at the warnings above, mend the cause and run the same command "
            "again, or set SPECULATORS_PATCHES_MAX_LOST_SHARE"
        )


def _remove_unreadable(folder: Path) -> None:
    """A copy to another disk that was cut off is under its final name; it is made again."""
    from safetensors import safe_open

    for path in folder.glob("hs_*.safetensors"):
        try:
            with safe_open(path, framework="pt"):
                pass
        except Exception as error:  # noqa: BLE001  (whatever it is, the file is of no use)
            logger.warning(f"{path} cannot be read ({error}); it is made again")
            path.unlink(missing_ok=True)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _ask, _worker, _extract, _run
    _run = None
    _ask, _worker, _extract = originals[_ASK], originals[_WORKER], originals[_EXTRACT]
    return {_ASK: ask, _WORKER: worker, _EXTRACT: extract}
