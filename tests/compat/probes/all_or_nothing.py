"""One selected patch does not fit: strict changes nothing; strict=False applies the others."""

from __future__ import annotations

import pytest
import speculators.train.trainer

import speculators_patches as overlay
from tests.compat.probes import snapshot, synthetic

synthetic.add_to_table(fingerprints={"wraps_method_again": "0" * 16})
CHOSEN = list(synthetic.TARGETS)


def main() -> None:
    before = snapshot.take()
    with pytest.raises(overlay.PatchRefused, match="wraps_method_again cannot be applied") as error:
        overlay.apply(only=CHOSEN)
    assert [row.patch for row in error.value.report.refused] == ["wraps_method_again"]
    assert not error.value.report.active
    assert not snapshot.changed(before)

    report = overlay.apply(only=CHOSEN, strict=False)
    assert report.active == ("wraps_function_and_classmethod", "wraps_method")
    assert report.row("wraps_method_again").verdict == "refused"
    assert speculators.train.trainer.Trainer.train_epoch.tag == "wraps_method"

    overlay.revert()
    assert not snapshot.changed(before)

    speculators.train.trainer.Trainer.train_epoch = other_overlay
    with pytest.raises(overlay.PatchRefused, match="already replaced at run time by other code"):
        overlay.apply(only=["wraps_method"])
    print("held")


def other_overlay(self: object, epoch: int) -> None:
    """What some other overlay might have installed before us."""


if __name__ == "__main__":
    main()
