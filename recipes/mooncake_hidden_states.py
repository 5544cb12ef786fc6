"""Hidden states put into Mooncake by vLLM, on a GPU or on a CPU.

speculators' own connector copies through an accelerator's stream, which a CPU does not have: there
the states lie in ordinary memory and are complete when a request ends, so the stand-ins below have
nothing to wait for. On both kinds of machine its store is `recipes.mooncake_store`'s, and the
answer that a client gets names this producer, so that it does not wait for one that is gone.

Loaded by vLLM from --kv-transfer-config ("kv_connector_module_path":
"recipes.mooncake_hidden_states"). Run with vLLM 0.32, hs_connectors 0.9.0, Mooncake 0.3.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hs_connectors.mooncake_hidden_states_connector import MooncakeHiddenStatesConnector
from hs_connectors.mooncake_store import MooncakeStoreConfig, packed_layout

from recipes.mooncake_store import Patience, ProducerStore

ALIVE = "producer"  # the key of our part of the answer's metadata
_LONGEST_ROWS = 2  # that must fit, or readers wait for each other for ever


class _OnCpu:
    """What the connector needs of an accelerator's module; everything has happened already."""

    class Stream:
        def wait_event(self, event: object) -> None: ...

    class Event:
        def record(self) -> None: ...

    @staticmethod
    @contextlib.contextmanager
    def stream(_: object) -> Iterator[None]:
        yield


class PinnedMooncakeConnector(MooncakeHiddenStatesConnector):
    """Upstream's connector over a `ProducerStore`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        extra = self._kv_transfer_config.get_from_extra_config
        config = MooncakeStoreConfig.from_dict(extra("mooncake", {}))
        self._check_room(config.global_segment_size)
        # The scheduler's half of the connector and the worker's have it in common, a restarted
        # server has another one.
        self._name = f"producer-{self._kv_transfer_config.engine_id}"
        self._store = ProducerStore(config, Patience(**extra("patience", {})), self._name)

    def _check_room(self, room: int) -> None:
        rows = self._vllm_config.model_config.max_model_len
        shape = ([rows, self._num_hidden_states, self._hidden_size], self._hidden_state_dtype)
        size = packed_layout({"hidden_states": shape})[1]
        if room < _LONGEST_ROWS * size:
            raise ValueError(
                f"{room / 1e9:.3g} GB of Mooncake memory hold fewer than {_LONGEST_ROWS} samples "
                f"of {rows} tokens ({size / 1e9:.3g} GB each): raise mooncake_segment_gib."
            )

    def _device(self) -> Any:
        """See upstream's."""
        cache = self._kv_cache
        return _OnCpu if cache is not None and cache.device.type == "cpu" else super()._device()

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Upstream's; also connects, so that a server without a store does not come up."""
        super().register_kv_caches(kv_caches)
        if self._is_tp_rank_zero:
            self._ensure_store()

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Upstream's; the answer also names this producer.

        Nothing is put for a request that says that nobody will read it, as the watch's own do.
        """
        if (request.kv_transfer_params or {}).get("unread"):
            self._request_keys.pop(request.request_id, None)
            # True: upstream's worker reports it as sent all the same, which must be expected.
            return True, None
        delayed, manifest = super().request_finished(request, block_ids)
        if manifest is not None:
            manifest["metadata"][ALIVE] = self._name
        return delayed, manifest
