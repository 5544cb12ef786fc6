"""For vLLM's `example_hidden_states_connector.py`."""

import torch


class _CompletedCopy:
    """Stands in for the CUDA event of a copy that was done when the call returned."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


def copy_done_is_either():
    copy_done: torch.cuda.Event | _CompletedCopy


def in_host_memory(self, slot_mapping, num_tokens):
    if self._kv_cache.device.type == "cpu":
        # Indexing copies, so the blocks may be freed as soon as this returns;
        # nothing is pinned, there is no device to copy from.
        pinned_hs = extract_from_kv_cache(
            self._kv_cache, slot_mapping, num_tokens
        ).contiguous()
        copy_done = _CompletedCopy()
    else:
        ...
