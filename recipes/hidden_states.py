"""Hidden states written to files by vLLM, without an abandoned request ending the engine.

vLLM's connector notes where a request's states go when it is first scheduled, and up to pull
request 56841 (merged 2026-09-14; vLLM 0.32 has it) takes it for granted that it did when the
request ends. One whose client goes before that, after a time-out or as a worker that is ended, was
never noted: the KeyError ends the engine with all that it was working on, and training waits for a
new one (met on an H200 with vLLM 0.26: benchmarks/README.md). There is nothing to write for it.

Loaded by vLLM from --kv-transfer-config ("kv_connector_module_path": "recipes.hidden_states").
Run with vLLM 0.26 and 0.32.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
)


class HiddenStatesConnector(ExampleHiddenStatesConnector):
    """vLLM's own, which an aborted request does not end."""

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Upstream's: whether blocks are freed later, and what the client is told."""
        if request.request_id not in self._request_filenames:
            return False, None  # aborted before it was scheduled
        return super().request_finished(request, block_ids)
