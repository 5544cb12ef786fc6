"""The store against a model: any sequence of saves, kills, corruptions, prunes and foreign files.

Kills are real: a forked child runs the store's own code and SIGKILLs itself at a failpoint.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from speculators_patches.checkpointing import failpoints, names, policy, reading
from speculators_patches.checkpointing.errors import CheckpointError, StoreBusyError
from speculators_patches.checkpointing.store import Stage, Store

FILES = ("rank-00000.safetensors", "rank-00000.json")
PUBLISH_POINTS = [p for p in failpoints.POINTS if not p.startswith(("prune.", "sweep.", "report."))]
# From the rename on the new checkpoint is there, pointer or no pointer.
AFTER_RENAME = {p for p in PUBLISH_POINTS if p.startswith(("commit.", "pointer."))}


def save(store: Store, step: int, payload: bytes, tags: tuple[str, ...] = ("steps",)) -> str:
    stage = Stage(store.root, store.next_stage_name(step))
    stage.create()
    stage.add(FILES[0], [payload, payload[::-1]], "tensors")
    stage.add(FILES[1], [b"{}" + payload], "tree")
    record = store.commit(stage, tags=tags, world_size=1, meta={"step": step})
    store.point_at(record)
    return record.name


def content(record: reading.Record) -> bytes:
    return b"".join((record.path / name).read_bytes() for name in FILES)


def expected(payload: bytes) -> bytes:
    return payload + payload[::-1] + b"{}" + payload


def in_killed_child(specification: str, action: object) -> None:
    """Run `action()` in a fork that must die of the failpoint's SIGKILL."""
    pid = os.fork()
    if pid == 0:
        try:
            failpoints.configure(specification)
            action()  # type: ignore[operator]
        finally:
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"{specification}: exit {os.waitstatus_to_exitcode(status)}"
    assert os.WTERMSIG(status) == signal.SIGKILL


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        shm = Path("/dev/shm")
        self.base = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
        self.root = self.base / names.STORE
        self.step = 0
        self.good: dict[str, bytes] = {}  # name -> payload; insertion order is commit order
        self.damaged: set[str] = set()
        self.foreign: dict[Path, bytes] = {}

    def teardown(self) -> None:
        if hasattr(self, "base"):
            shutil.rmtree(self.base)

    @rule(payload=st.binary(min_size=1, max_size=64), best=st.booleans())
    def save(self, payload: bytes, best: bool) -> None:
        self.step += 1
        with Store(self.root) as store:
            name = save(store, self.step, payload, ("best",) if best else ("steps",))
        self.good[name] = payload
        assert reading.pointed_at(self.root) == name

    @rule(
        payload=st.binary(min_size=1, max_size=64),
        point=st.sampled_from(PUBLISH_POINTS),
        nth=st.integers(1, 2),
    )
    def kill_while_saving(self, payload: bytes, point: str, nth: int) -> None:
        nth = nth if point.endswith(".chunk") else 1
        self.step += 1
        before = {r.name for r in reading.records(self.root)}

        def action() -> None:
            save(Store(self.root), self.step, payload)

        in_killed_child(f"{point}=kill@{nth}", action)
        new = {r.name for r in reading.records(self.root)} - before
        assert len(new) == (1 if point in AFTER_RENAME else 0)
        self.good.update(dict.fromkeys(new, payload))

    @precondition(lambda self: self.good)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.good)))
        files = sorted(
            p for p in (self.root / name).iterdir() if p not in self.foreign and p.is_file()
        )
        path = data.draw(st.sampled_from(files))
        bytes_ = bytearray(path.read_bytes())
        how = data.draw(st.sampled_from(["flip", "truncate", "append", "remove"]))
        if how == "flip":
            bytes_[data.draw(st.integers(0, len(bytes_) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "truncate":
            del bytes_[data.draw(st.integers(0, len(bytes_) - 1)) :]
        else:
            bytes_ += b"x"
        if how == "remove":
            path.unlink()
        else:
            path.write_bytes(bytes_)
        del self.good[name]
        self.damaged.add(name)

    @rule(data=st.data())
    def put_foreign(self, data: st.DataObject) -> None:
        places = ["", ".staging-mine", "ckpt-000001-step-1", "checkpoint_best", *self.good]
        place = self.root / data.draw(st.sampled_from(places))
        place.mkdir(parents=True, exist_ok=True)
        path = place / data.draw(st.sampled_from(["notes.txt", "model.safetensors", ".LATEST.tmp"]))
        path.write_bytes(b"mine")
        self.foreign[path] = b"mine"

    def _prune(self, keep: int) -> None:
        with Store(self.root) as store:
            store.newest()
            store.sweep()
            store.prune(policy.doomed(store.records(), policy.Keep(last=keep)))

    def _after_prune(self) -> None:
        left = {r.name for r in reading.records(self.root)}
        # The newest whole one always stays; so does all that holds a foreign file.
        if self.good:
            assert list(self.good)[-1] in left
        touched = {path.parent.name for path in self.foreign}
        assert touched & set(self.good) <= left
        self.good = {name: payload for name, payload in self.good.items() if name in left}

    @rule(keep=st.integers(1, 3))
    def prune(self, keep: int) -> None:
        self._prune(keep)
        self._after_prune()
        assert not [p for p in self.root.iterdir() if (n := names.parse(p.name)) and n.hidden]
        untouched = [n for n in self.good if not any(p.parent.name == n for p in self.foreign)]
        best = [n for n in untouched if "best" in reading.inspect(self.root / n).tags]  # type: ignore[union-attr]
        assert len(set(untouched) - set(best)) <= keep

    @rule(keep=st.integers(1, 2), point=st.sampled_from(["renamed", "unlinked", "done"]))
    def kill_while_pruning(self, keep: int, point: str) -> None:
        with Store(self.root) as store:
            store.newest()
            doomed = policy.doomed(store.records(), policy.Keep(last=keep))
            removable = [n for n in doomed if not (reading.inspect(self.root / n) or 0).foreign]  # type: ignore[union-attr]
            whole = any(n in self.good for n in {r.name for r in store.records()} - set(doomed))
        if removable and whole:
            in_killed_child(f"prune.{point}=kill", lambda: self._prune(keep))
            self._after_prune()

    @invariant()
    def the_newest_whole_one_is_found(self) -> None:
        if not hasattr(self, "root"):
            return
        record, passed = reading.newest(self.root)
        if self.good:
            name = list(self.good)[-1]
            assert record is not None
            assert record.name == name
            assert content(record) == expected(self.good[name])
            assert all(one.reason for one in passed)
        else:
            assert record is None

    @invariant()
    def nothing_foreign_and_nothing_damaged_is_ever_removed(self) -> None:
        for path, data in getattr(self, "foreign", {}).items():
            assert path.read_bytes() == data

    @invariant()
    def every_good_one_verifies(self) -> None:
        for name, payload in getattr(self, "good", {}).items():
            record = reading.inspect(self.root / name)
            assert record is not None
            reading.verify(record)
            assert content(record) == expected(payload)


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.nightly
class TestStoreAgainstModelLong(StoreMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=2000, stateful_step_count=40, deadline=None)


def test_second_process_is_refused_and_named(tmp_path: Path) -> None:
    with Store(tmp_path):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                Store(tmp_path)
            except StoreBusyError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        assert f"pid {os.getpid()} on" in os.read(read, 4096).decode()
        with pytest.raises(StoreBusyError, match="by this process"):
            Store(tmp_path)
    Store(tmp_path).close()


def test_lock_is_free_after_a_kill(tmp_path: Path) -> None:
    in_killed_child("stage.created=kill", lambda: save(Store(tmp_path), 1, b"x"))
    with Store(tmp_path) as store:
        removed, kept = store.sweep()
        assert len(removed) == 1
        assert not kept


def test_sweep_leaves_a_staging_folder_that_holds_something_foreign(tmp_path: Path) -> None:
    in_killed_child("tree.chunk=kill", lambda: save(Store(tmp_path), 1, b"x"))
    (staging,) = tmp_path.glob(".staging-*")
    (staging / "thesis.tex").write_text("only copy")
    with Store(tmp_path) as store:
        removed, kept = store.sweep()
    assert not removed
    assert "'thesis.tex' in it is not ours" in kept[0]
    assert (staging / "thesis.tex").read_text() == "only copy"


def test_prune_leaves_a_checkpoint_that_holds_something_foreign(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        old = save(store, 1, b"a")
        save(store, 2, b"b")
        (tmp_path / old / "notes.txt").write_text("the good one")
        removed, refused = store.prune([old])
    assert not removed
    assert refused == [f"{old} is kept: 'notes.txt' in it is not ours"]
    assert (tmp_path / old / "notes.txt").read_text() == "the good one"
    assert reading.inspect(tmp_path / old).problem == ""  # type: ignore[union-attr]


def test_same_step_saved_again_after_a_fall_back_is_the_newest(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        save(store, 10, b"first")
        damaged = save(store, 20, b"second")
    (tmp_path / damaged / FILES[0]).write_bytes(b"torn")
    with Store(tmp_path) as store:
        record, passed = store.newest()
        assert record is not None
        assert record.step == 10
        assert passed[0].name == damaged
        assert "rank-00000.safetensors has 4 bytes, 12 were written" in passed[0].reason
        again = save(store, 20, b"third")
        assert store.newest()[0].name == again  # type: ignore[union-attr]
    assert (tmp_path / damaged).is_dir()


def test_a_run_begun_anew_is_newer_than_the_later_steps_of_the_old_one(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        old = save(store, 100, b"old")
        new = save(store, 5, b"new")
        assert [record.step for record in store.records()] == [5, 100]
        assert store.newest()[0].name == new  # type: ignore[union-attr]
        assert policy.doomed(store.records(), policy.Keep(last=1)) == [old]


def test_a_vanished_commit_that_latest_names_is_reported(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        save(store, 1, b"a")
        gone = save(store, 2, b"b")
    shutil.rmtree(tmp_path / gone)
    record, passed = reading.newest(tmp_path)
    assert record is not None
    assert record.step == 1
    assert passed == [reading.PassedOver(gone, "LATEST names it, but it is gone")]
    with Store(tmp_path) as store:
        assert save(store, 3, b"c") > gone  # its sequence number is not given out twice


def test_prune_removes_nothing_when_what_would_stay_is_altered(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        old = save(store, 1, b"a")
        new = save(store, 2, b"b")
    path = tmp_path / new / FILES[1]
    path.write_bytes(path.read_bytes().replace(b"b", b"c"))  # same size: only its hash tells
    with Store(tmp_path) as store:
        removed, refused = store.prune([old])
    assert not removed
    assert "nothing is whole" in refused[0]
    assert (tmp_path / old).is_dir()


def test_a_foreign_folder_under_the_committed_name_is_not_overwritten(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        stage = Stage(tmp_path, store.next_stage_name(1))
        stage.create()
        (tmp_path / stage.name).mkdir()
        with pytest.raises(CheckpointError, match="already exists"):
            store.commit(stage, tags=(), world_size=1, meta={})


def test_every_publish_point_is_passed_in_order(tmp_path: Path, monkeypatch: object) -> None:
    """A failpoint that no save reaches would make the kill tests pass for nothing."""
    for point in PUBLISH_POINTS:
        in_killed_child(f"{point}=kill", lambda: save(Store(tmp_path), 1, b"xy"))


def test_unknown_failpoint_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'nowhere=kill' is not POINT=ACTION"):
        failpoints.configure("nowhere=kill")
