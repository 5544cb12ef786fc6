"""A host of `network`: a watched producer, a watched Mooncake master, or two trainers.

python -m tests.e2e.network_host ROLE          # one line of JSON in, one out, until it ends
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from recipes.servers import ServerPool
from recipes.vllm.mooncake import Store
from recipes.vllm.mooncake_master import Master
from recipes.vllm.progress import Limits
from recipes.vllm.watch import Watch
from recipes.vllm_server import Endpoint, ServerSpec
from tests.e2e import tiny_body
from tests.e2e.ranks_training import Ranks
from tests.e2e.watched_training import Place, Producer

# Three hosts on one machine are slow, which is no fault; one that was killed is seen at once.
LIMITS = Limits(poll_s=0.25, quiet_s=20.0, stall_s=120.0, silent_s=120.0, restart_s=300.0)
_Do = dict[str, Callable[[], dict[str, Any]]]


def producer(given: dict[str, Any], stack: ExitStack) -> _Do:
    """A vLLM at `address` that puts hidden states into the store of `master`."""
    folder = Path(given["folder"])
    store = Store(given["master"], segment_gib=given["segment_gib"], unread_s=given["unread_s"])
    spec = ServerSpec(
        "extraction", given["body"], host=given["address"], dtype="bfloat16", max_model_len=256,
        extraction_layers=(*tiny_body.TARGETS, tiny_body.LAYERS), extraction_store=store,
    )  # fmt: skip
    servers = stack.enter_context(ServerPool(folder / "logs", _say))
    endpoint = stack.enter_context(servers.lease(spec, watch=Watch(LIMITS, _say)))
    name = spec.name
    one = Producer(endpoint, servers._running[name], servers._watchers[name], folder)

    def kill() -> dict[str, Any]:
        for pid in one.server.pids():
            os.kill(pid, signal.SIGKILL)
        return {}

    return {
        "address": lambda: {"url": endpoint.base_url},
        "look": lambda: {
            "rows": one.prompts() / tiny_body.ROW,
            "restarts": one.watcher.restarts if not one.watcher._doing else 0,
        },
        "kill": kill,
    }


def master(given: dict[str, Any], stack: ExitStack) -> _Do:
    """Mooncake's master at `address`."""
    found = Master(Path(given["folder"]) / "master.log", given["address"], say=_say)
    stack.enter_context(found)
    found.wait_ready()

    def kill() -> dict[str, Any]:
        for pid in found.pids():
            os.kill(pid, signal.SIGKILL)
        return {}

    return {
        "address": lambda: {"master": found.address},
        "look": lambda: {"restarts": len(found.restarts)},
        "kill": kill,
    }


def trainers(given: dict[str, Any], stack: ExitStack) -> _Do:
    """Upstream's trainer on two gloo ranks, told of the producers' `urls`; begins at once."""
    place = Place.__new__(Place)
    place.folder = Path(given["folder"])
    place.body, place.data = Path(given["body"]), Path(given["data"])
    endpoints = tuple(Endpoint(url, given["body"]) for url in given["urls"])
    run = Ranks(place, "run", endpoints, tuple(given["flags"]), Store(given["master"]))
    stack.callback(run.stop)
    run.start()
    assert run.process is not None
    process = run.process

    def look() -> dict[str, Any]:
        return {"running": process.poll() is None, "commits": run.commits()}

    def end() -> dict[str, Any]:
        return {
            "code": process.poll(), "said": run.said(), "restarts": run.restarts(),
            "drafter": run.drafter() if process.poll() == 0 else "",
        }  # fmt: skip

    def kill() -> dict[str, Any]:
        run.kill_rank(1)
        return {}

    return {"look": look, "kill": kill, "end": end}


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _lines() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    role = {"producer": producer, "master": master, "trainers": trainers}[sys.argv[1]]
    lines = _lines()
    with ExitStack() as stack:
        known = role(next(lines), stack)
        print(json.dumps({"ready": True}), flush=True)
        for line in lines:
            print(json.dumps(known[line["do"]]()), flush=True)


if __name__ == "__main__":
    main()
