"""step_checkpoints: upstream's real training, broken off in every way, ends as if left alone.

What is compared is what was trained on, the logged losses and rates of each step, and the bytes of
the last checkpoint: weights, moments, schedules, random generators.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators_patches.checkpointing import names, reading
from tests.faults.long_run import BATCHES, PATCHES, Training, Zygote, prepare, stop, wait_for
from tests.faults.test_store_disk import fill, small_disk

__all__ = ["small_disk"]

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="bitwise comparison on the CPU"
)

STEPS = 2 * BATCHES
BY_STEPS = ("--epochs", "2", "--num-workers", "0", "--checkpoint-every-minutes", "0",
            "--checkpoint-every-steps")  # fmt: skip

Run = Callable[..., Training]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def zygote(work: Path) -> Iterator[Zygote]:
    one = Zygote(work)
    yield one
    one.close()


@pytest.fixture(scope="module")
def reference(work: Path, zygote: Zygote) -> Training:
    """The run that was left alone."""
    run = Training(work, work / "reference", *BY_STEPS, "5", zygote=zygote)
    assert run.finish() == 0, run.said()[-3000:]
    assert sorted(run.steps()) == list(range(STEPS))
    return run


@pytest.fixture
def run(work: Path, zygote: Zygote, tmp_path: Path) -> Run:
    """Makes a training in this test's folder; flags as for `Training`."""

    def make(*flags: str, name: str = "run") -> Training:
        return Training(work, tmp_path / name, *flags, zygote=zygote)

    return make


def assert_same(one: Training, reference: Training) -> None:
    assert one.steps() == reference.steps()
    assert one.validations() == reference.validations()
    assert one.state() == reference.state()
    last = str(max(reference.validations()))
    assert weights(one.out / last) == weights(reference.out / last)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("after", [1, 2, BATCHES, BATCHES + 1, STEPS - 1])
def test_resumed_anywhere_it_is_the_same_run(after: int, run: Run, reference: Training) -> None:
    one = run(*BY_STEPS, "1")
    assert one.interrupt(after, signal.SIGKILL, SLOW_S="0.05") == -signal.SIGKILL
    assert one.finish() == 0, one.said()[-3000:]
    assert_same(one, reference)


@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGINT, 3), (signal.SIGTERM, BATCHES), (signal.SIGHUP, 30)]
)
def test_a_signal_saves_the_step_and_tells_by_its_exit_code(
    number: int, after: int, run: Run, reference: Training
) -> None:
    one = run(*BY_STEPS, "100")
    assert one.interrupt(after, number, SLOW_S="0.05") == 128 + number
    assert one.checkpoints()[0].tags == ("shutdown",)
    assert one.checkpoints()[0].step == after
    assert one.finish() == 0
    assert_same(one, reference)


def test_a_signal_during_validation_repeats_the_validation(run: Run, reference: Training) -> None:
    one = run(*BY_STEPS, "100")
    process = one.start(SLOW_S="0.2")
    try:
        wait_for(lambda: any("validating" in line for line in one.lines()), process)
        assert not one.validations()
        signal_group(process.pid, signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        stop(process)
    assert not one.validations()
    assert one.checkpoints()[0].step == BATCHES
    assert one.finish() == 0
    assert_same(one, reference)


def test_a_second_ctrl_c_leaves_at_once(run: Run, reference: Training) -> None:
    one = run(*BY_STEPS, "1")
    process = one.start(SLOW_S="60")
    try:
        wait_for(lambda: one.trained() >= 1, process)
        signal_group(process.pid, signal.SIGINT)
        wait_for(lambda: "Ctrl+C again" in one.said(), process)
        signal_group(process.pid, signal.SIGINT)
        started = time.monotonic()
        assert process.wait(30) == 130
        assert time.monotonic() - started < 30  # the step in hand alone takes 60
    finally:
        stop(process)
    assert not one.checkpoints()
    assert one.interrupt(4, signal.SIGKILL, SLOW_S="0.1") == -signal.SIGKILL
    before = one.checkpoints()[0].name
    process = one.start(SLOW_S="60")
    try:
        wait_for(lambda: one.trained() >= 6, process)
        signal_group(process.pid, signal.SIGINT)
        wait_for(lambda: one.said().count("Ctrl+C again") >= 2, process)
        signal_group(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        stop(process)
    assert one.checkpoints()[0].name == before
    assert one.finish() == 0
    assert_same(one, reference)


def test_an_exception_saves_the_last_whole_step(run: Run, reference: Training) -> None:
    one = run(*BY_STEPS, "100")
    assert one.finish(FAIL_AT="7") == 1
    assert "the driver gave up" in one.said()
    assert (one.checkpoints()[0].step, one.checkpoints()[0].tags) == (7, ("shutdown",))
    assert one.finish() == 0
    assert_same(one, reference)


@pytest.mark.parametrize("every", ["1", "100"], ids=["in the background", "on the way down"])
def test_a_spoilt_weight_ends_the_run_and_reaches_no_checkpoint(
    every: str, run: Run, reference: Training
) -> None:
    """A bit flips in memory, say: the loss is NaN from then on, and so would every save be."""
    one = run(*BY_STEPS, "1")
    assert one.interrupt(3, signal.SIGTERM, SLOW_S="0.05") == 143
    before = one.checkpoints()[0].step
    assert one.finish("--checkpoint-every-steps", every, POISON_AT="4") == 1
    assert "NaN or infinity in fc.weight" in one.said()
    assert one.checkpoints()[0].step in range(before, before + 5)
    assert not (one.out / "0").exists()
    assert one.finish() == 0
    assert_same(one, reference)


def test_max_steps_are_that_many_and_no_more(run: Run) -> None:
    one = run(*BY_STEPS, "100", "--max-steps", str(BATCHES + 4))
    assert one.finish() == 0
    assert one.finish() == 0
    assert sorted(one.steps()) == list(range(BATCHES + 4))
    assert one.trained() == BATCHES + 4
    state = json.loads((one.out / "1" / "training_state.json").read_text())
    assert state == {
        "epoch": 1, "local_step": 4, "global_step": BATCHES + 4, "finished": True,
    }  # fmt: skip
    broken = run(*BY_STEPS, "100", "--max-steps", str(BATCHES + 4), name="broken")
    assert broken.interrupt(BATCHES + 2, signal.SIGTERM, SLOW_S="0.05") == 143
    assert broken.finish() == 0
    assert_same(broken, one)


def test_another_run_is_refused_and_can_be_insisted_on(run: Run) -> None:
    one = run(*BY_STEPS, "1")
    assert one.interrupt(3, signal.SIGTERM, SLOW_S="0.05") == 143
    assert one.finish("--total-seq-len", "128") == 1
    said = one.said().splitlines()[-3:]
    line = next(line for line in said if "data.total_seq_len" in line)
    assert "was 64 in the checkpoint and is 128 now" in line
    assert "--resume-despite data.total_seq_len" in line
    assert one.finish("--lr", "0.5") == 1
    assert "optimizer.lr was 0.001" in one.said()
    assert one.finish("--loss-fn", "ce") == 1
    assert "training.loss_config was " in one.said()
    despite = ("--resume-despite", "optimizer.lr,optimizer.muon_lr")
    assert one.finish("--lr", "0.5", *despite) == 0, one.said()[-2000:]
    assert one.steps()[STEPS - 1]["lr"] == {
        "Muon": pytest.approx(0.5 / STEPS), "AdamW": pytest.approx(0.5 / STEPS)
    }  # fmt: skip


def test_a_torn_checkpoint_is_named_and_passed_over(run: Run, reference: Training) -> None:
    one = run(*BY_STEPS, "1")
    assert one.interrupt(9, signal.SIGTERM, SLOW_S="0.05") == 143
    newest, before = one.checkpoints()[:2]
    file = newest.path / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert one.finish() == 0
    said = " ".join(one.said().split())
    assert f"{newest.name} is passed over" in said
    assert f"resuming from {before.name}" in said
    assert_same(one, reference)


def test_an_upstream_folder_appears_whole(run: Run, reference: Training) -> None:
    """SIGKILL while an epoch's folder is written: none, or one that is complete; nothing left."""
    from safetensors import safe_open

    one = run(*BY_STEPS, "100")
    process = one.start()
    try:
        wait_for(lambda: any(one.out.glob(".step-checkpoints-new-*")), process)
        signal_group(process.pid, signal.SIGKILL)
        process.wait(30)
    finally:
        stop(process)
    assert not (one.out / "0").exists() or (one.out / "0" / "training_state.json").exists()
    assert one.finish() == 0
    assert_same(one, reference)
    assert not list(one.out.glob(".step-checkpoints-*"))
    with safe_open(one.out / "0" / "model.safetensors", "pt") as file:
        assert file.keys()


def test_a_full_disk_costs_checkpoints_but_not_the_run(
    small_disk: Path, run: Run, reference: Training
) -> None:
    one = run(*BY_STEPS, "1", "--checkpoint-keep", "1")
    one.out = small_disk
    process = one.start(SLOW_S="0.1")
    try:
        wait_for(lambda: len(one.checkpoints()) > 0, process)
        other = fill(small_disk, 4096)
        wait_for(lambda: "was not saved" in one.said(), process)
        wait_for(lambda: f"{small_disk / '0'} was not written" in one.said(), process)
        kept = [record for record in one.checkpoints() if not record.problem]
        assert kept
        assert not list(small_disk.glob(".step-checkpoints-*"))
        assert other.exists()
        other.unlink()
        assert process.wait(120) == 0, one.said()[-3000:]
    finally:
        stop(process)
    assert "training goes on" in one.said()
    assert_same(one, reference)


@pytest.mark.parametrize(
    ("failpoint", "says"),
    [
        ("tensors.chunk=eio@5", "Input/output error"),
        ("tensors.written=sleep:0.6", "is still being written"),
    ],
    ids=["failing", "slow"],
)
def test_a_bad_disk_costs_checkpoints_but_not_the_run(
    failpoint: str, says: str, run: Run, reference: Training
) -> None:
    one = run(*BY_STEPS, "1")
    assert one.finish(SPECULATORS_PATCHES_FAILPOINTS=failpoint) == 0, one.said()[-3000:]
    assert says in " ".join(one.said().split())
    assert_same(one, reference)


@pytest.mark.parametrize("flags", [(), ("--save-best",)], ids=["every epoch", "best"])
def test_a_run_whose_end_is_not_saved_has_failed(
    flags: tuple[str, ...], run: Run, reference: Training
) -> None:
    """Upstream's folders can be written, the last step checkpoint can't."""
    one = run(*BY_STEPS, "100", *flags)
    assert one.interrupt(BATCHES + 3, signal.SIGTERM, SLOW_S="0.02") == 143
    newest = one.checkpoints()[0]
    assert one.finish(SPECULATORS_PATCHES_FAILPOINTS="manifest.chunk=enospc") == 1
    assert one.checkpoints()[0].name == newest.name
    last = one.said().splitlines()[-1]
    assert f"all {STEPS} steps are trained, but their checkpoint could not be written" in last
    assert f"run the same command: it goes on from {newest.name}" in last
    assert one.finish() == 0, one.said()[-3000:]
    assert one.checkpoints()[0].tags[-1] == "final"
    assert one.state() == reference.state()


def test_a_best_that_could_not_be_written_is_no_success(run: Run, tmp_path: Path) -> None:
    """The best epoch's folder met a full disk, a later one is worse: what is there is not best."""
    from tests.compat import running

    one = run(*BY_STEPS, "100", "--epochs", "3", "--save-best")
    assert one.finish(NO_FOLDER_FOR="1", VALIDATION_LOSSES="0.9,0.5,0.7") == 1, one.said()[-3000:]
    last = one.said().splitlines()[-1]
    assert "the best validation (loss 0.500000) is not" in last
    assert (one.out / "checkpoint_best").resolve().name == "2"
    (best,) = [record for record in one.checkpoints() if "best" in record.tags]
    assert best.step == 2 * BATCHES
    exported = tmp_path / "best"
    done = running.python(
        "0.9.0", "-m", "speculators_patches", "checkpoints", "export", one.out, exported,
        "--checkpoint", "best",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights(exported)
    assert one.finish() == 0  # told once; the second time it is accepted
    assert one.said().count("the best validation (loss 0.500000) is not") == 2


def test_save_best_keeps_the_checkpoints(run: Run) -> None:
    one = run(*BY_STEPS, "5", "--save-best")
    assert one.finish() == 0, one.said()[-3000:]
    assert "best" in {tag for record in one.checkpoints() for tag in record.tags}
    best = (one.out / "checkpoint_best").resolve()
    assert best.parent == one.out
    assert (best / "model.safetensors").exists()
    assert one.finish("--no-resume-from-checkpoint", patches=PATCHES) == 0


def test_the_last_epoch_is_saved_whatever_the_frequency(run: Run) -> None:
    one = run("--epochs", "2", "--num-workers", "0", "--checkpoint-freq", "3")
    assert one.finish() == 0, one.said()[-3000:]
    assert (one.checkpoints()[0].step, one.checkpoints()[0].tags[-1]) == (STEPS, "final")
    assert weights(one.out / "1")


def test_a_run_of_plain_upstream_is_taken_over(run: Run) -> None:
    plain = run("--epochs", "1", "--num-workers", "0", "--scheduler-total-steps", str(STEPS))
    plain.zygote = None
    assert plain.finish(patches="cpu_training") == 0, plain.said()[-3000:]
    assert not plain.checkpoints()
    shutil.copytree(plain.out / "0", plain.out / "1")  # a later save, torn
    (plain.out / "1" / "optimizer_state_dict.pt").write_bytes(b"PK\x03\x04 torn")
    # As killed after the weights of a second save over the same folder.
    state = (plain.out / "0" / "training_state.json").stat().st_mtime_ns
    os.utime(plain.out / "0" / "model.safetensors", ns=(state + 1, state + 1))
    one = run("--num-workers", "0", "--scheduler-total-steps", str(STEPS), "--epochs", "2")
    assert one.finish() == 0
    said = " ".join(one.said().split())
    assert "is not complete" in said
    assert "not exactly the run that was begun" in said
    assert "model.safetensors is newer than the training_state.json beside it" in said
    assert sorted(one.steps()) == list(range(STEPS))
    assert one.checkpoints()[0].step == STEPS


@pytest.mark.parametrize("flags", [("--optimizer", "adamw", "--scheduler-type", "cosine")])
def test_other_optimizers_and_schedules(flags: tuple[str, ...], run: Run) -> None:
    alone = run(*BY_STEPS, "100", *flags, name="alone")
    assert alone.finish() == 0
    one = run(*BY_STEPS, "100", *flags)
    assert one.interrupt(11, signal.SIGTERM, SLOW_S="0.05") == 143
    assert one.finish() == 0
    assert_same(one, alone)


def export(one: Training, output: Path, *, store: Path | None = None) -> tuple[int, str]:
    """Exit code and what it said."""
    from tests.compat import running

    done = running.python(
        "0.9.0", "-m", "speculators_patches", "checkpoints", "export", store or one.out, output
    )
    return done.returncode, done.stderr


def test_an_exported_checkpoint_is_the_drafter(run: Run, tmp_path: Path) -> None:
    one = run(*BY_STEPS, "100", "--no-norm-before-residual")
    assert one.finish() == 0, one.said()[-3000:]
    # Refused, but upstream has rewritten run.yaml by then: nothing may be taken from it.
    assert run(*BY_STEPS, "100").finish() == 1
    assert "model.architecture was" in one.said()
    assert "norm_before_residual" not in (one.out / "run.yaml").read_text()
    code, said = export(one, tmp_path / "exported")
    assert code == 0, said[-3000:]
    assert weights(tmp_path / "exported") == weights(one.out / "1")
    configs = [json.loads((p / "config.json").read_text())
               for p in (tmp_path / "exported", one.out / "1")]  # fmt: skip
    assert configs[0] == configs[1]
    assert configs[0]["norm_before_residual"] is False
    shutil.copytree(one.out / names.STORE, tmp_path / "moved" / names.STORE)  # without run.yaml
    code, said = export(one, tmp_path / "from_moved", store=tmp_path / "moved")
    assert code == 0, said[-3000:]
    assert weights(tmp_path / "from_moved") == weights(one.out / "1")


def test_an_export_with_another_verifier_is_refused(run: Run, work: Path, tmp_path: Path) -> None:
    own = tmp_path / "verifier"
    shutil.copytree(work / "verifier", own)
    one = run(*BY_STEPS, "100", "--verifier-name-or-path", str(own), "--epochs", "1")
    assert one.finish() == 0, one.said()[-3000:]
    file = own / "model.safetensors"
    whole = file.read_bytes()
    config = (own / "config.json").read_text()

    other = json.loads(config) | {"rms_norm_eps": 0.5}
    for change, says in (
        (lambda: file.write_bytes(swapped(whole)), "is not the one that ckpt-"),
        (lambda: (own / "config.json").write_text(json.dumps(other)), "model.architecture was"),
        (lambda: shutil.rmtree(own), "can't be built again"),
    ):
        file.write_bytes(whole)
        change()
        code, said = export(one, tmp_path / "exported")
        assert code == 1
        assert says in said.splitlines()[-1]
        assert not (tmp_path / "exported").exists()


def swapped(data: bytes) -> bytes:
    """A safetensors file with the data of its tensors turned round."""
    start = 8 + int.from_bytes(data[:8], "little")
    return data[:start] + data[start:][::-1]


def test_workers_outlive_a_signal_to_the_whole_group(run: Run, reference: Training) -> None:
    workers = ("--num-workers", "2", "--prefetch-factor", "2")
    one = run(*BY_STEPS, "100", *workers)
    assert one.interrupt(5, signal.SIGTERM, SLOW_S="0.3") == 143, one.said()[-3000:]
    assert one.checkpoints()[0].tags == ("shutdown",)
    assert one.interrupt(BATCHES, signal.SIGINT, SLOW_S="0.1") == 130, one.said()[-3000:]
    assert one.finish() == 0
    assert_same(one, reference)


def test_killed_at_random(run: Run, reference: Training) -> None:
    kill_at_random(run(*BY_STEPS, "1"), reference, kills=5, seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_for_long(seed: int, run: Run, reference: Training) -> None:
    kill_at_random(run(*BY_STEPS, "1"), reference, kills=10, seed=seed)


def kill_at_random(one: Training, reference: Training, *, kills: int, seed: int) -> None:
    """SIGKILL that many times, at moments spread over a process's life; then it must finish.

    A run that comes to its end before the last kill is compared, and another one begun.
    """
    chance = random.Random(seed)
    done = 0
    while done < kills:
        process = one.start()
        try:
            # Upstream's start-up (a second) as well, but mostly what comes after.
            process_ended_within(process, chance.choice([0.3, 2.0, 2.0]) * chance.random() + 0.9)
            signal_group(process.pid, signal.SIGKILL)
            code = process.wait(60)
        except ProcessLookupError:
            code = process.wait(60)
        finally:
            stop(process)
        assert code in (0, -signal.SIGKILL), one.said()[-3000:]
        done += code != 0
        if code == 0:
            assert_same(one, reference)
            shutil.rmtree(one.out)
            one.record.unlink()
    assert one.finish() == 0, one.said()[-3000:]
    assert_same(one, reference)


@pytest.mark.parametrize(
    ("workers", "signals", "seed"),
    [(0, 4, 1), (2, 1, 4), *((0, 20, seed) for seed in (2, 3)), (2, 8, 5)],
)
def test_signalled_at_random(
    workers: int, signals: int, seed: int, run: Run, reference: Training
) -> None:
    """While it trains, saves or validates; saves are slow enough to be under way all the time."""
    flags = ("--num-workers", str(workers), "--prefetch-factor", "2") if workers else ()
    one = run(*BY_STEPS, "1", *flags)
    chance = random.Random(seed)
    met = {"training": 0, "validating": 0, "saving": 0}
    while sum((met["training"], met["validating"])) < signals:
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        begun, seen = one.trained() + chance.randrange(1, 13), validated_batches(one)
        if chance.random() < 0.5:
            begun = STEPS * 99  # not before it validates
        process = one.start(SLOW_S="0.1", SPECULATORS_PATCHES_FAILPOINTS="tree.chunk=sleep:0.06")
        try:
            wait_for(partial(has_come_to, one, begun, seen, process))
            time.sleep(chance.random() * 0.2)
            moment = "validating" if "validating" in one.lines()[-1] else "training"
            saving = any((one.out / names.STORE).glob(".staging-*"))
            with contextlib.suppress(ProcessLookupError):
                signal_group(process.pid, number)
            code = process.wait(60)
        finally:
            stop(process)
        newest = one.checkpoints()[0]
        reading.verify(newest)
        if "final" in newest.tags:  # it came just before, at or after the end
            assert code in (128 + number, -number, 0), one.said()[-3000:]
            assert_same(one, reference)
            shutil.rmtree(one.out)
            one.record.unlink()
        else:
            assert code == 128 + number, one.said()[-3000:]
            assert newest.step == len(one.steps())
            met[moment] += 1
            met["saving"] += saving
    assert one.finish() == 0, one.said()[-3000:]
    assert_same(one, reference)
    if signals > 4:
        assert all(met.values()), met


def has_come_to(one: Training, begun: int, validated: int, process: Any) -> bool:
    """So many batches are begun; or, if those are too many, one more is validated; or the end."""
    by_batches = begun < STEPS * 99
    came = one.trained() >= begun if by_batches else validated_batches(one) > validated
    return came or process.poll() is not None


def validated_batches(one: Training) -> int:
    return sum("validating" in line for line in one.lines())


def process_ended_within(process: Any, seconds: float) -> None:
    """Sleeps so long, less if the process ends."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)


def signal_group(pid: int, number: int) -> None:
    os.killpg(pid, number)


@pytest.mark.parametrize("version", ["0.7.0.2", "0.8.1"])
def test_on_older_versions(
    version: str, work: Path, tmp_path: Path, laid_out: Callable[[str], Path]
) -> None:
    """0.7 has fewer patches. Both add noise to hidden states, which must not depend on who draws
    it: interrupted with two workers it is the same run as one left alone without any."""
    laid_out(version)
    patches = PATCHES if version == "0.8.1" else "cpu_training,save_best_scope,step_checkpoints"
    zygote = Zygote(tmp_path, version, patches)
    try:
        alone = Training(work, tmp_path / "alone", *BY_STEPS, "100", zygote=zygote)
        assert alone.finish() == 0, alone.said()[-3000:]
        assert sorted(alone.steps()) == list(range(STEPS))
        quiet = Training(work, tmp_path / "quiet", *BY_STEPS, "100", zygote=zygote)
        assert quiet.finish("--noise-std", "0") == 0
        assert quiet.steps()[0]["train"] != alone.steps()[0]["train"]  # there is noise
        one = Training(work, tmp_path / "run", *BY_STEPS, "1", zygote=zygote)
        workers = ("--num-workers", "2", "--prefetch-factor", "2")
        assert one.interrupt(7, signal.SIGKILL, *workers, SLOW_S="0.05") == -signal.SIGKILL
        assert one.interrupt(BATCHES, signal.SIGTERM, SLOW_S="0.05") == 143
        assert one.finish(*workers) == 0, one.said()[-3000:]
        assert_same(one, alone)
    finally:
        zygote.close()
