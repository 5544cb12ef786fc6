"""How long training waits for its producer, and how often it asks for one sample.

Settings of the patches `wait_for_producer` and `durable_extraction`, and of what must not be less
patient than they are: ranks wait for one another in collectives meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from speculators_patches import stops

MINUTES = "SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES"
TRIES = "SPECULATORS_PATCHES_SAMPLE_TRIES"

# Upstream's own default with NCCL: what a rank may take beside waiting.
_WORK = timedelta(minutes=10)


def wait_s() -> float:
    """Seconds that a producer may be gone.

    Raises:
        RunStopped: the setting is no number.
    """
    return 60 * stops.setting(MINUTES, 15.0, 0.0, 100_000.0)


def tries() -> int:
    """How often a sample may fail by itself before it is left out.

    Raises:
        RunStopped: the setting is no number.
    """
    return stops.setting(TRIES, 3, 1, 10**6)


def group_timeout() -> timedelta:
    """How long ranks wait for one that waits for the producer.

    A batch holds several samples, so one batch may meet two outages.
    """
    return _WORK + timedelta(seconds=2 * wait_s())


@contextmanager
def groups() -> Iterator[None]:
    """Within it `torch.distributed` makes process groups with `group_timeout`, unless told."""
    import torch.distributed as dist

    timeout = group_timeout()
    makers = {name: getattr(dist, name) for name in ("init_process_group", "new_group")}

    def patient(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return make(*args, **({"timeout": timeout} | kwargs))

    try:
        for name, make in makers.items():
            setattr(dist, name, partial(patient, make))
        yield
    finally:
        for name, make in makers.items():
            setattr(dist, name, make)
