"""Runs a bench: servers, blocks, requests; every finished block is kept, and a rerun continues.

The folder holds `setup.json` (what is measured), `blocks/` (one file for each arm and block that
is finished) and, once all are, the report. A server that does not start, dies or refuses requests
does not end the bench: its arm is reported with the reason.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm
from benchmarks.asking import Cell, answer
from benchmarks.client import BenchError, Client
from benchmarks.prompts import WorkloadPrompt
from benchmarks.schedule import Visit, share, visits
from benchmarks.schema import RequestRow, Results, row_of
from recipes import environment
from recipes.run_folder import digest, write_atomically
from recipes.servers import ServerPool
from recipes.vllm import probes
from recipes.vllm_server import Endpoint, ServerError, ServerSpec, attach

# Tokens of the untimed answer that a server gives first: it pays for lazy initialisation, and
# shows whether the server counts by request (a first step drafts, so more than one is needed).
_WARM_UP_TOKENS = 8

Progress = Callable[[str, float], None]


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
        return {
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


class Bench:
    """A setup, the folder that keeps its blocks, and the servers.

    Args:
        together: all servers run side by side from the start. Starting one takes the cores that
            another's measurement needs; where they do not all fit (a GPU), each runs in its turn.
        progress: called with a line and the share of the requests that are answered.
    """

    def __init__(
        self,
        setup: Setup,
        folder: Path,
        pool: ServerPool,
        *,
        together: bool,
        progress: Progress | None = None,
    ) -> None:
        self.setup, self.folder = setup, folder
        self.pool, self.together = pool, together
        self._progress = progress or _silent
        self.refused: dict[int, str] = {}
        self._done: dict[Visit, list[RequestRow]] = {}
        self._answered = 0

    def run(self) -> Results:
        """Measure what is not measured yet. Servers that it started `together` stay up.

        Raises:
            BenchError: the folder holds another bench, or no arm could be measured.
        """
        self._claim_folder()
        everything = visits(len(self.setup.arms), self.setup.blocks)
        missing = [v for v in everything if not self._load(v)]
        if self.together:
            self._start_all(sorted({v.arm for v in missing}))
        for k, visit in enumerate(missing):
            if visit.arm in self.refused:
                continue
            following = missing[k + 1].arm if k + 1 < len(missing) else None
            try:
                with self.server(visit.arm, self.together or following == visit.arm) as end:
                    self._save(visit, self._measure(visit, end))
            except (ServerError, BenchError) as e:
                self._refuse(visit.arm, e)
        if not self._done:
            first = next(iter(self.refused.values()), "there is nothing to measure")
            raise BenchError(f"No arm could be measured; the first one: {first}")
        return self._results()

    @contextlib.contextmanager
    def server(self, arm: int, keep: bool = False) -> Iterator[Endpoint]:
        """The server of an arm, ready; stopped after the block unless it is kept."""
        found = self.setup.arms[arm]
        if found.server is None:
            spec = ServerSpec(found.spec.name, served_model(found.endpoint))
            yield attach(found.endpoint, spec)
            return
        with self.pool.lease(found.server, keep=keep) as end:
            yield end

    def client(self, end: Endpoint) -> Client:
        """A client as the setup wants it."""
        setup = self.setup
        return Client(
            end.base_url, end.model, raw=setup.raw, timeout_s=setup.timeout_s, extra=setup.request
        )

    def cell(
        self, visit: Visit, temperature: float, concurrency: int, by_request: bool = True
    ) -> Cell:
        """What the requests of one measurement share."""
        return Cell(
            self.setup.arms[visit.arm].spec, temperature, concurrency, visit.block,
            self.setup.max_tokens, self.setup.seed, by_request,
        )  # fmt: skip

    def _claim_folder(self) -> None:
        record = self.folder / "setup.json"
        mine = {"fingerprint": self.setup.fingerprint(), "settings": self.setup.settings()}
        try:
            found = json.loads(record.read_text("utf-8"))
        except FileNotFoundError:
            write_atomically(record, json.dumps(mine, indent=1, ensure_ascii=False) + "\n")
            return
        except (OSError, ValueError) as e:
            raise BenchError(f"{record} cannot be read ({e}); give another folder.") from None
        if found.get("fingerprint") != mine["fingerprint"]:
            raise BenchError(
                f"{self.folder} holds a bench with other arms, prompts, weights or settings than "
                "this one; give another --out, or remove that folder."
            )

    def _block_file(self, visit: Visit) -> Path:
        return self.folder / "blocks" / f"{visit.name}.json"

    def _load(self, visit: Visit) -> bool:
        try:
            rows = json.loads(self._block_file(visit).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        self._keep(visit, [row_of(r) for r in rows])
        return True

    def _save(self, visit: Visit, rows: list[RequestRow]) -> None:
        text = json.dumps([asdict(r) for r in rows], ensure_ascii=False)
        write_atomically(self._block_file(visit), text + "\n")
        self._keep(visit, rows)

    def _keep(self, visit: Visit, rows: list[RequestRow]) -> None:
        self._done[visit] = rows
        self._answered = sum(map(len, self._done.values()))

    def _refuse(self, arm: int, error: Exception) -> None:
        server = self.setup.arms[arm].server
        if isinstance(error, BenchError) and server is not None:
            try:
                self.pool.check(server.name)  # a request that failed because its server died
            except ServerError as died:
                error = died
        why = error.sentence if isinstance(error, ServerError) else str(error)
        if server is not None and "(HTTP 5" in why and (cause := self.pool.cause(server.name)):
            why = f"{why} In its log: {cause}."
        blocks = sum(v.arm == arm for v in self._done)
        done = f" (after {blocks} of {self.setup.blocks} blocks)" if blocks else ""
        self.refused[arm] = why + done
        self._say(f"{self.setup.arms[arm].spec.key}: refused: {why}")

    def _say(self, line: str, *more: int) -> None:
        self._progress(line, (self._answered + sum(more)) / max(1, self.setup.requests))

    def _start_all(self, arms: list[int]) -> None:
        servers = [(arm, self.setup.arms[arm].server) for arm in arms]
        for arm, server in servers:
            if server is not None:
                try:
                    self.pool.prestart(server)
                except ServerError as e:
                    self._refuse(arm, e)
        for arm, server in servers:
            if server is not None and arm not in self.refused:
                self._say(f"{self.setup.arms[arm].spec.key}: its server starts")
                try:
                    with self.server(arm, keep=True):
                        pass
                except ServerError as e:
                    self._refuse(arm, e)

    def _measure(self, visit: Visit, end: Endpoint) -> list[RequestRow]:
        setup = self.setup
        arm = setup.arms[visit.arm].spec
        rows: list[RequestRow] = []
        with self.client(end) as client:
            warm = client.ask(setup.prompts[0].messages, "the first, untimed prompt",
                              temperature=0.0, max_tokens=_WARM_UP_TOKENS)  # fmt: skip
            for concurrency in setup.concurrencies:
                for temperature in setup.temperatures:
                    cell = self.cell(visit, temperature, concurrency, warm.spent is not None)
                    for kind, prompts in setup.workloads.items():
                        asked = share(prompts, visit.block, setup.blocks, concurrency)
                        line = (
                            f"block {visit.block + 1} of {setup.blocks}, {arm.key}: {kind}, "
                            f"T = {temperature:g}, {concurrency} at once"
                        )
                        tell = partial(self._say, line, len(rows))
                        rows += answer(client, cell, asked, tell)
        if arm.n and rows and _could_count(rows) and not any(r.drafts for r in rows):
            raise BenchError(
                f"{arm.n} drafted tokens a step were asked for, but the server counts no draft; "
                "is it started with a --speculative-config?"
            )
        return rows

    def _results(self) -> Results:
        setup = self.setup
        arms = tuple(
            replace(arm.spec, server_refused=self.refused.get(k))
            for k, arm in enumerate(setup.arms)
        )
        order = sorted(self._done, key=lambda v: (v.block, v.arm))
        return Results(
            created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            endpoint="raw" if setup.raw else "chat",
            body=setup.body,
            made_with=environment.describe(),
            settings=setup.settings(),
            arms=arms,
            requests=tuple(row for visit in order for row in self._done[visit]),
            prompts={p.id: p.text for p in setup.prompts},
        )


def _could_count(rows: list[RequestRow]) -> bool:
    """Whether drafts would have been seen in the server's counters alone.

    A server that counts by request drafts as it was told; a lookup method may find nothing.
    """
    by_request = any(r.counted_by == "request" for r in rows)
    return not by_request and any(r.concurrency == 1 for r in rows)


def served_model(url: str) -> str:
    """The name of the model that a user's server serves.

    Raises:
        ServerError: it does not answer.
    """
    base_url = url.rstrip("/").removesuffix("/v1")
    with probes.client_for(base_url) as client:
        if not probes.healthy(client):
            raise ServerError(f"No vLLM server answers at {base_url}; start it, or leave it out.")
        return str(client.get("/v1/models").json()["data"][0]["id"])


def _silent(_line: str, _share: float) -> None:
    pass
