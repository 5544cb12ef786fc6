"""Where a checkpoint comes from; stands in its manifest beside position and fingerprint.

None of it refuses a resume. `environment` is what bitwise equality depends on beside the settings:
another torch, processor or GPU rounds otherwise, which is no other run, but not bit for bit the
same one. `settings` are those that built the drafter: upstream's `run.yaml` beside the checkpoints
is rewritten by every start of the command, one that is refused included.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def of(trainer: Any, config: Any) -> dict[str, Any]:
    """For the manifest, as plain JSON.

    Args:
        config: upstream's TrainConfig that this process was started with, or None.
    """
    return {
        "environment": _environment(trainer),
        "settings": _settings(trainer, config),
        "started_in": str(Path.cwd()),
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each thing of the environment that was another when it was saved."""
    before, after = saved.get("environment", {}), now["environment"]
    return [
        f"{name} {before[name]} then, {after[name]} now"
        for name in after
        if name in before and before[name] != after[name]
    ]


def _environment(trainer: Any) -> dict[str, str]:
    import torch

    found = {}
    for package in ("torch", "transformers", "speculators"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
            continue
    if trainer.device_type == "cpu":
        found["device"] = f"{torch.backends.cpu.get_cpu_capability()} CPU"
        found["threads"] = str(torch.get_num_threads())
    else:
        device = torch.get_device_module(trainer.device_type)
        name = getattr(device, "get_device_name", lambda: trainer.device_type)
        found["device"] = str(name())
    return found


def _settings(trainer: Any, config: Any) -> str | None:
    """The YAML that upstream would write, if `config` is this trainer's."""
    if config is None or str(config.flatten().get("save_path")) != trainer.config.save_path:
        return None
    from speculators.train.config.artifacts import dump_yaml

    return str(dump_yaml(config))
