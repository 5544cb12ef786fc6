"""What `benchmarks.kill_and_resume` reads out of a trainer's log."""

from __future__ import annotations

from benchmarks.kill_and_resume import logged_losses

WHOLE = """\
[14:23:36] INFO     train/loss_0=8.264,                           trainer.py:587
                    train/full_acc_2=0.00e+00, train/loss=24.292,
                    train/accept_0=0.00e+00,
                    epoch=0, lr=9.86e-05, global_step=3
"""


def test_a_line_that_a_kill_cut_off_is_no_other_step_s() -> None:
    cut = WHOLE[: WHOLE.index("epoch=")]
    resumed = "Fast-skipping 4 batches via sampler slice. epoch=0, global_step=4.\n"
    later = WHOLE.replace("24.292", "23.975").replace("step=3", "step=4")
    assert logged_losses(WHOLE + later) == [(3, 24.292), (4, 23.975)]
    assert logged_losses(cut + resumed + later) == [(4, 23.975)]
    assert logged_losses(cut + later) == [(4, 23.975)]
    assert logged_losses(cut) == []


def test_a_loss_that_is_no_number_is_shown() -> None:
    ((step, loss),) = logged_losses(WHOLE.replace("24.292", "nan"))
    assert step == 3
    assert loss != loss
