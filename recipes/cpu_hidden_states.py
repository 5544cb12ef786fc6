"""Hidden states written to files by a vLLM that runs on a CPU.

vLLM's ExampleHiddenStatesConnector copies through a CUDA stream into pinned memory, neither of
which exists on a CPU. Here the states are taken from the KV cache, already in ordinary memory, when
a request ends. Each file appears whole: it is written beside its name and renamed. On a GPU
`hidden_states` is used as it is and this one refuses to load.

Loaded by vLLM from --kv-transfer-config ("kv_connector_module_path": "recipes.cpu_hidden_states").
Run with vLLM 0.26 and 0.32. Source of the file layout: vLLM's example_hidden_states_connector.py.
"""

from __future__ import annotations

import fcntl
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as upstream

from recipes.hidden_states import HiddenStatesConnector


class _Done:
    """Stands in for the CUDA event of a copy that was complete when the call returned."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None


class CpuHiddenStatesConnector(HiddenStatesConnector):
    """Writes hidden_states [tokens, layers, hidden size] and token_ids [tokens] per request."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Upstream's, refusing caches that are not on a CPU."""
        super().register_kv_caches(kv_caches)
        assert self._kv_cache is not None
        if self._kv_cache.device.type != "cpu":
            raise ValueError(
                "CpuHiddenStatesConnector is for vLLM on a CPU; this KV cache is on "
                f"{self._kv_cache.device}: use HiddenStatesConnector there."
            )

    def _submit_async_write(self, pending: upstream.PendingSave) -> None:
        """Takes one finished request's states out of the cache; a thread writes the file."""
        if not self._is_tp_rank_zero:
            return
        assert self._kv_cache is not None
        assert pending.req_id not in self._req_futures, f"{pending.req_id} is already being saved"
        blocks = torch.tensor(pending.block_ids, dtype=torch.long)
        slots = blocks[:, None] * self._block_size + torch.arange(self._block_size)
        # Indexing copies, so the cache's blocks may be freed as soon as this returns.
        states = upstream.extract_from_kv_cache(
            self._kv_cache, slots.flatten(), pending.token_ids.shape[0]
        )
        tensors = {"hidden_states": states.contiguous(), "token_ids": pending.token_ids.clone()}
        done = _Done()
        lock = self._lock_fds.pop(pending.req_id, None)
        if lock is None and self.use_lock:
            lock = _locked(pending.filename + ".lock")
        future = self._executor.submit(self._write_tensors, tensors, done, pending.filename, lock)
        self._req_copy_events[pending.req_id] = done
        self._req_futures[pending.req_id] = future
        future.add_done_callback(partial(self._on_write_done, pending.req_id))

    @staticmethod
    def _write_tensors(
        tensors: dict[str, torch.Tensor], event: Any, filename: str, lock_fd: int | None
    ) -> None:
        """Publishes the file, then releases the lock that readers wait for."""
        staging = f"{filename}.{os.getpid()}.tmp"
        try:
            Path(filename).parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, staging)
            Path(staging).replace(filename)
        finally:
            Path(staging).unlink(missing_ok=True)
            if lock_fd is not None:
                os.close(lock_fd)


def _locked(path: str) -> int:
    """An open descriptor of a file that it has locked exclusively."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
