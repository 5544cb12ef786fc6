"""What timed engines say about costs: which rows count, and the break-even of each.

For `serving_steps`, which times them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from benchmarks.break_even import StepCost

TOLERANCE = 1.05


@dataclass(frozen=True)
class Engine:
    """One configuration of vLLM.

    Args:
        n: drafted tokens a step; 0 = no speculation.
        drafting: draft_sample_method.
        kv: --kv-cache-dtype.
    """

    n: int
    drafting: str = "greedy"
    kv: str = "fp8"

    @classmethod
    def parse(cls, text: str) -> Engine:
        """`n[:drafting[:kv]]`; an empty part means its default."""
        n, drafting, kv = [*text.split(":"), "", ""][:3]
        if (
            not n.isdecimal()
            or text.count(":") > 2
            or drafting not in ("", "greedy", "probabilistic")
        ):
            raise typer.BadParameter(
                f"--engine {text}: expected n[:greedy|probabilistic[:KV type]], such as 4 or "
                "4:probabilistic:auto."
            )
        return cls(int(n), drafting or cls.drafting, kv or cls.kv)

    @property
    def name(self) -> str:
        how = f", {self.drafting}" if self.n else ""
        return f"n = {self.n}{how}, {self.kv} KV"


def speculation(engine: Engine, drafter: Path, acceptance: float) -> dict[str, Any] | None:
    """vLLM's speculative config; None for n = 0. Acceptance 0: the usual rejection sampling.

    Probabilistic drafts have the usual one at any acceptance: vLLM's V1 runner (of Gemma 4's) keeps
    the drafter's distribution under no other (`GPUModelRunner`, vLLM 0.26 to 0.32).
    """
    if engine.n == 0:
        return None
    config: dict[str, Any] = {
        "method": "eagle3", "model": str(drafter), "num_speculative_tokens": engine.n,
        "draft_sample_method": engine.drafting, "draft_load_config": {"load_format": "dummy"},
    }  # fmt: skip
    if acceptance and engine.drafting == "greedy":
        config |= {
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_rates": [acceptance ** (k + 1) for k in range(engine.n)],
        }
    return config


def disturbed(engines: list[dict[str, Any]]) -> set[tuple[Engine, int]]:
    """Engines and concurrencies at which verifying took longer than with as much or more to verify.

    The work only grows with drafted tokens and with requests, so something else held these up.
    """
    cells = [
        (Engine(**found["engine"]), row["concurrency"], row["step_s"] - row["draft_s"])
        for found in engines
        for row in found.get("rows", ())
    ]
    return {
        (engine, requests)
        for engine, requests, verify_s in cells
        if any(
            verify_s > TOLERANCE * least
            for other, more, least in cells
            if other.kv == engine.kv and other.n >= engine.n and more >= requests
            if (other.n, more) != (engine.n, requests)
        )
    }


def costs(
    engines: list[dict[str, Any]], acceptance: float, device: bool = False
) -> list[dict[str, Any]]:
    """Break-even rows: each engine with n > 0 beside the one without speculation of its KV type.

    Rows that something else held up (`disturbed`) are no costs and left out. With `device` the
    device's own work of a step (`busy_s`, drafting included) counts in place of its duration: no
    host holds it up, so this is what a host that is never behind would come to.
    """
    whole = "busy_s" if device else "step_s"
    held_up = set() if device else disturbed(engines)
    steps = {
        (Engine(**found["engine"]), row["concurrency"]): row
        for found in engines
        for row in found.get("rows", ())
        if row.get(whole) is not None
    }
    base = {
        (engine.kv, requests): row[whole]
        for (engine, requests), row in steps.items()
        if engine.n == 0 and (engine, requests) not in held_up
    }
    made = []
    for (engine, requests), row in steps.items():
        plain = base.get((engine.kv, requests))
        if engine.n == 0 or plain is None or (engine, requests) in held_up:
            continue
        # Timed by events, drafting has the device's idle time in it: no part of its own work.
        draft_s = 0.0 if device else row["draft_s"]
        synthetic = acceptance and engine.drafting == "greedy"
        how = f"vLLM's synthetic acceptance {acceptance:g}" if synthetic else "real acceptance"
        work = ", the device's own work" if device else ""
        cost = StepCost(
            engine.n, requests, plain, row[whole] - draft_s, draft_s,
            f"random weights, {how}{work}", f"{engine.drafting}, {engine.kv} KV",
        )  # fmt: skip
        made.append(cost.to_json())
    return made
