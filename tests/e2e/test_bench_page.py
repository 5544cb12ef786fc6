"""The report's page in a real browser: it renders, says nothing on the console, shows the results.

Needs Chromium (Debian's package `chromium` will do) and the package `websockets`, which vLLM's
server brings; skipped without them.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import write_report
from tests.unit.test_bench_report import make

websockets = pytest.importorskip("websockets", reason="the package websockets is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)

# What the browser knows of the page: numbers, pictures, what was loaded, whether anything spills.
LOOK = """JSON.stringify({
  cells: [...document.querySelectorAll('td[data-key]')].map(c => [c.dataset.key, c.innerText]),
  widths: [...document.images].map(i => i.naturalWidth),
  loads: performance.getEntriesByType('resource').map(e => e.name.slice(0, 60)),
  spills: document.documentElement.scrollWidth > window.innerWidth,
  height: document.body.getBoundingClientRect().height,
  embedded: JSON.parse(document.getElementById('summary').textContent),
})"""


@contextmanager
def browser(folder: Path) -> Iterator[str]:
    """A headless browser; gives the address of its DevTools."""
    process = subprocess.Popen(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0",
            f"--user-data-dir={folder}", "about:blank",
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"ws://\S+", line):
                yield found.group()
                break
        else:
            pytest.fail("the browser ended before it was ready")
    finally:
        process.terminate()
        process.communicate()


async def visit(address: str, page: Path) -> tuple[list[str], dict[str, Any]]:
    """Opens the page; gives what came on the console, and what LOOK finds."""
    said: list[str] = []
    async with websockets.connect(address, max_size=None) as line:
        number = 0

        async def call(method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            message = {"id": number, "method": method, "params": params}
            await line.send(json.dumps(message | ({"sessionId": session} if session else {})))
            while True:
                answer = json.loads(await line.recv())
                note(answer)
                if answer.get("id") == number:
                    return dict(answer["result"])

        def note(event: dict[str, Any]) -> None:
            if event.get("method") == "Page.loadEventFired":
                loaded.set()
            if event.get("method") in (
                "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded",
            ):  # fmt: skip
                said.append(json.dumps(event["params"]))

        loaded = asyncio.Event()
        target = (await call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await call("Target.attachToTarget", targetId=target, flatten=True)
        session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await call(f"{domain}.enable", session)
        await call("Page.navigate", session, url=page.as_uri())
        while not loaded.is_set():
            note(json.loads(await asyncio.wait_for(line.recv(), 60)))
        seen = await call("Runtime.evaluate", session, expression=LOOK)
        return said, json.loads(seen["result"]["value"])


def test_the_page_renders_without_an_error_and_shows_the_results(tmp_path: Path) -> None:
    write_report(make(), tmp_path)
    control = tmp_path / "control.html"
    control.write_text(
        '<script>nothing()</script><img src="missing.png"><p id="summary">{}</p>', "utf-8"
    )
    with browser(tmp_path / "profile") as address:
        said, _ = asyncio.run(visit(address, control))
        assert any("nothing is not defined" in s for s in said)  # errors are seen where there are
        said, seen = asyncio.run(visit(address, tmp_path / "report.html"))
    assert said == []
    assert [e for e in seen["loads"] if not e.startswith("data:")] == []
    assert len(seen["widths"]) == 3
    assert min(seen["widths"]) > 300
    assert seen["height"] > 1000
    assert not seen["spills"]
    stored = json.loads((tmp_path / "results.json").read_text("utf-8"))["summary"]
    assert seen["embedded"] == stored
    assert len(seen["cells"]) > 20
    for key, text in seen["cells"]:
        value = stored
        for part in key.split("."):
            value = value[int(part)] if part.isdigit() else value[part]
        digits = len(text.partition(".")[2])
        assert text.lstrip("+") == f"{value:.{digits}f}", key
