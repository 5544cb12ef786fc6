"""Power loss at every instant: what a file system may leave after a crash still resumes.

The store's own calls are recorded (mkdir, write, fsync of a file, fsync of a folder, rename,
unlink) while they run for real. Then, for every prefix of that record, disks are built as a crash
may leave them: what was fsynced is there; of what was not, any part may be there. POSIX allows each
of those; a journalling file system allows fewer. From every one of them the previous checkpoint or
the new one must be found, whole, and nothing that is foreign may be missing.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from speculators_patches.checkpointing import policy, reading
from speculators_patches.checkpointing.store import Stage, Store
from tests.unit.test_checkpoint_store import content, expected, save


@dataclass
class Inode:
    """A file's bytes: `now` in the page cache, `safe` on the disk."""

    now: bytes = b""
    safe: bytes = b""


@dataclass
class Folder:
    """Names: `now` in memory; `safe` on the disk; `pending` changes since, in order."""

    now: dict[str, Inode | Folder] = field(default_factory=dict)
    safe: dict[str, Inode | Folder] = field(default_factory=dict)
    pending: list[tuple[str, str, Inode | Folder | None]] = field(default_factory=list)

    def put(self, name: str, node: Inode | Folder) -> None:
        self.now[name] = node
        self.pending.append(("put", name, node))

    def drop(self, name: str) -> None:
        self.now.pop(name)
        self.pending.append(("drop", name, None))

    def sync(self) -> None:
        self.safe = dict(self.now)
        self.pending.clear()


class Disk:
    """A model of one file system, fed by the recorded calls."""

    def __init__(self, root: Path):
        self.root = root
        self.top = Folder()

    def _find(self, path: Path) -> tuple[Folder, str]:
        folder = self.top
        *parents, name = path.relative_to(self.root).parts
        for parent in parents:
            node = folder.now[parent]
            assert isinstance(node, Folder)
            folder = node
        return folder, name

    def node(self, path: Path) -> Inode | Folder:
        if path == self.root:
            return self.top
        folder, name = self._find(path)
        return folder.now[name]

    def create(self, path: Path, node: Inode | Folder) -> None:
        folder, name = self._find(path)
        folder.put(name, node)

    def remove(self, path: Path) -> None:
        folder, name = self._find(path)
        folder.drop(name)

    def rename(self, source: Path, target: Path) -> None:
        node = self.node(source)
        to, name = self._find(target)
        origin, old = self._find(source)
        # One entry in the journal for both names: a rename within a folder is atomic.
        assert to is origin
        origin.now.pop(old)
        to.now[name] = node
        to.pending.append(("move", f"{old}\0{name}", node))

    def crashed(self, rng: random.Random, survive: float) -> dict[str, bytes]:
        """Files after a crash: each change not fsynced survives with probability `survive`."""
        files: dict[str, bytes] = {}

        def walk(folder: Folder, prefix: str) -> None:
            names = dict(folder.safe)
            for kind, name, node in folder.pending:
                if rng.random() >= survive:
                    continue
                if kind == "drop":
                    names.pop(name, None)
                elif kind == "put":
                    assert node is not None
                    names[name] = node
                else:
                    old, new = name.split("\0")
                    names.pop(old, None)
                    assert node is not None
                    names[new] = node
            for name, node in names.items():
                if isinstance(node, Folder):
                    files[f"{prefix}{name}/"] = b""
                    walk(node, f"{prefix}{name}/")
                else:
                    files[f"{prefix}{name}"] = self._bytes(node, rng, survive)

        walk(self.top, "")
        return files

    @staticmethod
    def _bytes(inode: Inode, rng: random.Random, survive: float) -> bytes:
        if inode.now == inode.safe or rng.random() < survive:
            return inode.now
        # Delayed allocation: nothing, a part, or the length with zeros in it.
        return rng.choice([inode.safe, inode.now[: rng.randrange(len(inode.now) + 1)],
                           bytes(len(inode.now))])  # fmt: skip


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[dict[str, bytes]]]:
    """Runs the store's calls for real and collects disks as crashes after each could leave them."""
    disk = Disk(tmp_path)
    disks: list[dict[str, bytes]] = []
    rng = random.Random(7)
    open_files: dict[int, Path] = {}
    real = {
        name: getattr(os, name) for name in ("open", "write", "fsync", "close", "rename", "replace",
        "mkdir", "unlink", "rmdir", "ftruncate", "pwrite")
    }  # fmt: skip

    def crash() -> None:
        for survive in (0.0, 0.5, 0.5, 0.5, 0.9, 1.0):
            disks.append(disk.crashed(rng, survive))

    def inside(path: object) -> bool:
        return Path(str(path)).is_relative_to(tmp_path)

    def open_(path, flags, *rest, **options):  # type: ignore[no-untyped-def]
        new = inside(path) and flags & os.O_CREAT and not Path(path).exists()
        number = real["open"](path, flags, *rest, **options)
        if inside(path):
            open_files[number] = Path(path)
            if new:
                disk.create(Path(path), Inode())
                crash()
        return number

    def write(number, data):  # type: ignore[no-untyped-def]
        count = real["write"](number, data)
        if number in open_files:
            inode = disk.node(open_files[number])
            assert isinstance(inode, Inode)
            inode.now += bytes(data[:count])
            crash()
        return count

    def fsync(number):  # type: ignore[no-untyped-def]
        real["fsync"](number)
        if number in open_files:
            node = disk.node(open_files[number])
            if isinstance(node, Folder):
                node.sync()
            else:
                node.safe = node.now
            crash()

    def close(number):  # type: ignore[no-untyped-def]
        open_files.pop(number, None)
        real["close"](number)

    def rename(source, target, *rest, **options):  # type: ignore[no-untyped-def]
        real["rename"](source, target, *rest, **options)
        if inside(source):
            disk.rename(Path(source), Path(target))
            crash()

    def mkdir(path, *rest, **options):  # type: ignore[no-untyped-def]
        real["mkdir"](path, *rest, **options)
        if inside(path):
            disk.create(Path(path), Folder())
            crash()

    def removing(name):  # type: ignore[no-untyped-def]
        def remove(path, *rest, **options):  # type: ignore[no-untyped-def]
            real[name](path, *rest, **options)
            if inside(path):
                disk.remove(Path(path))
                crash()

        return remove

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "close", close)
    monkeypatch.setattr(os, "mkdir", mkdir)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, rename)
    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, removing(name))
    yield disks
    monkeypatch.undo()


@pytest.fixture
def disks_folder() -> Iterator[Path]:
    """In memory where possible: hundreds of disks are laid out and saved to."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    yield path
    shutil.rmtree(path)


def build(files: dict[str, bytes], root: Path) -> Path:
    root.mkdir()
    for name, data in sorted(files.items()):
        if name.endswith("/"):
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).write_bytes(data)
    return root


def test_power_loss_at_any_instant_leaves_the_previous_or_the_new_checkpoint(
    recorder: list[dict[str, bytes]],
    tmp_path: Path,
    disks_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payloads = {step: bytes([64 + step]) * 40 for step in range(1, 5)}
    store_root = tmp_path / "saves"
    spans: list[tuple[int, int]] = []  # (disks recorded so far, steps durably committed)

    class Told(Store):
        def commit(self, stage: Stage, **rest: Any) -> reading.Record:
            record = super().commit(stage, **rest)
            spans.append((len(recorder), stage.step))  # before LATEST, which syncs the folder too
            return record

    with Told(store_root) as store:
        for step, payload in payloads.items():
            save(store, step, payload)
            store.newest()
            store.prune(policy.doomed(store.records(), policy.Keep(last=2)))
    monkeypatch.undo()
    seen: set[int] = set()
    tried: set[tuple[tuple[str, bytes], ...]] = set()
    for number, files in enumerate(recorder):
        committed = max((step for end, step in spans if number >= end), default=0)
        key = (("", bytes([committed])), *sorted(files.items()))
        if key in tried:
            continue
        tried.add(key)
        root = build(files, disks_folder / str(number)) / "saves"
        record, _ = reading.newest(root)
        if committed:
            assert record is not None, f"disk {number}: nothing left of step {committed}"
        if record is not None:
            assert record.step in (committed, committed + 1)
            assert content(record) == expected(payloads[record.step])
            seen.add(record.step)
            with Store(root) as again:  # and the next life can go on from that disk
                again.sweep()
                save(again, 99, b"next")
                assert again.newest()[0].step == 99  # type: ignore[union-attr]
    assert seen == set(payloads)
    assert len(tried) > 100


def test_the_model_would_notice_a_missing_fsync(
    recorder: list[dict[str, bytes]],
    tmp_path: Path,
    disks_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without fsync some crash loses what was reported as committed: the test above can fail."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with Store(tmp_path / "saves") as store:
        save(store, 1, b"a" * 40)
        committed_at = len(recorder)
        save(store, 2, b"b" * 40)
    monkeypatch.undo()
    lost = 0
    for number, files in enumerate(recorder[committed_at:]):
        record, _ = reading.newest(build(files, disks_folder / str(number)) / "saves")
        lost += record is None
    assert lost
