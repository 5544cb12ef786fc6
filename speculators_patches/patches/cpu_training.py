"""The trainer trains and resumes on a machine without an accelerator.

Upstream's trainer takes device number 0 for granted: it moves the model to it, synchronises it for
its step times, loads checkpoints to "cuda:0", and refuses torchrun without an accelerator. Its
defaults (flex attention, whose backward does not exist on a CPU, and Triton losses) cannot run
there either. Each of these is one small replacement; where there is an accelerator nothing is
replaced at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_ALL = ">=0.7,<0.9.1"
_SETUP = "speculators.train.trainer:Trainer.setup_trainer"
_MARK = "speculators.train.trainer:_StepTimer.mark"
_NOW = "speculators.train.trainer:_StepTimer.now"
_DEVICE = "speculators.utils.util:get_current_device"
_DISTRIBUTED = "speculators.train.distributed:maybe_setup_distributed"
_MAIN = "speculators.train.cli:main"

PATCH = Patch(
    name="cpu_training",
    defect="Training and resuming need an accelerator; on a CPU the first step already fails.",
    needed=SpecifierSet(">=0.7"),
    targets=(
        Target(
            "speculators.train.trainer",
            "Trainer.setup_trainer",
            fingerprints={_ALL: "d43094f2baf7aa64"},
        ),
        Target(
            "speculators.train.trainer",
            "_StepTimer.mark",
            fingerprints={">=0.7,<0.8.2": "893cd1e5673e77b1", "==0.9.0": "391b4e3c4bd05aef"},
        ),
        Target(
            "speculators.train.trainer",
            "_StepTimer.now",
            fingerprints={_ALL: "a422c3304663f6d0"},
        ),
        Target(
            "speculators.utils.util",
            "get_current_device",
            fingerprints={_ALL: "1c2ca96f578642fc"},
        ),
        Target(
            "speculators.train.distributed",
            "maybe_setup_distributed",
            fingerprints={_ALL: "e195d6bf511f0910"},
        ),
        Target(
            "speculators.train.cli",
            "main",
            fingerprints={"==0.8.1": "b340c969fb545e14", "==0.9.0": "00e441188600f50e"},
            since="0.8",
        ),
        # It sets device_type and local_rank, calls setup_trainer, and only then moves the model.
        Target(
            "speculators.train.trainer",
            "Trainer.__init__",
            fingerprints={_ALL: "4fb14f12c1fe2903"},
            observed=True,
        ),
        Target(
            "speculators.train.distributed",
            "_init_sp_process_groups",
            fingerprints={_ALL: "352dfc18d3409400"},
            observed=True,
        ),
    ),
    upstream="no issue found; upstream supports accelerators only",
    fixed_in=None,
    remove_when="upstream's trainer runs without an accelerator",
    proof="tests/compat/test_cpu_training.py::test_killed_after_a_mid_epoch_save_it_resumes",
    tested=("0.7.0.2", "0.8.1", "0.9.0"),
)

# What cannot run on a CPU: option -> (its group in TrainConfig, upstream's default, ours, why).
_IMPLEMENTATIONS = {
    "draft_attn_impl": (
        "draft",
        "simple_flex_attention",
        "sdpa",
        "flex attention has no backward on a CPU",
    ),
    "loss_implementation": ("loss", "fused", "eager", "the fused losses are Triton kernels"),
}

_setup_trainer: Any = None
_main: Any = None


def applicable() -> str | None:
    """Why the patch does nothing here, or None."""
    import torch

    if torch.accelerator.is_available():
        return f"this machine has an accelerator ({torch.accelerator.current_accelerator()})"
    return None


def setup_trainer(self: Any) -> None:
    """Upstream's, after pointing the trainer at the CPU; the model is moved after this."""
    self.local_rank = self.device_type = "cpu"
    _setup_trainer(self)


def mark(self: Any, name: str) -> None:
    """Upstream's without the synchronisation: work on a CPU is done when the call returns."""
    if self.enabled:
        self._marks[name] = time.perf_counter()


def now(self: Any) -> float | None:
    """As `mark`."""
    return time.perf_counter() if self.enabled else None


def get_current_device() -> str:
    """Where checkpoints are loaded to."""
    return "cpu"


def maybe_setup_distributed(sp_size: int = 1) -> None:
    """Under torchrun: gloo between CPU processes. Otherwise upstream's defaults stay.

    Args:
        sp_size: ranks per sequence-parallel group; must divide the world size.
    """
    import torch.distributed as dist
    from speculators.train import distributed as topology

    topology._is_distributed = "LOCAL_RANK" in os.environ
    topology._local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not topology._is_distributed:
        return
    dist.init_process_group("gloo")
    topology._rank = dist.get_rank()
    topology._world_size = dist.get_world_size()
    topology._init_sp_process_groups(topology._rank, topology._world_size, sp_size)


def main(cfg: Any) -> None:
    """Upstream's, with what a CPU can run in place of defaults that it cannot.

    Raises:
        SystemExit: one sentence, where the user asked for something that a CPU cannot run.
    """
    choose_implementations(cfg)
    _main(cfg)


def choose_implementations(cfg: Any) -> None:
    """Changes a `TrainConfig` in place; a value that the user gave is never overridden."""
    for name, (group, theirs, ours, why) in _IMPLEMENTATIONS.items():
        options = getattr(cfg, group)
        if getattr(options, name) != theirs:
            continue
        if name == "draft_attn_impl" and cfg.speculator_type == "mtp":
            continue  # upstream insists on its default there and does not use it
        if cfg.provenance.get(name, "default") != "default":
            flag = "--" + name.replace("_", "-")
            raise SystemExit(
                f"speculators_patches: {flag} {theirs} cannot be used on this machine: {why} and "
                f"no accelerator was found; use {flag} {ours} or leave it out."
            )
        setattr(options, name, ours)


def replacements(originals: Mapping[str, Any]) -> dict[str, Any]:
    """Target path -> replacement."""
    global _setup_trainer, _main
    _setup_trainer = originals[_SETUP]
    _main = originals.get(_MAIN)  # 0.7: a script, in which nothing is chosen
    return {
        _SETUP: setup_trainer,
        _MARK: mark,
        _NOW: now,
        _DEVICE: get_current_device,
        _DISTRIBUTED: maybe_setup_distributed,
        _MAIN: main,
    }
