"""What a server really serves, and what it did while it was measured.

A bench compares arms by what they are called. So each is asked what it serves, and its counters are
read before and after: whether it drafted as it was said to, and whether it worked for others too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from benchmarks.client import BenchError
from benchmarks.schema import ArmSpec, RequestRow
from recipes.vllm import probes
from recipes.vllm_server import ServerError, SpecCounters, read_counters

# Tokens for others, as a part of ours and in all, that a measurement bears: a probe of health, not
# traffic.
OTHERS_SHARE = 0.05
OTHERS_TOKENS = 64


@dataclass(frozen=True)
class Served:
    """`model` is the name for requests, `root` the hub id or folder that the server was given."""

    model: str
    root: str
    vllm: str

    def words(self) -> str:
        return f"{self.root} (vLLM {self.vllm or 'of unknown version'})"


def served(url: str) -> Served:
    """What a user's server serves.

    Raises:
        ServerError: it does not answer, or not as vLLM does.
    """
    base_url = url.rstrip("/").removesuffix("/v1")
    with probes.client_for(base_url) as client:
        if not probes.healthy(client):
            raise ServerError(f"No vLLM server answers at {base_url}; start it, or leave it out.")
        try:
            card = client.get("/v1/models").json()["data"][0]
            name = str(card["id"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
            raise ServerError(
                f"The server at {base_url} does not list its models as vLLM does; check the "
                "address, or leave it out."
            ) from None
        return Served(name, str(card.get("root") or name), probes.version(client))


def counters(url: str) -> SpecCounters | None:
    """The server's counters, None where it has none (a proxy)."""
    try:
        return read_counters(url)
    except ServerError:
        return None


def check_work(
    arm: ArmSpec,
    before: SpecCounters | None,
    after: SpecCounters | None,
    rows: Sequence[RequestRow],
    untimed: int,
) -> None:
    """Whether the counters of one visit are those of this arm's requests alone.

    Args:
        untimed: tokens that were asked for besides those of `rows`.

    Raises:
        BenchError: it drafted although it should not, or at another depth, or served others.
    """
    if before is None or after is None:
        return
    spent = after - before
    if arm.n == 0 and spent.drafts:
        raise BenchError(
            f"This arm should not draft, but its server made {spent.drafts:.0f} drafts while it "
            f"was measured: it speculates with n = {len(spent.accepted_per_pos)}. Is it the "
            "address of another arm?"
        )
    if spent.drafts and len(spent.accepted_per_pos) != arm.n:
        raise BenchError(
            f"{arm.n} drafted tokens a step were asked for, but the server counts "
            f"{len(spent.accepted_per_pos)} positions: it is not the server of this arm."
        )
    ours = sum(r.completion_tokens for r in rows) + untimed
    others = spent.generation_tokens - ours
    if others > max(OTHERS_SHARE * ours, OTHERS_TOKENS):
        raise BenchError(
            f"The server answered others too while it was measured ({others:.0f} tokens besides "
            f"the bench's {ours}), so its times mean nothing; keep other clients away from it."
        )
