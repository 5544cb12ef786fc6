"""What upstream's data set makes of two producers, of which one fails in chosen ways. Prints JSON.

    python -m tests.faults.probes.several_producers FOLDER PATCH [...]

Unpatched first, then with the patches. For each scenario: what came of its samples, and how many
requests for samples each of the two got. "eight": the same of one sample and eight producers, with
how many of them died.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speculators_patches import apply
from tests.faults import tiny
from tests.faults.probes.eight import Eight
from tests.faults.probes.producer import show
from tests.faults.probes.scripted_producer import ScriptedProducer

ROWS, EACH = 40, 4

_Prompt = tuple[int, ...]
_Act = Callable[[list[ScriptedProducer], list[_Prompt]], None]


def nothing(servers: list[ScriptedProducer], prompts: list[_Prompt]) -> None:
    pass


def one_is_dead(servers: list[ScriptedProducer], prompts: list[_Prompt]) -> None:
    servers[0].down()


def it_is_back(servers: list[ScriptedProducer], prompts: list[_Prompt]) -> None:
    """Its share comes back with it: waited for, as nobody else is told."""
    servers[0].up()
    asked = len(servers[0].asked)
    while len(servers[0].asked) == asked:  # the look of the thread
        time.sleep(0.01)
    time.sleep(0.2)


def one_breaks_off(servers: list[ScriptedProducer], prompts: list[_Prompt]) -> None:
    for server in servers:  # whichever is asked first
        server.plan[prompts[0]] = ["drop", ""]


def another_program_has_its_port(servers: list[ScriptedProducer], prompts: list[_Prompt]) -> None:
    servers[1].imposter = True


def a_bad_sample(servers: list[ScriptedProducer], prompts: list[_Prompt]) -> None:
    servers[1].imposter = False
    for server in servers:
        server.plan[prompts[0]] = ["400"]


def all_are_down(servers: list[ScriptedProducer], prompts: list[_Prompt]) -> None:
    for server in servers:
        server.down()
    threading.Timer(1.5, servers[1].up).start()


SCENARIOS: dict[str, _Act] = {
    "shared": nothing,
    "one is dead": one_is_dead,
    "it is back": it_is_back,
    "one breaks off": one_breaks_off,
    "another program has its port": another_program_has_its_port,
    "a bad sample": a_bad_sample,
    "all are down": all_are_down,
}


def gone_for_good(dataset: Any, servers: list[ScriptedProducer]) -> dict[str, Any]:
    from speculators.train.data import CollateFn
    from speculators.train.recovery import BatchRecoveryCoordinator

    servers[1].down()
    dataset._producer.wait_s = 1.0
    batch = CollateFn(tiny.TOKENS, tiny.HIDDEN)([dataset[ROWS - 1], dataset[ROWS - 2]])
    try:
        BatchRecoveryCoordinator("training").consume(batch)
    except RuntimeError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {}


def play(folder: Path) -> tuple[dict[str, Any], Any, list[ScriptedProducer]]:
    from datasets import Dataset
    from speculators.train.data import ArrowDataset

    prompts = [tuple(tiny.sample(index)["input_ids"].tolist()) for index in range(ROWS)]
    rows = [{"input_ids": p, "loss_mask": [1] * len(p), "seq_len": len(p)} for p in prompts]
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
    servers = [ScriptedProducer(folder) for _ in range(2)]
    dataset = ArrowDataset(
        tiny.TOKENS, folder / "data", vllm_endpoint=",".join(server.url for server in servers),
        request_timeout=20, max_retries=0, generation_validation_retries=0,
    )  # fmt: skip
    answer: dict[str, Any] = {}
    for number, (name, act) in enumerate(SCENARIOS.items()):
        indices = range(number * EACH, (number + 1) * EACH)
        act(servers, [prompts[index] for index in indices])
        before = [len(server.asked) for server in servers]
        found = [show(dataset, index, prompts[index]) for index in indices]
        asked = [
            sum(prompts.index(p) in indices for p in server.asked[since:] if p in prompts)
            for server, since in zip(servers, before, strict=True)
        ]
        answer[name] = {"samples": found, "asked": asked}
    answer["left"] = sorted(path.name for path in folder.glob("cmpl-*"))
    return answer, dataset, servers


EIGHT: dict[str, Callable[[Eight, _Prompt], None]] = {
    "three die": lambda group, prompt: group.die_at(prompt, 3),
    "it kills": lambda group, prompt: group.die_at(prompt, 8),
    "it fails": lambda group, prompt: group.answer_500_to(prompt),
}


def play_eight(folder: Path) -> dict[str, Any]:
    from speculators.train.data import ArrowDataset

    prompt = tuple(tiny.sample(0)["input_ids"].tolist())
    answer: dict[str, Any] = {}
    for name, act in EIGHT.items():
        group = Eight(folder / name)
        dataset = ArrowDataset(
            tiny.TOKENS, folder / "data", vllm_endpoint=group.urls, request_timeout=20,
            max_retries=0, generation_validation_retries=0,
        )  # fmt: skip
        act(group, prompt)
        found = show(dataset, 0, prompt)
        answer[name] = {"found": found, "asked": group.asked(prompt), "died": group.died}
    return answer


def unpatched(folder: Path) -> dict[str, Any]:
    """Upstream's data set told of two: what came of its sample, and where it asked for it."""
    from datasets import Dataset
    from speculators.train.data import ArrowDataset

    prompt = tiny.sample(0)["input_ids"].tolist()
    rows = [{"input_ids": prompt, "loss_mask": [1] * len(prompt), "seq_len": len(prompt)}]
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
    servers = [ScriptedProducer(folder) for _ in range(2)]
    urls = ",".join(server.url for server in servers)
    dataset = ArrowDataset(
        tiny.TOKENS, folder / "data", vllm_endpoint=urls, max_retries=0,
        generation_validation_retries=0,
    )  # fmt: skip
    found = show(dataset, 0, tuple(prompt))
    code = ArrowDataset._setup_client.__code__.co_filename
    return {"found": found, "urls": urls, "paths": [one.paths for one in servers], "code": code}


def main() -> None:
    tiny.quiet()
    folders = [Path(sys.argv[1]) / name for name in ("unpatched", "patched")]
    for folder in folders:
        folder.mkdir()
    before = unpatched(folders[0])
    apply(only=sys.argv[2:])
    patched, dataset, servers = play(folders[1])
    patched["eight"] = play_eight(folders[1])
    patched["gone"] = gone_for_good(dataset, servers)
    print(json.dumps([before, patched]), flush=True)
    os._exit(0)  # timers and server threads have nothing left to say


if __name__ == "__main__":
    main()
