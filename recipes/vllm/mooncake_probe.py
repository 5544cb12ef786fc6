"""What `recipes.vllm.store_probe`, in a process of its own, finds out about a Mooncake store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from recipes.vllm.spec import HOME


def probe(master: str, manifest: object = None) -> dict[str, Any]:
    """What `recipes.vllm.store_probe` finds; {"error": "..."} if something is wrong."""
    command = [sys.executable, "-m", "recipes.vllm.store_probe", master]
    if manifest is not None:
        command.append(json.dumps(manifest))
    paths = [str(HOME), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {}
    env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": "nothing came back within 120 s"}
    except (ValueError, IndexError):
        return {"error": f"the probe failed: {done.stderr.strip()[-300:]}"}
    return found
