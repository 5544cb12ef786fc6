"""For `speculators/models/eagle3/`: `metrics.py` and `core.py`, and the schema."""

from pydantic import Field


def chunk():
    # Positions whose distributions are held in float32 at once.
    _CHUNK = 512


def each_step(acceptance_temperature, step_logits, logits):
    if acceptance_temperature:
        step_logits.append(logits)


def at_the_end(
    metrics,
    step_logits,
    targets,
    original_input_ids,
    loss_mask,
    acceptance_temperature,
    expected_acceptance,
    self,
):
    if acceptance_temperature and loss_mask is not None:
        metrics.update(
            expected_acceptance(
                step_logits,
                targets,
                original_input_ids,
                loss_mask,
                t2d=self.t2d,
                temperature=acceptance_temperature,
            )
        )


def setting():
    acceptance_temperature: float | None = Field(
        default=None,
        gt=0,
        description="EAGLE-3: validation reports, as expect_k, how much vLLM would "
        "accept at this temperature of drafts that are drawn from the drafter's "
        "distribution. (default: not reported)",
    )
