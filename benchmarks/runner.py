"""Runs a bench: servers, blocks, requests; every finished block is kept, and a rerun continues.

The folder holds `setup.json` (what is measured), `blocks/` (one file for each arm and block that
is finished) and, once all are, the report. A server that does not start, dies or refuses requests
does not end the bench: its arm is reported with the reason.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.asking import Cell, answer
from benchmarks.bench_setup import Setup
from benchmarks.blocks import Asked, BlockFolder
from benchmarks.client import BenchError, Client
from benchmarks.schedule import Visit, share, visits
from benchmarks.schema import RequestRow, Results
from benchmarks.served import check_work, counters, served
from recipes import environment
from recipes.servers import ServerPool
from recipes.vllm_server import Endpoint, ServerError, ServerSpec, attach

# Tokens of the untimed answer that a server gives first: it pays for lazy initialisation, and
# shows whether the server counts by request (a first step drafts, so more than one is needed).
_WARM_UP_TOKENS = 8

Progress = Callable[[str, float], None]


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
        self._blocks = BlockFolder(folder)
        self._made_with: dict[str, Any] = {}
        # Nothing that an earlier bench asked of a user's server may be found in its prefix cache.
        self._salt = f"{time.time_ns():x}"
        self.pool, self.together = pool, together
        self._progress = progress or _silent
        self.refused: dict[int, str] = {}
        self._done: dict[Visit, list[RequestRow]] = {}
        self._answered = 0

    def run(self) -> Results:
        """Measure what is not measured yet. Servers that it started `together` stay up.

        Raises:
            BenchError: the folder holds another bench, two arms claim to be the base of one body,
                or no arm could be measured.
        """
        fingerprint = self.setup.fingerprint()
        endpoints = self._identify()
        self._check_bases()
        self._made_with = environment.describe()
        self._blocks.claim(fingerprint, self.setup.settings(), self._made_with, endpoints)
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
            spec = ServerSpec(found.spec.name, served(found.endpoint).model)
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
        arm = self.setup.arms[visit.arm].spec
        # A server may be kept from one block to the next, or not: none finds another's prefixes.
        salt = f"{self._salt} {arm.key} {visit.block}"
        return Cell(
            arm, temperature, concurrency, visit.block, self.setup.max_tokens, self.setup.seed,
            by_request, salt,
        )  # fmt: skip

    def _identify(self) -> dict[str, str]:
        """Asks the user's servers what they serve, which becomes their arms' body."""
        arms, found = list(self.setup.arms), {}
        for k, arm in enumerate(arms):
            if arm.server is not None:
                continue
            try:
                there = served(arm.endpoint)
            except ServerError as e:
                self._refuse(k, e)
                continue
            arms[k] = replace(arm, spec=replace(arm.spec, body=there.root))
            found[arm.spec.key] = there.words()
        self.setup = replace(self.setup, arms=tuple(arms))
        return found

    def _check_bases(self) -> None:
        bases: dict[Any, str] = {}
        for k, arm in enumerate(self.setup.arms):
            if arm.spec.n == 0 and k not in self.refused:
                other = bases.setdefault(arm.spec.like, arm.spec.name)
                if other != arm.spec.name:
                    raise BenchError(
                        f"{other!r} and {arm.spec.name!r} are both without speculation on the same "
                        "body: which of them the others are compared with is not known; leave one "
                        "out."
                    )

    def _load(self, visit: Visit) -> bool:
        rows = self._blocks.load(visit, self._expected(visit))
        if rows is not None:
            self._keep(visit, rows)
        return rows is not None

    def _expected(self, visit: Visit) -> list[Asked]:
        setup = self.setup
        return [
            (p.id, temperature, concurrency)
            for concurrency in setup.concurrencies
            for temperature in setup.temperatures
            for prompts in setup.workloads.values()
            for p in share(prompts, visit.block, setup.blocks, concurrency)
        ]

    def _save(self, visit: Visit, rows: list[RequestRow]) -> None:
        self._blocks.save(visit, rows)
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
        before = counters(end.base_url)
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
        check_work(arm, before, counters(end.base_url), rows, warm.completion_tokens)
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
            made_with=self._made_with,
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


def _silent(_line: str, _share: float) -> None:
    pass
