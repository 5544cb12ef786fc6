"""What a bench measures: arms, prompts, temperatures, concurrencies; and when two are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm
from benchmarks.prompts import WorkloadPrompt
from recipes.run_folder import digest
from recipes.scaled_drafter import recorded


@dataclass(frozen=True)
class Setup:
    """What a bench measures.

    Attributes:
        body: its name or folder, for the report.
        concurrencies: requests at once.
        blocks: shares of the prompts between which arms take turns.
        max_tokens: longest answer.
        raw: bare text without a chat template; every output says so.
        request: merged into every request.
        identity: digests of what lies behind the names (weights in folders); a rerun continues only
            if they are the same.
    """

    body: str
    arms: tuple[Arm, ...]
    prompts: tuple[WorkloadPrompt, ...]
    temperatures: tuple[float, ...] = (0.0, 0.7)
    concurrencies: tuple[int, ...] = (1,)
    blocks: int = 4
    max_tokens: int = 256
    seed: int = 0
    raw: bool = False
    timeout_s: float = 600.0
    request: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)

    @property
    def workloads(self) -> dict[str, list[WorkloadPrompt]]:
        """The prompts by workload."""
        found: dict[str, list[WorkloadPrompt]] = {}
        for p in self.prompts:
            found.setdefault(p.kind, []).append(p)
        return found

    @property
    def requests(self) -> int:
        """Timed requests of the whole bench."""
        cells = len(self.temperatures) * len(self.concurrencies)
        return len(self.arms) * len(self.prompts) * cells

    def settings(self) -> dict[str, Any]:
        """How it was asked, for the report."""
        heads = self._head_temperatures()
        return {
            **({"head_temperatures": heads} if heads else {}),
            "prompts": {name: len(found) for name, found in self.workloads.items()},
            "temperatures": list(self.temperatures),
            "concurrencies": list(self.concurrencies),
            "blocks": self.blocks,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "raw": self.raw,
            "request": dict(self.request),
            "server": self._server_settings(),
        }

    def _head_temperatures(self) -> dict[str, float]:
        """By arm, what the logits of a drafter in a folder were divided by; those at 1 are not."""
        found = {}
        for arm in self.arms:
            model = Path(str((arm.spec.speculative_config or {}).get("model", "")))
            if (model / "config.json").is_file():
                value = recorded(model)
                if value != 1:
                    found[arm.spec.name] = value
        return found

    def _server_settings(self) -> dict[str, Any]:
        """What all servers of ours have in common, drafters and an arm's own flags aside."""
        first = next((a.server for a in self.arms if a.server is not None and not a.spec.n), None)
        names = ("dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization",
                 "cpu_threads", "enforce_eager", "extra_args")  # fmt: skip
        return {} if first is None else {name: getattr(first, name) for name in names}

    def fingerprint(self) -> str:
        """Two setups with the same one measure the same."""
        arms = [(asdict(a.spec), a.endpoint) for a in self.arms]
        prompts = [asdict(p) for p in self.prompts]
        return digest([self.body, self.settings(), arms, prompts, dict(self.identity)])
