"""vLLM's speculation counters as snapshots that can be subtracted."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import httpx
from prometheus_client.parser import text_string_to_metric_families

from recipes.vllm.errors import ServerError

_PREFIX = "vllm:spec_decode_num_"


@dataclass(frozen=True)
class SpecCounters:
    """Totals since the server started, or between two snapshots.

    Attributes:
        drafts: times the drafter proposed.
        draft_tokens: tokens it proposed.
        accepted_tokens: those the body accepted.
        accepted_per_pos: accepted at position 0, 1, ...; empty without a drafter.
        generation_tokens: tokens answered.
        prompt_tokens: tokens of prompts.
    """

    drafts: float = 0
    draft_tokens: float = 0
    accepted_tokens: float = 0
    accepted_per_pos: tuple[float, ...] = ()
    generation_tokens: float = 0
    prompt_tokens: float = 0

    def __sub__(self, earlier: SpecCounters) -> SpecCounters:
        pairs = zip_longest(self.accepted_per_pos, earlier.accepted_per_pos, fillvalue=0.0)
        return SpecCounters(
            self.drafts - earlier.drafts,
            self.draft_tokens - earlier.draft_tokens,
            self.accepted_tokens - earlier.accepted_tokens,
            tuple(now - then for now, then in pairs),
            self.generation_tokens - earlier.generation_tokens,
            self.prompt_tokens - earlier.prompt_tokens,
        )

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Per position, of all drafts (unconditional, so it never rises); empty without drafts."""
        return tuple(at / self.drafts for at in self.accepted_per_pos) if self.drafts else ()

    @property
    def conditional_acceptance(self) -> tuple[float | None, ...]:
        """Per position, of the drafts accepted up to the one before; None where there are none."""
        before = (self.drafts, *self.accepted_per_pos)
        pairs = zip(self.accepted_per_pos, before, strict=False)
        return tuple(at / of if of else None for at, of in pairs)

    @property
    def mean_accepted_length(self) -> float | None:
        """Tokens a step, the body's own included; None without drafts."""
        return 1 + self.accepted_tokens / self.drafts if self.drafts else None


def parse_counters(text: str) -> SpecCounters:
    """The counters in what `/metrics` answers, summed over engines and models."""
    totals: dict[str, float] = {}
    positions: dict[int, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == _PREFIX + "accepted_tokens_per_pos_total":
                at = int(sample.labels["position"])
                positions[at] = positions.get(at, 0) + sample.value
            elif sample.name.startswith("vllm:") and sample.name.endswith("_total"):
                totals[sample.name] = totals.get(sample.name, 0) + sample.value
    return SpecCounters(
        drafts=totals.get(_PREFIX + "drafts_total", 0),
        draft_tokens=totals.get(_PREFIX + "draft_tokens_total", 0),
        accepted_tokens=totals.get(_PREFIX + "accepted_tokens_total", 0),
        accepted_per_pos=tuple(
            positions.get(at, 0) for at in range(max(positions, default=-1) + 1)
        ),
        generation_tokens=totals.get("vllm:generation_tokens_total", 0),
        prompt_tokens=totals.get("vllm:prompt_tokens_total", 0),
    )


def read_counters(base_url: str, timeout: float = 30.0) -> SpecCounters:
    """A snapshot of a server's counters.

    Args:
        base_url: e.g. `http://127.0.0.1:8000`, with or without `/v1`.
        timeout: seconds.

    Raises:
        ServerError: it does not answer.
    """
    url = base_url.rstrip("/").removesuffix("/v1") + "/metrics"
    try:
        reply = httpx.get(url, timeout=timeout)
        reply.raise_for_status()
    except httpx.HTTPError as error:
        raise ServerError(
            f"{url} does not give vLLM's counters ({error}); is the server still running?"
        ) from None
    return parse_counters(reply.text)
