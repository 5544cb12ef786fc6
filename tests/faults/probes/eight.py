"""Eight scripted producers, of which as many as a test says die at the sight of one prompt."""

from __future__ import annotations

from pathlib import Path

from tests.faults.probes.scripted_producer import ScriptedProducer

_Prompt = tuple[int, ...]


class Eight:
    """Each has a folder of its own below `folder`.

    Attributes:
        servers: up.
        died: how many were stopped by a prompt.
    """

    def __init__(self, folder: Path) -> None:
        self.died, self._may_die = 0, 0
        self.servers = []
        for number in range(8):
            (folder / str(number)).mkdir(parents=True)
            self.servers.append(_Member(folder / str(number), self))

    @property
    def urls(self) -> str:
        return ",".join(server.url for server in self.servers)

    def die_at(self, prompt: _Prompt, number: int) -> None:
        """The first `number` of them that are asked for it, one after the other, for good."""
        self._may_die = number
        for server in self.servers:
            server.stop_at(prompt)

    def answer_500_to(self, prompt: _Prompt) -> None:
        for server in self.servers:
            server.plan[prompt] = ["500"]

    def asked(self, prompt: _Prompt) -> int:
        return sum(server.asked.count(prompt) for server in self.servers)


class _Member(ScriptedProducer):
    def __init__(self, folder: Path, group: Eight) -> None:
        self._group = group
        super().__init__(folder)

    def _stop(self, then_up_after_s: float | None) -> None:
        self._group.died += 1
        if self._group.died == self._group._may_die:
            for server in self._group.servers:
                server._stops.clear()
        super()._stop(then_up_after_s)
