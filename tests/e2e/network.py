"""Hosts in network namespaces of this test's own, joined by a switch; root and iproute2 needed.

    with Network(("one", "two", "train")) as network:
        host = network.start("one", "producer", {...})
        network.cut("one"); network.mend("one"); network.slow("two", mbit=2, delay_ms=50)

Nothing outside the namespaces is changed, and they are gone when the block ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300  # only bounds a test that fails


def why_not() -> str | None:
    """Why namespaces cannot be made here, or None."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"sp{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces are not permitted here: {made.stderr.strip()[:200]}"
    try:
        link = ["ip", "-n", name, "link", "add", "br0", "type", "bridge"]
        bridge = subprocess.run(link, capture_output=True, text=True)
        if bridge.returncode != 0:
            return f"this kernel makes no bridges: {bridge.stderr.strip()[:200]}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return None


class Network:
    """One namespace a host, and one with the switch."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = tuple(hosts)
        self._tag = f"sp{os.getpid()}"
        self._started: list[Host] = []

    def address(self, host: str) -> str:
        return f"10.77.0.{self._hosts.index(host) + 1}"

    def __enter__(self) -> Network:
        try:
            self._ip("netns", "add", self._switch)
            self._ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            self._ip("-n", self._switch, "link", "set", "br0", "up")
            for host in self._hosts:
                self._join(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for started in self._started:
            started.stop()
        for name in (*map(self._space, self._hosts), self._switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def start(
        self,
        host: str,
        role: str,
        settings: Mapping[str, Any],
        module: str = "tests.e2e.network_host",
    ) -> Host:
        """Runs `module` there, on a host of that name, which nobody can look up."""
        enter = ["ip", "netns", "exec", self._space(host), "unshare", "--uts", "sh", "-c"]
        named = ['hostname "$0" && exec "$@"', host, sys.executable]
        started = Host([*enter, *named, "-m", module, role], settings)
        self._started.append(started)
        return started

    def cut(self, host: str) -> None:
        """Nothing passes its cable."""
        self._ip("-n", self._switch, "link", "set", self._port(host), "down")

    def mend(self, host: str) -> None:
        self._ip("-n", self._switch, "link", "set", self._port(host), "up")

    def slow(self, host: str, mbit: float, delay_ms: int) -> str:
        """What it sends is late and slow; where this kernel has no netem, slow only.

        Returns:
            The discipline in use.
        """
        add = ["tc", "-n", self._space(host), "qdisc", "add", "dev", "eth0", "root"]
        netem = [*add, "netem", "delay", f"{delay_ms}ms", "rate", f"{mbit}mbit"]
        if subprocess.run(netem, capture_output=True).returncode == 0:
            return "netem"
        bucket = [*add, "tbf", "rate", f"{mbit}mbit", "burst", "16kbit", "latency", "400ms"]
        subprocess.run(bucket, check=True)
        return "tbf"

    def _join(self, host: str) -> None:
        space = self._space(host)
        self._ip("netns", "add", space)
        self._ip(
            "-n", space, "link", "add", "eth0", "type", "veth",
            "peer", "name", self._port(host), "netns", self._switch,
        )  # fmt: skip
        self._ip("-n", self._switch, "link", "set", self._port(host), "master", "br0", "up")
        self._ip("-n", space, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._ip("-n", space, "link", "set", device, "up")

    @property
    def _switch(self) -> str:
        return f"{self._tag}switch"

    def _space(self, host: str) -> str:
        return f"{self._tag}{host}"

    def _port(self, host: str) -> str:
        return f"port{self._hosts.index(host)}"

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Host:
    """A process on one of the hosts, which answers each line of JSON with one."""

    def __init__(self, command: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answers: Queue[dict[str, Any] | None] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._write(settings)

    def ask(self, what: str) -> dict[str, Any]:
        """Its answer to a command."""
        self.begin(what)
        return self.answer()

    def begin(self, what: str) -> None:
        """Gives a command, whose answer comes later."""
        self._write({"do": what})

    def answer(self) -> dict[str, Any]:
        """The next thing it says; the first one comes when it is ready."""
        try:
            found = self._answers.get(timeout=PATIENCE_S)
        except Empty:
            raise AssertionError("a host does not answer") from None
        assert found is not None, "a host's process has ended"
        return found

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_until(self, what: str, key: str, least: float) -> dict[str, Any]:
        """Asks until the answer's `key` is at least `least`."""
        until = time.monotonic() + PATIENCE_S
        while (found := self.ask(what))[key] < least:
            assert found.get("running", True), found
            assert time.monotonic() < until, found
            time.sleep(0.05)
        return found

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._answers.put(json.loads(line))
        self._answers.put(None)
