"""The folder of a bench: what is measured, with what, and one file for each finished block.

A rerun continues only what is the same bench on the same machine with the same software: blocks of
two vLLM versions side by side would be compared as if nothing had changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.client import BenchError
from benchmarks.schedule import Visit
from benchmarks.schema import RequestRow, ResultsError, row_of
from recipes.run_folder import write_atomically

# What of `recipes.environment.describe()` a measurement depends on.
_MACHINE = ("versions", "processor", "cores", "gpu")

# (prompt id, temperature, concurrency) of one request
Asked = tuple[str, float, int]


class BlockFolder:
    """Finished blocks on disk; every write is atomic.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(
        self,
        fingerprint: str,
        settings: Mapping[str, Any],
        made_with: Mapping[str, Any],
        endpoints: Mapping[str, str],
    ) -> None:
        """Takes the folder for this bench, or makes sure that it holds this one.

        Args:
            endpoints: what the user's servers serve, by arm.

        Raises:
            BenchError: it holds another bench, or one begun with other software, another machine
                or another server behind an address.
        """
        record = self.folder / "setup.json"
        machine = json.loads(json.dumps({k: made_with.get(k) for k in _MACHINE}))
        machine["versions"] = dict(machine["versions"] or {})
        machine["versions"].pop("speculators-patches", None)
        mine = {
            "fingerprint": fingerprint, "settings": settings, "machine": machine,
            "endpoints": dict(endpoints),
        }  # fmt: skip
        try:
            found = json.loads(record.read_text("utf-8"))
        except FileNotFoundError:
            write_atomically(record, json.dumps(mine, indent=1, ensure_ascii=False) + "\n")
            return
        except (OSError, ValueError) as e:
            raise BenchError(f"{record} cannot be read ({e}); give another folder.") from None
        another = "give another --out, or remove that folder."
        if found.get("fingerprint") != fingerprint:
            raise BenchError(
                f"{self.folder} holds a bench with other arms, prompts, weights or settings than "
                f"this one; {another}"
            )
        if found.get("machine") != machine:
            was, now = _difference(found.get("machine") or {}, machine)
            raise BenchError(
                f"{self.folder} holds a bench begun with {was}, and here is {now}: its blocks "
                f"cannot be compared with new ones; {another}"
            )
        for arm, now in endpoints.items():
            was = found.get("endpoints", {}).setdefault(arm, now)
            if was != now:
                raise BenchError(
                    f"{self.folder} holds a bench in which {arm} served {was}; now there is {now} "
                    f"at its address; {another}"
                )
        write_atomically(record, json.dumps(found, indent=1, ensure_ascii=False) + "\n")

    def load(self, visit: Visit, expected: Collection[Asked]) -> list[RequestRow] | None:
        """The rows of a block; None if it is not finished, or not whole."""
        try:
            rows = [row_of(r) for r in json.loads(self._file(visit).read_text("utf-8"))]
        except (OSError, ValueError, TypeError, ResultsError):
            return None
        found = sorted((r.prompt_id, r.temperature, r.concurrency) for r in rows)
        return rows if found == sorted(expected) else None

    def save(self, visit: Visit, rows: list[RequestRow]) -> None:
        """Keeps a finished block."""
        text = json.dumps([asdict(r) for r in rows], ensure_ascii=False)
        write_atomically(self._file(visit), text + "\n")

    def _file(self, visit: Visit) -> Path:
        return self.folder / "blocks" / f"{visit.name}.json"


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """The first thing that differs, in words."""
    flat = [
        {**{k: v for k, v in m.items() if k != "versions"}, **(m.get("versions") or {})}
        for m in (was, now)
    ]
    key = next(k for k in {**flat[0], **flat[1]} if flat[0].get(k) != flat[1].get(k))
    return f"{key} {flat[0].get(key)}", f"{flat[1].get(key)}"
