"""Hidden states written to files by vLLM, without an abandoned request ending the engine.

A client that goes before its request is first scheduled, after a time-out or as a worker that is
ended, ends the engine of vLLM 0.26 to 0.30 with all that it was working on, and training waits for
a new one. Two lines are at fault: the scheduler's half of the connector looks up where the states
of a request go, which it notes when it schedules it; and the worker's half says of every request
that ends that its states were sent, also of one whose blocks are free already. Pull request 56841
(merged 2026-09-14; vLLM 0.31 has it) cures both. Met on an H200 and on a CPU, cured on a CPU, with
vLLM 0.26 (benchmarks/README.md).

Loaded by vLLM from --kv-transfer-config ("kv_connector_module_path": "recipes.hidden_states").
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
)

Finished = tuple[bool, dict[str, Any] | None]


class HiddenStatesConnector(ExampleHiddenStatesConnector):
    """vLLM's own, which an aborted request does not end."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._sending: set[str] = set()  # the worker's half: requests whose states are written

    def request_finished(self, request: Any, block_ids: list[int]) -> Finished:
        """Upstream's: whether blocks are freed later, and what the client is told."""
        if self._never_scheduled(request):
            return False, None
        return super().request_finished(request, block_ids)

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> Finished:
        """The same, which upstream asks where there are several groups of layers."""
        if self._never_scheduled(request):
            return False, None
        return super().request_finished_all_groups(request, block_ids)

    def _never_scheduled(self, request: Any) -> bool:
        return request.request_id not in self._request_filenames

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Upstream's, of the requests alone whose blocks wait for it."""
        if self.has_connector_metadata():
            saves = getattr(self._get_connector_metadata(), "pending_saves", ())
            self._sending.update(pending.req_id for pending in saves)
        sent, received = super().get_finished(finished_req_ids)
        told = (sent or set()) & self._sending
        # A copy may take several steps. Ranks that copy nothing tell of nothing, since 0.31.
        self._sending -= told | (finished_req_ids - self._accumulated_finished_req_ids)
        return told or None, received
