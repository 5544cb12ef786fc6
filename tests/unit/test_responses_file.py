"""A responses file cut, doubled or glued anywhere is repaired to whole conversations, each once."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators_patches.responses_file import ROWS, Busy, WholeAppends, locked, repair


def row(conversation: str, number: int, of: int | None) -> bytes:
    metadata = {} if of is None else {ROWS: of}
    data = {
        "id": f"{conversation}_gen{number}",
        "primary_id": conversation,
        "input_ids": [1, 2, 3],
        "loss_mask": [0, 1, 1],
        "text": "a\u2028b 你好",
        "metadata": metadata,
    }
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"


def block(conversation: str, rows: int) -> bytes:
    return b"".join(row(conversation, number, rows) for number in range(rows))


sizes = st.lists(st.integers(1, 3), min_size=1, max_size=6)


@given(sizes, st.data())
def test_a_file_cut_at_any_byte_keeps_what_was_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "r.jsonl"
    blocks = [block(f"c{n}", size) for n, size in enumerate(rows)]
    end = data.draw(st.integers(0, sum(map(len, blocks))))
    path.write_bytes(b"".join(blocks)[:end])
    found = repair(path)
    whole, length = [], 0
    for name, content in enumerate(blocks):
        length += len(content)
        if length <= end:
            whole.append(f"c{name}")
    assert found.conversations == whole
    assert path.read_bytes() == b"".join(blocks[: len(whole)])
    assert not repair(path).changed


piece = st.sampled_from(["whole", "again", "first rows", "half a line", "noise"])


@given(st.lists(st.tuples(piece, st.integers(0, 4), st.integers(1, 3)), max_size=12))
def test_any_mixture_is_repaired_and_repairing_again_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("mix") / "r.jsonl"
    content, want = b"", []
    for kind, number, rows in pieces:
        name = f"c{number}"
        if kind in ("whole", "again"):
            # After half a line the first row is glued to it and lost, and with it the block.
            torn = not content.endswith(b"\n") and content != b""
            content += block(name, rows)
            if not torn and name not in want:
                want.append(name)
        elif kind == "first rows":
            content += b"" if content.endswith(b"\n") or not content else b"\n"
            content += block(name, rows + 1)[: len(row(name, 0, rows + 1)) * rows]
        elif kind == "half a line":
            content += block(name, 1)[:37]
        else:
            content += b"{}\n[1]\n\xff\n"
    path.write_bytes(content)
    found = repair(path)
    assert sorted(found.conversations) == sorted(set(want))
    for name in want:
        own = [json.loads(line) for line in path.read_bytes().splitlines()]
        mine = [r for r in own if r["primary_id"] == name]
        assert len(mine) == mine[0]["metadata"][ROWS]
    before = path.read_bytes()
    assert not repair(path).changed
    assert path.read_bytes() == before


def test_rows_of_an_unpatched_upstream_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(row("a", 0, None) + row("a", 1, None) + row("b", 0, None))
    assert repair(path).conversations == ["a", "b"]
    assert not repair(path).changed


def test_ids_and_mask_of_different_lengths_are_no_row(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    bad = json.loads(row("a", 0, 1))
    bad["loss_mask"] = [1]
    path.write_bytes(json.dumps(bad).encode() + b"\n" + block("b", 1))
    found = repair(path)
    assert (found.broken_lines, found.conversations) == (1, ["b"])


def test_nothing_to_repair_is_no_error(tmp_path: Path) -> None:
    assert repair(tmp_path / "absent").conversations == []


def test_a_disk_that_takes_half_a_conversation_keeps_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    errors: list[OSError] = []
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with path.open("a", encoding="utf-8") as file:
            rows = WholeAppends(file, errors.append)
            rows.write(block("a", 2).decode())
            rows.flush()
            size = os.fstat(file.fileno()).st_size
            rows.write(block("b", 3).decode())
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
            with pytest.raises(OSError, match="large"):
                rows.flush()
            assert os.fstat(file.fileno()).st_size == size
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            rows.write(block("b", 3).decode())
            rows.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert len(errors) == 1
    assert path.read_bytes() == block("a", 2) + block("b", 3)


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    failed: list[OSError] = []
    waited: list[OSError] = []
    ballast = disk / "ballast"

    def free(error: OSError) -> None:
        waited.append(error)
        threading.Timer(0.5, ballast.unlink).start()

    try:
        with (disk / "r.jsonl").open("a", encoding="utf-8") as file:
            for room_s, waiting in ((0.0, waited.append), (60.0, free)):
                rows = WholeAppends(file, failed.append, room_s, waiting)
                ballast.write_bytes(b"")
                with ballast.open("ab", buffering=0) as out, contextlib.suppress(OSError):
                    while True:
                        out.write(b"\0" * 4096)
                rows.write(block("a", 2).decode() * 40)  # more than the file's last page has left
                if room_s:
                    rows.flush()
                else:
                    with pytest.raises(OSError, match="No space left"):
                        rows.flush()
                    assert (len(waited), len(failed)) == (0, 1)
                    assert os.fstat(file.fileno()).st_size == 0
        assert (len(waited), len(failed)) == (1, 1)
        assert (disk / "r.jsonl").read_bytes() == block("a", 2) * 40
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_two_writers_never_meet(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locked(path):
            os.write(writer, b"x")
            signal.pause()
        os._exit(0)
    os.read(reader, 1)
    with pytest.raises(Busy, match=f"process {pid} is writing"), locked(path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(path):
        pass
