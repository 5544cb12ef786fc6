"""Two real gloo ranks under torchrun: while one waits for the producer, the other waits for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults.long_run import PATCHES, Training, prepare
from tests.faults.probes.scripted_producer import ScriptedProducer

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(torch.accelerator.is_available(), reason="bitwise comparison on the CPU"),
]

FLAGS = ("--epochs", "1", "--num-workers", "0", "--checkpoint-every-minutes", "0",
         "--checkpoint-every-steps", "100", "--on-missing", "generate")  # fmt: skip
# Seconds that ranks wait in a collective unless told otherwise; stands for NCCL's 10 minutes.
SHORT_S = "8"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows without hidden states."""
    folder = prepare(tmp_path_factory.mktemp("work"))
    shutil.rmtree(folder / "data" / "hidden_states")
    return folder


@pytest.fixture
def server(work: Path, tmp_path: Path) -> Iterator[ScriptedProducer]:
    (tmp_path / "states").mkdir()
    producer = ScriptedProducer(tmp_path / "states", str(work / "verifier"))
    yield producer
    producer.down()


class Run(Training):
    """A training of two ranks on the hidden states of `server`."""

    def __init__(self, work: Path, folder: Path, server: ScriptedProducer, *flags: str) -> None:
        super().__init__(
            work, folder, *FLAGS, "--vllm-endpoint", server.url, *flags, ranks=2
        )  # fmt: skip

    def end(self, **environment: str) -> int:
        patches = f"{PATCHES},wait_for_producer"
        process = self.start(patches=patches, GROUP_TIMEOUT_S=SHORT_S, **environment)
        return int(process.wait(200))

    def batches(self) -> list[int]:
        """How many each rank has begun to train on."""
        texts = [(self.folder / f"record.jsonl{rank}").read_text() for rank in (0, 1)]
        return [sum("ids" in json.loads(line) for line in text.splitlines()) for text in texts]


@pytest.fixture(scope="module")
def undisturbed(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "states").mkdir()
    producer = ScriptedProducer(folder / "states", str(work / "verifier"))
    run = Run(work, folder / "run", producer)
    assert run.end() == 0, run.said()[-3000:]
    run.prompts = list(producer.asked)  # type: ignore[attr-defined]
    producer.down()
    return run


def fails_from(run: Run, server: ScriptedProducer, looks: int | None) -> None:
    """One row in the middle of the epoch, of one rank, breaks off, and so many probes fail then."""
    row = run.prompts[6]  # type: ignore[attr-defined]
    server.plan[row] = ["drop", ""]
    server.plan[(row[0],) * len(row)] = ["500"] if looks is None else ["500"] * looks + [""]


def test_the_other_rank_waits_longer_than_its_process_group_would(
    work: Path, tmp_path: Path, server: ScriptedProducer, undisturbed: Run
) -> None:
    impatient = Run(work, tmp_path / "impatient", server)
    fails_from(undisturbed, server, looks=8)
    assert impatient.end(IMPATIENT="1") != 0, "15 s should have been too long for 8"

    run = Run(work, tmp_path / "run", server)
    fails_from(undisturbed, server, looks=8)
    assert run.end() == 0, run.said()[-3000:]
    assert "gives hidden states again" in run.said()
    assert run.steps() == undisturbed.steps()
    assert run.state() == undisturbed.state()


def test_gone_for_good_all_ranks_stop_before_the_same_step_and_go_on(
    work: Path, tmp_path: Path, server: ScriptedProducer, undisturbed: Run
) -> None:
    run = Run(work, tmp_path / "run", server, "--producer-wait-minutes", "0.05")
    fails_from(undisturbed, server, looks=None)
    assert run.end() != 0
    assert "training stopped: no hidden states from" in run.said()
    one, other = run.batches()
    assert one == other < undisturbed.batches()[0] - 1
    newest = run.checkpoints()[0]
    assert newest.step == one, "the step that lacked a sample on one rank was not taken"

    server.plan.clear()
    assert run.end() == 0, run.said()[-3000:]
    assert run.steps() == undisturbed.steps()
    assert run.validations() == undisturbed.validations()
    assert run.state() == undisturbed.state()
