"""A server of hidden states that is gone for a while makes training wait, not lose samples.

Upstream asks a few times and then leaves the sample out: a vLLM that is started again (minutes, for
a real model) costs one sample after the other, and after 20 in a row the run. What it learns then
depends on when the server failed.

Here a request that failed because the server could not be reached, did not answer, broke off,
answered 5xx or wrote no usable file is asked again as soon as the server answers a short request of
ours and there is room for the file. Signals act at once meanwhile. The weights that come out are
those of a run without the outage. Bounded by --producer-wait-minutes (default 15; also
SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES): then the run stops before its next step, with one
sentence and exit code 1, and `step_checkpoints` saves it on the way down.

A sample that is itself at fault blocks nothing. One that the server refuses (4xx) is unavailable at
once. One whose own request fails three times although the server answers others in between is
unavailable too (SPECULATORS_PATCHES_SAMPLE_TRIES); it is asked by itself from its second time on,
so that its neighbours are not taken for culprits; of several servers the failures of those that
stay down do not count, up to a bound that saves the others (`strikes`). Both are named in the log
and count as upstream's failures do. Hidden states that do not fit the sample or are not finite go
upstream's own way.

A request that hangs by itself while the server answers others is not seen from outside: it lasts
--request-timeout seconds (120) at the most, is then one that failed, and is asked again.

In upstream's --max-retries terms each request is tried once; the waiting is done here. Of several
ranks those that have their data wait for the one that has not: process groups get a timeout of
twice the wait and 10 minutes more (NCCL's own is 10 minutes), and all ranks hear of a producer that
is gone for good before the next step, not at every 50th as upstream, so that none trains on alone.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches import patience, stops
from speculators_patches.blame import blame
from speculators_patches.registry import Patch, Target

_ASK = "speculators.data_generation.vllm_client:generate_hidden_states"
_ONCE = "speculators.train.data:ArrowDataset._generate_hidden_states_once"
_READ = "speculators.train.data:ArrowDataset._get_raw_data"
_CONSUME = "speculators.train.recovery:BatchRecoveryCoordinator.consume"
_SYNCHRONIZE = "speculators.train.recovery:BatchRecoveryCoordinator.synchronize"
_DISTRIBUTED = "speculators.train.distributed:maybe_setup_distributed"
_RESOLVE = "speculators.train.config.schema:TrainConfig.resolve"
_MAIN = "speculators.train.cli:main"
_BOTH = ">=0.8.1,<0.9.1"

PATCH = Patch(
    name="wait_for_producer",
    defect="While vLLM is gone, stuck or out of disk, training leaves samples out and, after 20, "
    "ends.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.data_generation.vllm_client",
            "generate_hidden_states",
            fingerprints={"==0.8.1": "ab0e0fd4ac695f94", "==0.9.0": "8b166d058bea656c"},
            aliases=("speculators.train.data",),
        ),
        Target(
            "speculators.train.data",
            "ArrowDataset._generate_hidden_states_once",
            fingerprints={"==0.8.1": "56d4b012ca0b97c4", "==0.9.0": "be194d45b84609b1"},
        ),
        Target(
            "speculators.train.data",
            "ArrowDataset._get_raw_data",
            fingerprints={"==0.8.1": "86fea1bf97ba7ea9", "==0.9.0": "895579f24b1fd49c"},
        ),
        Target(
            "speculators.train.distributed",
            "maybe_setup_distributed",
            fingerprints={_BOTH: "e195d6bf511f0910"},
        ),
        Target(
            "speculators.train.recovery",
            "BatchRecoveryCoordinator.consume",
            fingerprints={_BOTH: "eb1f526c79ff5b3a"},
        ),
        Target(
            "speculators.train.recovery",
            "BatchRecoveryCoordinator.synchronize",
            fingerprints={_BOTH: "9616b0ac956dc652"},
        ),
        Target(
            "speculators.train.config.schema",
            "TrainConfig.resolve",
            fingerprints={"==0.8.1": "6fc68c6978c44897", "==0.9.0": "01a327c2744f0263"},
        ),
        Target(
            "speculators.train.cli",
            "main",
            fingerprints={"==0.8.1": "b340c969fb545e14", "==0.9.0": "00e441188600f50e"},
        ),
        # Drops `client` when its set-up fails.
        Target(
            "speculators.train.data",
            "ArrowDataset._setup_client",
            fingerprints={_BOTH: "58e447e8113a49dd"},
            observed=True,
        ),
        # Catches every Exception, and no BaseException.
        Target(
            "speculators.train.recovery",
            "GenerationRecoveryGuard.run",
            fingerprints={_BOTH: "f48f9361bc09f91d"},
            observed=True,
        ),
        Target(
            "speculators.train.recovery",
            "GenerationRecoveryGuard._record_exhausted",
            fingerprints={_BOTH: "42aff98a8c287f12"},
            observed=True,
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream's data set waits for its server and asks again",
    proof="tests/faults/test_wait_for_producer.py::test_a_server_that_is_gone_costs_no_sample",
    tested=("0.8.1", "0.9.0"),
)

_MARK = "producer gone: "

logger = logging.getLogger("speculators")

_ask: Any = None
_once: Any = None
_get_raw_data: Any = None
_consume: Any = None
_synchronize: Any = None
_setup_distributed: Any = None
_resolve: Any = None
_main: Any = None
_handle: str | None = None  # of the last answer in this process that had one


class ProducerGone(stops.RunStopped):
    """No hidden states for too long."""


class SampleAtFault(BaseException):
    """A request fails because of what it asks. Not an `Exception`: no guard asks it once more."""


def ask(*args: Any, **kwargs: Any) -> Any:
    """Upstream's request, tried once; remembers where the answer is stored.

    Returns when its file is written, or has not been for as long as the request may take:
    upstream's 10 s for that make a slow disk a failure.
    """
    from speculators_patches.patches.cached_sample_errors import wait_until_unlocked

    global _handle
    answer = _ask(*args, **(kwargs | {"max_retries": 0}))
    handle = answer[0] if isinstance(answer, tuple) else answer
    _handle = handle
    if Path(handle).is_absolute():
        with contextlib.suppress(OSError):  # upstream finds it out
            wait_until_unlocked(Path(f"{handle}.lock"), kwargs.get("timeout") or 120.0)
    return answer


def generate_once(self: Any, *args: Any) -> Any:
    """Upstream's round trip, repeated until it succeeds or its sample is at fault.

    Raises:
        Gone: the server is gone for too long.
        SampleAtFault: see the module's text.
        Exception: as upstream's, for hidden states that do not fit.
    """
    from speculators_patches.producer import Gone
    from speculators_patches.strikes import Strikes

    producer = _producer(self)
    if producer.gone is not None:
        raise Gone(producer.gone)
    tokens = args[-2]["input_ids"].tolist()
    discard = partial(_discard, self.transfer)
    strikes = Strikes(producer.urls, patience.tries())
    while True:
        try:
            if strikes:
                with producer.alone():
                    sample = _once(self, *args)
            else:
                sample = _once(self, *args)
        except Exception as error:
            # Without a client not even the model's name could be had.
            whose, why = blame(error, reached=self.client is not None)
            is_another = "explicit model name" in why and not producer.has_answered
            # One that extracts, and never was ours: there is nothing to wait for.
            if is_another and producer.problem(tokens[:4], discard) is None:
                producer.gone = f"{producer.url} is not the verifier's server: {why}"
                raise Gone(producer.gone) from error
            if whose == "other":
                raise
            if whose == "refused" and producer.problem(tokens[:4], discard) is not None:
                whose = "away"  # it refuses anything: another program may have its port
            struck = whose == "struck" and not producer.has_no_room(tokens, _folder())
            if struck:
                strikes.add(producer.asked)
            if whose == "refused" or (
                struck and strikes.enough(lambda url: producer.answers(url, tokens, discard))
            ):
                producer.not_to_blame()
                times = "" if whose == "refused" else f" {len(strikes)} times"
                raise SampleAtFault(f"its own request failed{times}: {why}") from error
            self.client = None  # set up anew, which also looks who answers there
            producer.wait(why, tokens, _folder(), discard)
        else:
            producer.answered(sample)
            return sample


def _producer(dataset: Any) -> Any:
    from speculators_patches.several import producer_at

    found = vars(dataset).get("_producer")
    if found is None:
        found = dataset._producer = producer_at(dataset.vllm_endpoint, patience.wait_s())
    return found


def _folder() -> Path | None:
    """Where the server stores files, as far as its last answer told."""
    return Path(_handle).parent if _handle and Path(_handle).is_absolute() else None


def _discard(transfer: Any, handle: str) -> None:
    """Removes what the server stored for a request of ours, once it is written."""
    from speculators_patches.patches.cached_sample_errors import wait_until_unlocked

    lock = Path(handle + ".lock")
    wait_until_unlocked(lock)
    transfer.delete(handle)
    lock.unlink(missing_ok=True)


def get_raw_data(self: Any, index: int) -> Any:
    """Upstream's sample; an unavailable one, if it is at fault or the server is gone for good."""
    from speculators.train.recovery import SampleUnavailable

    from speculators_patches.producer import Gone

    try:
        return _get_raw_data(self, index)
    except SampleAtFault as fault:
        row = self._map_to_file_idx(index)
        return self.generation_recovery._record_exhausted(
            f"sample {index} (row {row} of the data) is left out",
            attempt=1, total_attempts=1, error=fault,
        )  # fmt: skip
    except Gone as gone:
        # To the trainer with the batch, also from a worker; `synchronize` stops every rank there.
        return SampleUnavailable(
            reason=f"{_MARK}{gone}", counts_as_failure=True, consecutive_failures=1, fatal=True
        )


def setup_distributed(*args: Any, **kwargs: Any) -> None:
    """Upstream's, with process groups that outlast a rank's wait for the producer."""
    with patience.groups():
        _setup_distributed(*args, **kwargs)


def consume(self: Any, batch: dict[str, Any], *, synchronize: bool = False) -> None:
    """Upstream's, with every rank asked at every batch whether its producer is gone.

    Raises:
        ProducerGone: see `synchronize`.
    """
    _consume(self, batch, synchronize=True)


def synchronize(self: Any) -> None:
    """Upstream's; what ends the run there is one sentence.

    Raises:
        ProducerGone: the server was gone for too long, or upstream's circuit breaker tripped.
    """
    try:
        _synchronize(self)
    except RuntimeError as error:
        text = str(error)
        raise ProducerGone(text.partition(_MARK)[2] or text) from error


def resolve(cls: Any, argv: list[str] | None = None) -> Any:
    """Upstream's, without --producer-wait-minutes, which workers find in the environment."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--producer-wait-minutes")
    try:
        found, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise SystemExit(f"speculators_patches: {error}") from None
    if found.producer_wait_minutes is not None:
        os.environ[patience.MINUTES] = found.producer_wait_minutes
    config = _resolve(cls, rest)
    config._argv = [sys.argv[0], *words]
    return config


def main(*args: Any, **kwargs: Any) -> Any:
    """Upstream's; a stop is one sentence and exit code 1."""
    return stops.say_and_exit(_main_after_a_look, *args, **kwargs)


def _main_after_a_look(*args: Any, **kwargs: Any) -> Any:
    patience.wait_s()
    patience.tries()
    return _main(*args, **kwargs)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _ask, _once, _get_raw_data, _consume, _synchronize, _setup_distributed, _resolve, _main
    _ask, _once, _get_raw_data = originals[_ASK], originals[_ONCE], originals[_READ]
    _consume, _synchronize = originals[_CONSUME], originals[_SYNCHRONIZE]
    _setup_distributed = originals[_DISTRIBUTED]
    _resolve, _main = originals[_RESOLVE], originals[_MAIN]
    return {
        _ASK: ask,
        _ONCE: generate_once,
        _READ: get_raw_data,
        _CONSUME: consume,
        _SYNCHRONIZE: synchronize,
        _DISTRIBUTED: setup_distributed,
        _RESOLVE: resolve,
        _MAIN: main,
    }
