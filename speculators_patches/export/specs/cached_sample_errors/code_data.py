"""For `speculators/train/data.py`."""

import torch


def guard(self, max_consecutive_generation_failures):
    # Its own count: cache hits must not reset that of failed generations.
    self.cache_recovery = GenerationRecoveryGuard(
        retries=0,
        max_consecutive_failures=max_consecutive_generation_failures,
    )


def _load_cached(self, index: int, file_idx: int) -> dict[str, torch.Tensor] | None:
    """Return a validated cached sample, or ``None`` if there is none.

    Raises an exception if there is one and it can't be used.
    """
    cached_hs = self.transfer.get_cached(file_idx)
    if cached_hs is not None:
        expected = self.data[index]["input_ids"]
        token_ids = cached_hs.get("token_ids")
        if token_ids is not None and not torch.equal(token_ids, expected):
            raise ValueError("its tokens are not those of the data set's row")
        check_hidden_states(cached_hs, expected.tolist())
    return cached_hs


def read(self, index, file_idx):
    cached_hs = self.cache_recovery.run(
        lambda: self._load_cached(index, file_idx),
        description=(
            f"Cached hidden states can't be used for dataset index {index}, "
            f"file index {file_idx}"
        ),
    )
    if isinstance(cached_hs, SampleUnavailable):
        return cached_hs
