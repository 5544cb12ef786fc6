"""finite_guard: upstream's real trainer, 0.8.1 and 0.9.0, with NaN in what it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speculators_patches import finite

VERSIONS = ["0.8.1", "0.9.0"]


Probe = Callable[[str, str], Any]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_nan_reaches_no_weight(version: str, probe: Probe) -> None:
    """6 batches, 2 of them with a NaN: the drafter is that of the other 4, bit for bit."""
    seen = probe("finite", version)
    assert seen["unpatched"]["bad_weights"] > 0
    assert seen["unpatched"]["schedule"] == 6
    assert seen["patched"]["bad_weights"] == 0
    assert seen["patched"]["schedule"] == 4
    assert seen["patched"]["as_without_the_bad_batches"] == 0.0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_gradient_norm_that_overflows_is_no_step(version: str, probe: Probe) -> None:
    """Clipping turns it into a gradient of 0, which Muon steps on along its momentum."""
    seen = probe("finite", version)
    assert seen["unpatched"]["overflow"] > 0
    assert seen["patched"]["overflow"] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_three_in_a_row_end_the_run_with_good_weights(version: str, probe: Probe) -> None:
    seen = probe("finite", version)
    assert seen["unpatched"]["in_a_row"] == "no error"
    assert seen["unpatched"]["in_a_row_bad_weights"] > 0
    assert seen["patched"]["in_a_row"].startswith("NotFinite: the loss or the gradient of step 3")
    assert "\n" not in seen["patched"]["in_a_row"]
    assert seen["patched"]["in_a_row_bad_weights"] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_nan_is_never_best(version: str, probe: Probe) -> None:
    """Epoch 0 has loss 1.0, epoch 1 has NaN; upstream keeps the second and deletes the first."""
    seen = probe("finite", version)
    assert (seen["unpatched"]["best"], seen["unpatched"]["folders"]) == ("1", ["1"])
    assert (seen["patched"]["best"], seen["patched"]["folders"]) == ("0", ["0"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bad_state_is_never_written(version: str, probe: Probe) -> None:
    seen = probe("finite", version)
    assert seen["unpatched"]["bad_state_written"]
    assert not seen["patched"]["bad_state_written"]
    assert "NaN or infinity in fc.weight" in seen["patched"]["bad_state"]
    assert seen["patched"]["save"] == "no error"


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(DTYPES),
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from([None, torch.nan, torch.inf, -torch.inf]),
            st.integers(0, 10**6),
        ),
        max_size=5,
    )
)
def test_every_bad_tensor_is_named_and_no_other(
    described: list[tuple[torch.dtype, list[int], float | None, int]],
) -> None:
    named, bad = [("steps", torch.tensor([3]))], []
    for number, (dtype, shape, poison, where) in enumerate(described):
        tensor = torch.randn(shape).to(dtype)
        if poison is not None and tensor.numel():
            tensor.view(-1)[where % tensor.numel()] = poison
            bad.append(f"tensor {number}")
        named.append((f"tensor {number}", tensor))
    assert sorted(finite.nonfinite(named)) == sorted(bad)
    if bad:
        with pytest.raises(finite.NonFiniteState, match="step 7 was not written: NaN or infinity"):
            finite.assert_finite(named, "step 7")
    else:
        finite.assert_finite(named)
