"""Regeneration under faults: prints what unpatched upstream does, then what the patched one did.

    python -m tests.faults.probes.durable_responses FOLDER

`broken` holds the examples that hypothesis found against the patched one, at best none.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults import stage_kills
from tests.faults.regenerating import (
    KILLED,
    ChatServer,
    conversations,
    expected,
    regenerate,
    rows_in,
    tokenizer,
    write,
)

QUICK = {
    "SPECULATORS_PATCHES_SERVER_WAIT_S": "0.2",
    "SPECULATORS_PATCHES_CONNECT_TIMEOUT_S": "5",
    "SPECULATORS_PATCHES_READ_TIMEOUT_S": "0.5",
}
TOLERANT = QUICK | {"SPECULATORS_PATCHES_ERROR_SHARE": "1"}


def dead_endpoint() -> str:
    """An address that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/v1/chat/completions"


class Scenarios:
    """The same accidents for both."""

    def __init__(self, folder: Path, server: ChatServer) -> None:
        self.folder, self.server = folder, server
        self.count = 0

    def new(self) -> Path:
        self.count += 1
        path = self.folder / f"s{self.count}"
        path.mkdir()
        return path / "responses.jsonl"

    def all(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        six = conversations(6)
        prompts = write(self.folder / "six.jsonl", six)
        want = expected(six)

        out = self.new()
        regenerate(self.server.chat, prompts, out, self.server)
        whole = out.read_bytes()
        found["undisturbed"] = rows_in(out) == want

        # Half a line, as a kill in the middle of a write leaves it.
        out = self.new()
        out.write_bytes(whole[: len(whole) - 40])
        code, _ = regenerate(self.server.chat, prompts, out, self.server)
        found["torn_tail"] = {"code": code, **compared(out, want)}

        # Only the first row of a conversation of two.
        out = self.new()
        lines = whole.splitlines(keepends=True)
        two = [i for i, line in enumerate(lines) if json.loads(line)["id"].endswith("_gen1")]
        out.write_bytes(b"".join(lines[: two[-1]]))
        code, _ = regenerate(self.server.chat, prompts, out, self.server)
        found["half_a_conversation"] = {"code": code, **compared(out, want)}

        # The same command again, without --resume.
        out = self.new()
        for _ in range(2):
            code, _ = regenerate(self.server.chat, prompts, out, self.server, resume=False)
        found["again"] = {"code": code, **compared(out, want)}

        # A server that is gone.
        out = self.new()
        model = str(self.folder / "model")
        code, said = regenerate(
            dead_endpoint(), prompts, out, model=model, max_retries=0, env=QUICK
        )
        found["dead"] = {"code": code, "said": said[-600:], **compared(out, want)}

        # All it says is errors.
        out = self.new()
        faults = {"faults": {str(n): "400" for n in range(1, 100)}}
        code, said = regenerate(self.server.chat, prompts, out, self.server, faults, env=QUICK)
        found["errors"] = {"code": code, "said": said[-600:], **compared(out, want)}
        return found


def compared(out: Path, want: dict[str, Any]) -> dict[str, Any]:
    """How a file differs from what must be in it."""
    try:
        got = rows_in(out)
    except ValueError:
        return {"whole": False, "unreadable": True}
    rows = sum(map(len, got.values()))
    return {"whole": got == want, "rows": rows, "of": sum(map(len, want.values()))}


def patched_only(folder: Path, server: ChatServer, scenarios: Scenarios) -> dict[str, Any]:
    found: dict[str, Any] = {}
    twelve = conversations(12)
    prompts, want = write(folder / "twelve.jsonl", twelve), expected(twelve)

    # A silent server is given up on; the request is sent again and answered.
    out = scenarios.new()
    plan = {"faults": {"2": "hang", "5": "hang"}}
    code, _ = regenerate(server.chat, prompts, out, server, plan, env=QUICK | _wait("60"))
    found["hang"] = {"code": code, **compared(out, want)}

    # Two servers and a dead one: all that live work, nothing is lost.
    second = ChatServer(folder / "model")
    try:
        out = scenarios.new()
        second.plan()
        urls = f"{server.chat}, {second.chat},{dead_endpoint()}"
        model = str(folder / "model")
        code, _ = regenerate(urls, prompts, out, server, model=model, env=QUICK)
        shares = [len(server.asked()), len(second.asked())]
        named = {json.loads(line)["metadata"]["endpoint"] for line in out.read_text().splitlines()}
        found["endpoints"] = {
            "code": code, "asked": shares, "named": named == {server.chat, second.chat},
            **compared(out, want),
        }  # fmt: skip
    finally:
        second.close()

    # A full disk in the middle of a conversation: what is in the file is whole.
    out = scenarios.new()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        code, said = regenerate(server.chat, prompts, out, server, env=QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    before = rows_in(out)
    partly = all(want[name] == rows for name, rows in before.items())
    found["full_disk"] = {"code": code, "said": said[-400:], "kept": len(before), "partly": partly}
    code, _ = regenerate(server.chat, prompts, out, server, env=QUICK)
    found["full_disk_then"] = {"code": code, **compared(out, want)}

    # The same prompt twice in the data is answered once; a system prompt reaches every request.
    out = scenarios.new()
    doubled = write(folder / "doubled.jsonl", [twelve[0], twelve[1], twelve[0]])
    env = QUICK | {"SPECULATORS_PATCHES_SYSTEM_PROMPT": "Be brief."}
    sampling = json.dumps({"chat_template_kwargs": {"enable_thinking": False}})
    regenerate(server.chat, doubled, out, server, env=env, sampling_params=sampling)
    found["doubled"] = {name: len(rows) for name, rows in rows_in(out).items()}
    found["sent"] = [
        [
            [m["role"] for m in asked["messages"]],
            asked["messages"][0]["content"],
            asked.get("chat_template_kwargs"),
        ]
        for asked in server.asked()
    ]
    row = json.loads(out.read_text().splitlines()[0])
    found["answer"] = row["text"][row["metadata"]["answer_start"] :]
    return found


def _wait(seconds: str) -> dict[str, str]:
    return {"SPECULATORS_PATCHES_SERVER_WAIT_S": seconds}


FAULTS = st.dictionaries(
    st.integers(1, 12).map(str), st.sampled_from(["400", "500", "drop", "hang"]), max_size=2
)
ACCIDENT = st.fixed_dictionaries(
    {
        "kill_at": st.none() | st.integers(1, 12),
        "faults": FAULTS,
        "dead": st.sampled_from([False, False, False, True]),
        "cut": st.sampled_from([0, 0, 1]) | st.integers(1, 1500),
        "double": st.booleans(),
        "resume": st.booleans(),
    }
)


def sequences(folder: Path, server: ChatServer, examples: int) -> list[str]:
    """Any sequence of accidents and restarts ends with every row once; what broke that."""
    broken: list[str] = []
    eight = conversations(8)
    prompts, want = write(folder / "eight.jsonl", eight), expected(eight)
    folder = folder / "sequences"
    folder.mkdir()
    numbers = iter(range(10**6))

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(ACCIDENT, min_size=1, max_size=3))
    def attack(accidents: list[dict[str, Any]]) -> None:
        out = folder / f"{next(numbers)}.jsonl"
        for accident in accidents:
            plan = {"faults": accident["faults"], "kill_at": accident["kill_at"]}
            if accident["dead"]:
                code, said = regenerate(
                    dead_endpoint(), prompts, out, model=str(folder.parent / "model"), env=TOLERANT
                )
                complete = rows_in(out) == want
                assert code == 1 or complete, (code, said)
            else:
                code, said = regenerate(
                    server.chat, prompts, out, server, plan, TOLERANT, resume=accident["resume"]
                )
                assert code in (0, 1, KILLED), said
            if code != KILLED:
                got = rows_in(out)
                assert all(got[name] == want[name] for name in got), "a row too many or too few"
            if accident["cut"] and out.exists():
                os.truncate(out, max(0, out.stat().st_size - accident["cut"]))
            if accident["double"] and out.exists():
                lines = out.read_bytes().splitlines(keepends=True)
                out.write_bytes(b"".join([*lines, *lines[: len(lines) // 2]]))
        code, said = regenerate(server.chat, prompts, out, server, env=TOLERANT)
        assert code == 0, said
        assert rows_in(out) == want

    try:
        attack()
    except AssertionError as error:
        broken.append(str(error)[:2000])
    return broken


def main() -> None:
    folder = Path(sys.argv[1])
    examples = int(os.environ.get("EXAMPLES", "5"))
    model = tokenizer(folder / "model")
    server = ChatServer(model)
    import speculators_patches

    try:
        (folder / "unpatched").mkdir()
        (folder / "unpatched" / "model").symlink_to(model)
        unpatched = Scenarios(folder / "unpatched", server).all()
        speculators_patches.apply(only=["durable_responses"])
        scenarios = Scenarios(folder, server)
        patched = scenarios.all() | patched_only(folder, server, scenarios)
        broken = sequences(folder, server, examples)
        # The stages run upstream's commands with every patch.
        speculators_patches.apply()
        stages = stage_kills.attack(folder, server, examples // 2)
    finally:
        server.close()
    found = {"unpatched": unpatched, "patched": patched, "broken": broken, "stages": stages}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
