"""accumulators_on_device: upstream's forward pass without a number copied from the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import running

# The real drafter in small. Which numbers the host makes for a device is seen by a mode that is
# told of every call; the layers compile on a GPU, and what they compile makes its constants there.
PROGRAM = """
import hashlib, inspect, json, sys
from speculators_patches import apply
apply(only=["cpu_training", *sys.argv[1:]])
import torch
from torch.overrides import TorchFunctionMode
from benchmarks.real_size import Size, Training, batch

class Copies(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.where = []
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.tensor and "device" in (keywords or {}):
            code = sys._getframe(1).f_code
            self.where.append((code.co_filename, code.co_qualname))
        return function(*arguments, **(keywords or {}))

torch.use_deterministic_algorithms(True)
training = Training(Size(16, 128), "cpu", ttt_steps=3)
data = batch(training.size, training.model, 0, 2)
said = []
training.model.register_forward_hook(lambda module, given, made: said.append(made[2]))
with Copies() as copies:
    losses = [training.step(data).item() for _ in range(3)]
digest = hashlib.sha256()
for name, weight in sorted(training.trained().items()):
    digest.update(weight.numpy().tobytes())
forward = type(training.model).forward
print(json.dumps({
    "copies": sum(file.endswith("eagle3/core.py") for file, _ in copies.where),
    "losses": losses, "weights": digest.hexdigest(),
    "metrics": {name: [value.item(), str(value.dtype), value.dim()]
                for name, value in said[-1].items()},
    "line": forward.__code__.co_firstlineno, "file": forward.__code__.co_filename,
    "name": forward.__qualname__, "code": forward.__code__.co_qualname,
    "takes": str(inspect.signature(forward)),
}))
"""

# An upstream whose changed source was accepted, and that no longer has what is replaced.
MOVED = """
import json
import speculators_patches
from speculators_patches.patches import accumulators_on_device as patch
patch.CHANGES["torch.tensor(2.0, device=device)"] = "torch.ones((), device=device)"
names = ["accumulators_on_device", "accuracy_without_waiting"]
try:
    speculators_patches.apply(only=names)
    said = "applied"
except speculators_patches.PatchRefused as refused:
    said = str(refused)
speculators_patches.apply(only=names, strict=False)
print(json.dumps([said, speculators_patches.overlay.in_force()]))
"""


def test_another_forward_pass_is_refused_by_name(laid_out: Callable[[str], Path]) -> None:
    laid_out("0.9.0")
    said, in_force = running.last_json(running.python("0.9.0", "-c", MOVED))
    assert "patch accumulators_on_device cannot be applied" in said
    assert "has `torch.tensor(2.0, device=device)` 0 times, expected 1" in said
    assert in_force == ["accuracy_without_waiting"]


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_no_number_is_copied_to_the_device(version: str, laid_out: Callable[[str], Path]) -> None:
    laid_out(version)
    upstream = running.last_json(running.python(version, "-c", PROGRAM))
    ours = running.last_json(running.python(version, "-c", PROGRAM, "accumulators_on_device"))
    assert upstream.pop("copies") == 3 * 2  # a step
    assert ours.pop("copies") == 0
    assert ours == upstream
