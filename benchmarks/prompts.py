"""The bench's workloads: read, checked, and reduced to the smoke subset.

python -m benchmarks.prompts [FILE.jsonl ...]     check files, the shipped ones by default
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stats import FEWEST_PROMPTS

FOLDER = Path(__file__).parent / "workloads"
WORKLOADS = ("english", "chinese", "code", "podcast", "image_prompts", "chat")
LENGTHS = ("short", "medium", "long")
# Fewest prompts for a workload: the intervals of `stats` hold their rate from about here.
FEWEST = 40


class PromptError(ValueError):
    """A prompt file that cannot be used; the message names file, line and what is wrong."""


@dataclass(frozen=True)
class WorkloadPrompt:
    """One conversation to answer, ending with the user's turn.

    `kind` is the workload it is reported under; `length` the answer's length class.
    """

    id: str
    kind: str
    length: str
    smoke: bool
    messages: tuple[dict[str, str], ...]

    @property
    def text(self) -> str:
        """All turns in one string, for looking template marks up in."""
        return "\n".join(m["content"] for m in self.messages)


def load_workload(source: str | Path, *, smoke: bool = False) -> list[WorkloadPrompt]:
    """A shipped workload by name, or a user's JSON-lines file by path.

    A user's rows need `messages` or `prompt`; `id`, `kind` (the file's name), `length` ("medium")
    and `smoke` are filled in. If no row of a file is marked, its smoke subset is the first eight of
    each kind, the fewest that an interval is computed from.

    Raises:
        PromptError: names file and line.
    """
    path = FOLDER / f"{source}.jsonl" if str(source) in WORKLOADS else Path(source)
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as e:
        raise PromptError(
            f"Cannot read the prompts {path}: {e.strerror}. Shipped workloads: "
            f"{', '.join(WORKLOADS)}."
        ) from None
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text.") from None
    prompts = [_row(path, k, line) for k, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise PromptError(f"{path} holds no prompts.")
    _check_distinct(path, prompts)
    if not smoke:
        return prompts
    return [p for p in prompts if p.smoke] or first_of_each(prompts, FEWEST_PROMPTS)


def first_of_each(prompts: Iterable[WorkloadPrompt], count: int) -> list[WorkloadPrompt]:
    """The first `count` prompts of each workload, in their order."""
    taken: Counter[str] = Counter()
    found = []
    for p in prompts:
        taken[p.kind] += 1
        if taken[p.kind] <= count:
            found.append(p)
    return found


def load_workloads(
    sources: Iterable[str | Path] = WORKLOADS, *, smoke: bool = False
) -> list[WorkloadPrompt]:
    """Several workloads together; their ids must differ."""
    prompts = [p for source in sources for p in load_workload(source, smoke=smoke)]
    twice = [key for key, count in Counter(p.id for p in prompts).items() if count > 1]
    if twice:
        raise PromptError(f"Two workloads hold a prompt with the id {twice[0]!r}; rename one.")
    return prompts


def _row(path: Path, number: int, line: str) -> WorkloadPrompt:
    where = f"{path}:{number}"
    try:
        row = json.loads(line)
    except ValueError:
        raise PromptError(f"{where} is not valid JSON.") from None
    if not isinstance(row, dict):
        raise PromptError(f"{where} is not a JSON object.")
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    length = row.get("length", "medium")
    if length not in LENGTHS:
        raise PromptError(f"{where}: length is {length!r}; it must be one of {', '.join(LENGTHS)}.")
    smoke = row.get("smoke", False)
    if not isinstance(smoke, bool):
        raise PromptError(f"{where}: smoke is {smoke!r}; it must be true or false.")
    return WorkloadPrompt(
        id=str(row.get("id", f"{path.stem}-{number}")),
        kind=str(row.get("kind", path.stem)),
        length=length,
        smoke=smoke,
        messages=tuple(_messages(where, messages)),
    )


def _messages(where: str, messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"{where} has neither `prompt` nor a list of `messages`.")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise PromptError(f"{where}: every message needs a `role` and a text as `content`.")
        if message.get("role") not in ("system", "user", "assistant"):
            raise PromptError(
                f"{where}: the role {message.get('role')!r} is not system, user or assistant."
            )
        if not message["content"].strip():
            raise PromptError(f"{where}: a message is empty.")
    if messages[-1]["role"] != "user":
        raise PromptError(f"{where}: the last message must be the user's, to be answered.")
    return messages


def _check_distinct(path: Path, prompts: Sequence[WorkloadPrompt]) -> None:
    # Pairing is by id, and a prompt asked twice would count as two independent ones.
    for what, keys in (
        ("the id", [p.id for p in prompts]),
        ("the same messages", [json.dumps(p.messages) for p in prompts]),
    ):
        first: dict[str, int] = {}
        for k, key in enumerate(keys):
            if key in first:
                raise PromptError(
                    f"{path}: prompt {prompts[k].id!r} (number {k + 1}) has {what} of prompt "
                    f"number {first[key] + 1}; each may stand there once."
                )
            first[key] = k


def main(arguments: Sequence[str]) -> int:
    """Check files and say what is in them; exit code 2 with one sentence for a bad one."""
    try:
        for source in arguments or WORKLOADS:
            prompts = load_workload(source)
            lengths = Counter(p.length for p in prompts)
            words = sorted(len(p.text) for p in prompts)
            print(
                f"{source}: {len(prompts)} prompts ({sum(p.smoke for p in prompts)} smoke), "
                f"{', '.join(f'{lengths[k]} {k}' for k in LENGTHS)}; characters "
                f"{words[0]} to {words[-1]}"
                + ("" if len(prompts) >= FEWEST else f"; fewer than {FEWEST}: wide intervals")
            )
    except PromptError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
