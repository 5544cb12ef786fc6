"""A cached sample that cannot be used costs that sample, and the log says which file it was.

Upstream reads the cache outside its retry guard: a truncated file, one without the expected
tensors, or a lock held for longer than 10 s ends the run. A file whose rows do not match its tokens
is worse, it is packed out of step. Here each of them is one unavailable sample, counted as a
failure; as many in a row as upstream allows failed generations (20) end the run as those do.

How long to wait for a lock: SPECULATORS_PATCHES_LOCK_WAIT_S, default 10 s as upstream.
0.7 and older end the run as well and are not covered: there a sample cannot be unavailable.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches import stops
from speculators_patches.registry import Patch, Target

_INIT = "speculators.train.data:ArrowDataset.__init__"
_READ = "speculators.train.data:ArrowDataset._get_raw_data"
_LOADER = "speculators.train.dataloader:_setup_dataloader"

PATCH = Patch(
    name="cached_sample_errors",
    defect="A corrupt, truncated, locked or mismatched cached file of hidden states ends the run.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.train.data",
            "ArrowDataset.__init__",
            fingerprints={"==0.8.1": "dbef57525f7d7a51", "==0.9.0": "7ee4e336ae033982"},
        ),
        Target(
            "speculators.train.data",
            "ArrowDataset._get_raw_data",
            fingerprints={"==0.8.1": "86fea1bf97ba7ea9", "==0.9.0": "895579f24b1fd49c"},
        ),
        Target(
            "speculators.train.dataloader",
            "_setup_dataloader",
            fingerprints={"==0.8.1": "96c8b6fe7db113ae", "==0.9.0": "cc6f8b1422d2aeac"},
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream reads the cache inside its recovery guard",
    proof="tests/faults/test_cached_sample_errors.py::test_each_bad_file_costs_one_sample",
    tested=("0.8.1", "0.9.0"),
)

logger = logging.getLogger("speculators")

_init: Any = None
_get_raw_data: Any = None
_setup_dataloader: Any = None


class CachedSampleError(Exception):
    """A cached file cannot be used; the text names it and says why."""


class CheckedTransfer:
    """A `HiddenStatesTransfer` whose cached samples are either sound or a `CachedSampleError`.

    Everything else is the transfer's own. Goes to DataLoader workers with the data set.

    Attributes:
        row: (hidden states per token, hidden size) that the trainer expects, None: not checked.
    """

    def __init__(self, transfer: Any) -> None:
        self.transfer = transfer
        self.row: tuple[int, int] | None = None
        self.failures = 0  # in a row

    def __getattr__(self, name: str) -> Any:
        if name == "transfer":  # not set yet: this object is just being unpickled
            raise AttributeError(name)
        return getattr(self.transfer, name)

    def get_cached(self, file_idx: int) -> dict[str, Any] | None:
        """The sample (hidden_states [tokens, layers, hidden], token_ids [tokens]) or None.

        Raises:
            CachedSampleError: the file is there and cannot be used.
        """
        folder = getattr(self.transfer, "hidden_states_path", None)
        name = f"hs_{file_idx}.safetensors"
        path = Path(folder) / name if folder is not None else Path(name)
        try:
            wait_until_unlocked(path.with_name(path.name + ".lock"))
            sample: dict[str, Any] | None = self.transfer.get_cached(file_idx)
        except Exception as error:
            cause = str(error).partition("\n")[0]
            raise CachedSampleError(f"{path}: {type(error).__name__}: {cause}") from error
        problem = None if sample is None else self._problem(sample)
        if problem:
            raise CachedSampleError(f"{path}: {problem}")
        return sample

    def _problem(self, sample: dict[str, Any]) -> str | None:
        missing = {"token_ids", "hidden_states"} - sample.keys()
        if missing:
            return f"it lacks {' and '.join(sorted(missing))}"
        states, tokens = sample["hidden_states"], sample["token_ids"]
        if states.ndim != 3 or tokens.ndim != 1 or len(states) != len(tokens):
            return f"hidden states {tuple(states.shape)} do not fit tokens {tuple(tokens.shape)}"
        if self.row is not None and tuple(states.shape[1:]) != self.row:
            return f"{tuple(states.shape[1:])} hidden states a token, the drafter needs {self.row}"
        return None


def wait_until_unlocked(lock: Path, limit: float | None = None) -> None:
    """Waits until no live process holds `lock`; a lock file that nobody holds is none.

    Args:
        limit: seconds; None: SPECULATORS_PATCHES_LOCK_WAIT_S.

    Raises:
        TimeoutError: it is still held after that.
    """
    if limit is None:
        limit = stops.setting("SPECULATORS_PATCHES_LOCK_WAIT_S", 10.0, 0.0, 86400.0)
    deadline = time.monotonic() + limit
    while True:
        try:
            with lock.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        except FileNotFoundError:
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"still locked after {limit:g} s ({lock.name})") from None
        time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))


def init(self: Any, *args: Any, **kwargs: Any) -> None:
    """Upstream's `ArrowDataset.__init__`, with a checked cache."""
    _init(self, *args, **kwargs)
    self.transfer = CheckedTransfer(self.transfer)


def setup_dataloader(dataset: Any, total_seq_len: int, hidden_size: int, *rest: Any,
                     **kwargs: Any) -> Any:  # fmt: skip
    """Upstream's, after telling the data set which shape the drafter needs."""
    layers = kwargs.get("num_target_layers")
    if layers is not None and isinstance(getattr(dataset, "transfer", None), CheckedTransfer):
        dataset.transfer.row = (layers + 1, hidden_size)  # the last one is the target's
    return _setup_dataloader(dataset, total_seq_len, hidden_size, *rest, **kwargs)


def get_raw_data(self: Any, index: int) -> Any:
    """Upstream's sample, or `SampleUnavailable` naming the cached file that cannot be used."""
    from speculators.train.recovery import SampleUnavailable

    try:
        sample = _get_raw_data(self, index)
    except CachedSampleError as error:
        return _unavailable(self, index, str(error))
    if isinstance(sample, SampleUnavailable) and sample.reason.startswith("Cached token ids"):
        name = f"hs_{self._map_to_file_idx(index)}.safetensors"
        path = getattr(self.transfer, "hidden_states_path", Path()) / name
        return _unavailable(self, index, f"{path}: its tokens are not those of the data set's row")
    if isinstance(sample, dict) and isinstance(self.transfer, CheckedTransfer):
        self.transfer.failures = 0
    return sample


def _unavailable(dataset: Any, index: int, reason: str) -> Any:
    from speculators.train.recovery import SampleUnavailable

    logger.warning(f"sample {index} is left out: {reason}")
    failures = 1
    if isinstance(dataset.transfer, CheckedTransfer):
        failures = dataset.transfer.failures = dataset.transfer.failures + 1
    return SampleUnavailable(
        reason=reason,
        counts_as_failure=True,
        consecutive_failures=failures,
        fatal=failures >= dataset.generation_recovery.max_consecutive_failures,
    )


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _init, _get_raw_data, _setup_dataloader
    _init, _get_raw_data = originals[_INIT], originals[_READ]
    _setup_dataloader = originals[_LOADER]
    return {_INIT: init, _READ: get_raw_data, _LOADER: setup_dataloader}
