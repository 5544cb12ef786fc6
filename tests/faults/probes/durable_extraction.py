"""Upstream's generate-offline-data against a producer that fails in each of several ways. JSON.

    python -m tests.faults.probes.durable_extraction FOLDER

Each scenario is one call of the command over ROWS rows, unpatched and patched: its exit code, what
it said last, which rows have a file with the right states, and which a file with others.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from speculators_patches import apply
from tests.faults import tiny
from tests.faults.probes.eight import Eight
from tests.faults.probes.scripted_producer import ScriptedProducer, states

ROWS = 10
BAD = 3  # the row whose requests are planned
_Prompts = list[tuple[int, ...]]
_Act = Callable[[ScriptedProducer, _Prompts, Path], None]


def planned(*manners: str) -> _Act:
    return lambda server, prompts, _: server.plan.update({prompts[BAD]: list(manners)})


def away(server: ScriptedProducer, prompts: _Prompts, _: Path) -> None:
    """It dies with several requests under way, and is back a second later."""
    server.stop_at(prompts[BAD], then_up_after_s=1.0)


def gone(server: ScriptedProducer, prompts: _Prompts, _: Path) -> None:
    server.stop_at(prompts[BAD])


def late(server: ScriptedProducer, _: _Prompts, __: Path) -> None:
    """Not up yet when the command starts."""
    server.down(then_up_after_s=1.0)


def torn(server: ScriptedProducer, prompts: _Prompts, out: Path) -> None:
    """What a copy from another disk that was cut off left."""
    out.mkdir()
    (out / f"hs_{BAD}.safetensors").write_bytes(b"x" * 100)


SCENARIOS: dict[str, _Act] = {
    "sound": lambda server, prompts, out: None,
    "away": away,
    "late": late,
    "errors": planned("500", "500", ""),
    "missing": planned("missing", ""),
    "torn": planned("torn", ""),
    "nan": planned("nan", ""),
    "silent": planned("silent", ""),
    "refused": planned("400"),
    "kills": planned("drop"),
    "always_nan": planned("nan"),
    "torn_before": torn,
    "gone": gone,
}
# One row of ten is more than the 2 % that are tolerated.
TOLERATED = {"refused", "kills", "always_nan"}


def command(
    server: ScriptedProducer, data: Path, out: Path, *others: ScriptedProducer, **options: Any
) -> tuple[int, str]:
    """(exit code, what it printed at its end) of one call."""
    from speculators.cli.generate_offline_data import generate_offline_data

    said = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stderr(said):
        try:
            generate_offline_data(
                endpoint=",".join(one.url for one in (server, *others)),
                preprocessed_data=str(data), output=str(out), concurrency=2,
                request_timeout=2.0, max_retries=0, **options,
            )  # fmt: skip
        except SystemExit as end:
            code = end.code
    return (code, "") if isinstance(code, int) else (1, str(code))


def look(out: Path, prompts: _Prompts) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {"right": [], "wrong": []}
    for row, prompt in enumerate(prompts):
        path = out / f"hs_{row}.safetensors"
        if path.exists():
            try:
                same = torch.equal(load_file(path)["hidden_states"], states(prompt))
            except Exception:  # noqa: BLE001
                same = False
            found["right" if same else "wrong"].append(row)
    return found


def play(folder: Path, data: Path, prompts: _Prompts) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for name, act in SCENARIOS.items():
        states_folder, out = folder / name, folder / f"{name}-out"
        states_folder.mkdir()
        server = ScriptedProducer(states_folder)
        act(server, prompts, out)
        if name == "gone":
            os.environ["SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES"] = "0.03"
        if name in TOLERATED:
            os.environ["SPECULATORS_PATCHES_MAX_LOST_SHARE"] = "0.1"
        began = time.monotonic()
        code, said = command(server, data, out)
        answer[name] = {"code": code, "said": said, "s": time.monotonic() - began}
        answer[name] |= look(out, prompts) | {"asked": server.asked.count(prompts[BAD])}
        if name in ("refused", "gone"):
            os.environ.pop("SPECULATORS_PATCHES_MAX_LOST_SHARE", None)
            os.environ.pop("SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES", None)
            server.plan.clear()
            if name == "gone":
                server.up()
            else:  # one of ten is too much
                server.plan[prompts[BAD]] = ["400"]
                code, said = command(server, data, out)
                answer["too_many"] = {"code": code, "said": said}
                server.plan.clear()
            code, said = command(server, data, out)
            answer[f"{name}_again"] = {"code": code} | look(out, prompts)
        os.environ.pop("SPECULATORS_PATCHES_MAX_LOST_SHARE", None)
        answer[name]["left"] = sorted(path.name for path in states_folder.iterdir())
    return answer


def one_away(one: ScriptedProducer, two: ScriptedProducer, prompts: _Prompts) -> None:
    """Whichever is asked for the row dies, and is back a second later."""
    for server in (one, two):
        away(server, prompts, Path())


def both(one: ScriptedProducer, two: ScriptedProducer, prompts: _Prompts) -> None:
    for server in (one, two):
        gone(server, prompts, Path())
        server.stop_at(prompts[BAD + 1])


SEVERAL: dict[str, Callable[[ScriptedProducer, ScriptedProducer, _Prompts], None]] = {
    "both_up": lambda one, two, prompts: None,
    "one_away": one_away,
    "first_down": lambda one, two, prompts: one.down(),
    "one_gone": lambda one, two, prompts: two.down(),
    "both_gone": both,
}


def play_several(folder: Path, data: Path, prompts: _Prompts) -> dict[str, Any]:
    """The same with two servers."""
    answer: dict[str, Any] = {}
    for name, act in SEVERAL.items():
        out, folders = folder / f"{name}-out", [folder / f"{name}-{number}" for number in (1, 2)]
        for states_folder in folders:  # each numbers its files from 0
            states_folder.mkdir()
        one, two = (ScriptedProducer(states_folder) for states_folder in folders)
        act(one, two, prompts)
        if name.endswith("gone"):
            os.environ["SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES"] = "0.03"
        code, said = command(one, data, out, two)
        os.environ.pop("SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES", None)
        rows = [[p for p in server.asked if p in prompts] for server in (one, two)]
        answer[name] = {"code": code, "said": said, "asked": [len(set(some)) for some in rows]}
        answer[name] |= look(out, prompts)
    return answer


EIGHT: dict[str, Callable[[Eight, tuple[int, ...]], None]] = {
    "three_die": lambda group, prompt: group.die_at(prompt, 3),
    "it_kills": lambda group, prompt: group.die_at(prompt, 8),
    "it_fails": lambda group, prompt: group.answer_500_to(prompt),
}


def play_eight(folder: Path, data: Path, prompts: _Prompts) -> dict[str, Any]:
    """The same with eight servers, of which one sample sees some die."""
    answer: dict[str, Any] = {}
    os.environ["SPECULATORS_PATCHES_MAX_LOST_SHARE"] = "0.1"
    for name, act in EIGHT.items():
        group, out = Eight(folder / name), folder / f"{name}-out"
        act(group, prompts[BAD])
        code, said = command(group.servers[0], data, out, *group.servers[1:])
        answer[name] = {"code": code, "said": said} | look(out, prompts)
        answer[name] |= {"asked": group.asked(prompts[BAD]), "died": group.died}
    del os.environ["SPECULATORS_PATCHES_MAX_LOST_SHARE"]
    return answer


def main() -> None:
    from datasets import Dataset

    tiny.quiet()
    folder = Path(sys.argv[1])
    prompts = [tuple(tiny.sample(index)["input_ids"].tolist()) for index in range(ROWS)]
    rows = [{"input_ids": p, "loss_mask": [1] * len(p), "seq_len": len(p)} for p in prompts]
    data = folder / "data"
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(data))
    found = []
    for name in ("unpatched", "patched"):
        (folder / name).mkdir()
        if name == "patched":
            apply(only=["durable_extraction"])
        found.append(play(folder / name, data, prompts))
    several = play_several(folder / "patched", data, prompts)
    found.append(several | play_eight(folder / "patched", data, prompts))
    print(json.dumps(found), flush=True)
    assert threading.current_thread() is threading.main_thread()
    os._exit(0)  # timers and server threads have nothing left to say


if __name__ == "__main__":
    main()
