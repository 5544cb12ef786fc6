"""What upstream's data set makes of a producer that fails in each of several ways. Prints JSON.

    python -m tests.faults.probes.producer FOLDER PATCH [...]

Unpatched first, then with the patches. For each scenario: "sample" (bitwise right), "wrong",
"unavailable ...", and how often the sample itself was asked for. Upstream's own retries are
switched off: they only add minutes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from speculators_patches import apply
from tests.faults import tiny
from tests.faults.probes.scripted_producer import ScriptedProducer, states

ROWS = 14
_Act = Callable[[ScriptedProducer, tuple[int, ...]], None]


def planned(*manners: str) -> _Act:
    return lambda server, prompt: server.plan.update({prompt: list(manners)})


def down(server: ScriptedProducer, _: tuple[int, ...]) -> None:
    server.down(then_up_after_s=1.0)


def imposter(server: ScriptedProducer, prompt: tuple[int, ...]) -> None:
    """Our server dies and another program has its port for a while."""
    server.plan[prompt] = ["drop", ""]
    server.imposter = True
    threading.Timer(1.0, setattr, (server, "imposter", False)).start()


def plain(server: ScriptedProducer, _: tuple[int, ...]) -> None:
    """Another vLLM has its port for a while."""
    server.plain = True
    threading.Timer(1.0, setattr, (server, "plain", False)).start()


SCENARIOS: dict[str, _Act] = {
    "sound": lambda server, prompt: None,
    "down": down,
    "dropped": planned("drop", "drop", ""),
    "errors": planned("500", "500", ""),
    "missing": planned("missing", ""),
    "torn": planned("torn", ""),
    "hangs": planned("silent", ""),
    "slow": planned("slow"),
    "imposter": imposter,
    "plain": plain,
    "refused": planned("400"),
    "kills": planned("drop"),
    "fails": planned("500"),
    "after": lambda server, prompt: None,
}


def show(dataset: Any, index: int, prompt: tuple[int, ...]) -> str:
    from speculators.train.recovery import SampleUnavailable

    found = dataset[index]
    if isinstance(found, SampleUnavailable):
        return f"unavailable {found.counts_as_failure} {found.fatal} {found.reason}"
    same = torch.equal(found["hidden_states"], states(prompt)[:, :-1].flatten(1))
    return "sample" if same else "wrong"


def gone_for_good(dataset: Any, server: ScriptedProducer) -> dict[str, Any]:
    """The server is down and stays so; what the trainer's coordinator then raises."""
    from speculators.train.data import CollateFn
    from speculators.train.recovery import BatchRecoveryCoordinator

    server.down()
    dataset._producer.wait_s = 1.0
    rows = [dataset[ROWS - 1], dataset[0]]
    batch = CollateFn(tiny.TOKENS, tiny.HIDDEN)(rows)
    try:
        BatchRecoveryCoordinator("training").consume(batch)
    except RuntimeError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {}


def wrong_model(folder: Path, server: ScriptedProducer) -> str:
    """What a training is told whose endpoint extracts another model's hidden states."""
    from speculators.train.data import ArrowDataset

    dataset = ArrowDataset(
        tiny.TOKENS, folder / "data", vllm_endpoint=server.url, model="another", max_retries=0
    )
    return show(dataset, 0, ())


def play(folder: Path) -> tuple[dict[str, Any], Any, ScriptedProducer]:
    """Every scenario once: name -> [what came of it, how often the sample was asked for]."""
    from datasets import Dataset
    from speculators.train.data import ArrowDataset

    prompts = [tuple(tiny.sample(index)["input_ids"].tolist()) for index in range(ROWS)]
    rows = [{"input_ids": p, "loss_mask": [1] * len(p), "seq_len": len(p)} for p in prompts]
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
    server = ScriptedProducer(folder)
    dataset = ArrowDataset(
        tiny.TOKENS, folder / "data", vllm_endpoint=server.url, request_timeout=3,
        max_retries=0, generation_validation_retries=0,
    )  # fmt: skip
    answer: dict[str, Any] = {}
    for index, (name, act) in enumerate(SCENARIOS.items()):
        act(server, prompts[index])
        found = show(dataset, index, prompts[index])
        answer[name] = [found, server.asked.count(prompts[index])]
    answer["left"] = sorted(path.name for path in folder.glob("cmpl-*"))
    return answer, dataset, server


def main() -> None:
    tiny.quiet()
    from hs_connectors import transfer

    transfer.wait_for_lock.__defaults__ = (0.5, 0.1)  # of 10 s, so that a test is as quick
    folders = [Path(sys.argv[1]) / name for name in ("unpatched", "patched")]
    for folder in folders:
        folder.mkdir()
    unpatched, _, _ = play(folders[0])
    apply(only=sys.argv[2:])
    patched, dataset, server = play(folders[1])
    patched["wrong_model"] = wrong_model(folders[1], server)
    patched["gone"] = gone_for_good(dataset, server)
    print(json.dumps([unpatched, patched]), flush=True)
    os._exit(0)  # timers and server threads have nothing left to say


if __name__ == "__main__":
    main()
