"""One folder holds one run: its settings, every command it ran, and a manifest for each stage.

A stage is done when its manifest says so *and* the digest of what it was made from is the one of
now. Work made from something else is set aside under another name, never deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from recipes.config import ConfigError


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a crash, sees the old or the new file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    rename_durably(staging, path)


def rename_durably(source: Path, target: Path) -> None:
    """Rename, and wait until the disk knows. A file replaces a file; a folder needs a free name."""
    source.replace(target)
    _fsync_folder(target.parent)


def fsync_tree(folder: Path) -> None:
    """Wait until every file and folder under `folder` has reached the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            _fsync_folder(path)
        elif path.is_file():
            with path.open("rb") as f:
                os.fsync(f.fileno())
    _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(value: Any) -> str:
    """Short stable digest of plain data, for comparing what a stage was made from."""
    encoded = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(encoded).hexdigest()[:16]


def file_digest(path: Path, ignore: str = "") -> str:
    """Digest of a file's bytes; of every file's, in order of name, for a folder.

    Args:
        ignore: pattern of names in a folder that do not count.
    """
    h = hashlib.sha256()
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not fnmatch(p.name, ignore))
    for file in files:
        h.update(str(file.relative_to(path)).encode() if file != path else b"")
        with file.open("rb") as f:
            while chunk := f.read(1 << 20):
                h.update(chunk)
    return h.hexdigest()[:16]


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run."""

    root: Path

    def stage_dir(self, stage: str) -> Path:
        return self.root / stage

    def log(self, name: str) -> Path:
        path = self.root / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_config(
        self, preset: str, settings: Mapping[str, Any], origin: Mapping[str, str]
    ) -> None:
        """Record the resolved settings and where each changed one came from."""
        record = {"preset": preset, "settings": dict(settings), "origin": dict(origin)}
        write_atomically(self.root / "config.json", json.dumps(record, indent=2) + "\n")

    def saved(self) -> dict[str, Any] | None:
        """The recorded `preset`, `settings` and `origin`; None where no run was begun.

        Raises:
            ConfigError: there is a config.json that is not ours, or damaged.
        """
        path = self.root / "config.json"
        try:
            data = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            data = None
        kinds = {"preset": str, "settings": dict, "origin": dict}
        if not isinstance(data, dict) or not all(
            isinstance(data.get(key), kind) for key, kind in kinds.items()
        ):
            raise ConfigError(
                f"{path} does not hold the settings of a run; restore it, or move it away and give "
                "--preset and --set again."
            )
        return data

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Held while stages run, so that two calls never write into one folder.

        Raises:
            ConfigError: another process holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process is running stages in {self.root}; wait for it, or give "
                    "another --run-dir."
                ) from None
            yield

    def record_server(self, name: str, argv: list[str]) -> None:
        """Append the command line of a server that was started to commands.jsonl."""
        self._append({"server": name, "argv": argv})

    def record_command(self, stage: str, argv: list[str], exit_code: int, seconds: float) -> None:
        """Append one line to commands.jsonl (one write, so lines never interleave)."""
        row = {"stage": stage, "argv": argv, "exit_code": exit_code, "seconds": round(seconds, 2)}
        self._append(row)

    def _append(self, row: Mapping[str, Any]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **row})
        with (self.root / "commands.jsonl").open("a", encoding="utf-8") as f:
            f.write(line + "\n")

    def manifest(self, stage: str) -> dict[str, Any]:
        """The stage's manifest; empty if the stage never finished."""
        try:
            data = json.loads((self.stage_dir(stage) / "manifest.json").read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def made_from(self, stage: str) -> dict[str, Any]:
        """What the work in the stage's folder is made from; empty if there is none."""
        return _made_from(self.stage_dir(stage)) or {}

    def is_done(self, stage: str, made_from: Mapping[str, Any]) -> bool:
        return bool(self.manifest(stage).get("made_from") == digest(made_from))

    def begin(self, stage: str, made_from: Mapping[str, Any]) -> Path:
        """The stage's folder, holding only work made from `made_from` (finished or not).

        Work that was set aside when a setting changed comes back when the setting does.
        """
        folder = self.stage_dir(stage)
        mark = folder / "made_from.json"
        if folder.exists() and not _is_made_from(folder, made_from):
            self._set_aside(folder)
        if not folder.exists():
            earlier = next(
                (f for f in self._superseded(stage) if _is_made_from(f, made_from)), None
            )
            if earlier is not None:
                rename_durably(earlier, folder)
                return folder
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(mark, json.dumps(dict(made_from), indent=2, default=str) + "\n")
        return folder

    def _superseded(self, stage: str) -> list[Path]:
        found = self.root.glob(f"{stage}.superseded-*")
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def _set_aside(self, folder: Path) -> None:
        if not any(folder.iterdir()):
            folder.rmdir()  # a kill between mkdir and the mark
            return
        number = 1
        while (aside := folder.with_name(f"{folder.name}.superseded-{number}")).exists():
            number += 1
        rename_durably(folder, aside)

    def finish(
        self, stage: str, made_from: Mapping[str, Any], seconds: float, **results: Any
    ) -> None:
        """Declare the stage done; the manifest is written last."""
        record = {
            "stage": stage,
            "made_from": digest(made_from),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(seconds, 2),
            **results,
        }
        write_atomically(
            self.stage_dir(stage) / "manifest.json", json.dumps(record, indent=2) + "\n"
        )


def _is_made_from(folder: Path, made_from: Mapping[str, Any]) -> bool:
    return bool(_made_from(folder) == json.loads(json.dumps(dict(made_from), default=str)))


def _made_from(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "made_from.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
