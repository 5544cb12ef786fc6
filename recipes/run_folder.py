"""One folder holds one run: its settings, every command it ran, and a manifest for each stage.

A stage is done when its manifest says so *and* the digest of what it was made from is the one of
now. Work made from something else is set aside under another name, never deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a crash, sees the old or the new file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    staging.replace(path)


def digest(value: Any) -> str:
    """Short stable digest of plain data, for comparing what a stage was made from."""
    encoded = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(encoded).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Digest of a file's bytes; of every file's, in order of name, for a folder."""
    h = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
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

    def record_command(self, stage: str, argv: list[str], exit_code: int, seconds: float) -> None:
        """Append one line to commands.jsonl (one write, so lines never interleave)."""
        self.root.mkdir(parents=True, exist_ok=True)
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "stage": stage,
            "argv": argv,
            "exit_code": exit_code,
            "seconds": round(seconds, 2),
        }
        with (self.root / "commands.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")

    def manifest(self, stage: str) -> dict[str, Any]:
        """The stage's manifest; empty if the stage never finished."""
        try:
            data = json.loads((self.stage_dir(stage) / "manifest.json").read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def is_done(self, stage: str, made_from: Mapping[str, Any]) -> bool:
        return bool(self.manifest(stage).get("made_from") == digest(made_from))

    def begin(self, stage: str, made_from: Mapping[str, Any]) -> Path:
        """The stage's folder, holding only work made from `made_from` (finished or not)."""
        folder = self.stage_dir(stage)
        mark = folder / "made_from.json"
        if folder.exists():
            try:
                same = json.loads(mark.read_text("utf-8")) == json.loads(
                    json.dumps(dict(made_from), default=str)
                )
            except (OSError, ValueError):
                same = False
            if not same:
                number = 1
                while (aside := folder.with_name(f"{stage}.superseded-{number}")).exists():
                    number += 1
                folder.rename(aside)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(mark, json.dumps(dict(made_from), indent=2, default=str) + "\n")
        return folder

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
