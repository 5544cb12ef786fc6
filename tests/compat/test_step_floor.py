"""The floor of a training step counts what upstream's step really multiplies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.compat.running import last_json, python

COUNT = """
import json, sys
from torch.utils.flop_counter import FlopCounterMode
import speculators_patches
from benchmarks.real_size import Size, Training, batch
from benchmarks.step_floor import operations

speculators_patches.apply(only=["cpu_training"])
size, positions = Size(8, 128), int(sys.argv[1])
training = Training(size, "cpu", ttt_steps=positions)
data = batch(size, training.model, 0, 1)
with FlopCounterMode(display=False) as seen:
    training.step(data)
products = {
    str(name): count
    for name, count in seen.get_flop_counts()["Global"].items()
    if str(name) in ("aten.mm", "aten.addmm")
}
counted = operations(size, positions, 1)
print(json.dumps({"real": sum(products.values()), "counted": counted}))
"""


def test_operations_are_those_of_upstream_s_step(laid_out: Callable[[str], Path]) -> None:
    """All matrix products of a step, forward and backward, to the last operation."""
    laid_out("0.9.0")
    seen = last_json(python("0.9.0", "-c", COUNT, "3"))
    assert seen["real"] == sum(
        count for name, count in seen["counted"].items() if name != "attention"
    )
