"""The body's own answers, and its hidden states at every position of them.

One extraction server gives both. For each prompt and temperature it answers through the chat
template; goes on for a few tokens past the end, since drafts reach there too and vLLM counts them;
and is asked once more with all those token ids, which leaves the states in a file. What was
collected is kept: the same folder answers for another drafter without a server.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.client import BenchError
from benchmarks.prompts import WorkloadPrompt
from benchmarks.schedule import seed_of
from recipes.vllm import probes
from recipes.vllm.hidden_state_files import discard, discard_when_written, wait_until_written
from recipes.vllm_server import Endpoint

if TYPE_CHECKING:
    import torch

INDEX = "answers.jsonl"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Answer:
    """One answer of the body.

    Attributes:
        ids: prompt, answer, and the tokens past its end.
        start: index of the answer's first token.
        end: index behind its last one.
        states: name of the file of hidden states, for positions 0 to len(ids) - 1.
    """

    prompt_id: str
    workload: str
    temperature: float
    repeat: int
    ids: tuple[int, ...]
    start: int
    end: int
    states: str


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as token ids, with the chat template's already in them; `kind` is its workload."""

    id: str
    kind: str
    ids: tuple[int, ...]


Prompt = WorkloadPrompt | TokenPrompt


@dataclass(frozen=True)
class Wanted:
    """What is collected: it depends on these and on nothing else.

    `seeds` names how they follow from `seed`: answers drawn otherwise are of another collection.
    `layers` are the body's layers whose states are kept, its last one at the end. `request` is
    merged into every chat request (chat_template_kwargs and the like).
    """

    body: str
    layers: tuple[int, ...]
    depth: int
    max_tokens: int
    seed: int
    request: dict[str, Any]
    seeds: str = "by answer"


class Collection:
    """A folder of answers and states; what is there already is not asked for again."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        """Raises BenchError where the folder holds answers of another body, layers or depth."""
        self.folder, self.wanted = folder, wanted
        folder.mkdir(parents=True, exist_ok=True)
        settings, told = folder / SETTINGS, json.loads(json.dumps(asdict(wanted)))
        if settings.exists():
            before = json.loads(settings.read_text("utf-8"))
            changed = [k for k in told if before.get(k) != told[k]]
            if changed:
                raise BenchError(
                    f"{folder} holds answers collected with another {', '.join(changed)}; give "
                    "another --out."
                )
        else:
            settings.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        self.answers = list(_read(folder / INDEX))

    def missing(
        self, prompts: Sequence[Prompt], temperatures: Sequence[float], repeats: int
    ) -> list[tuple[Prompt, float, int]]:
        """What is still to be asked; at temperature 0 a prompt is asked once."""
        have = {(a.prompt_id, a.temperature, a.repeat) for a in self.answers}
        return [
            (prompt, t, k)
            for t in temperatures
            for prompt in prompts
            for k in range(repeats if t > 0 else 1)
            if (prompt.id, t, k) not in have
        ]

    def collect(
        self,
        endpoint: Endpoint,
        missing: Sequence[tuple[Prompt, float, int]],
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Asks a ready extraction server; each answer is on disk before the next is asked."""
        with probes.client_for(endpoint.base_url, 600.0) as http:
            for done, (prompt, temperature, repeat) in enumerate(missing):
                progress(f"answer {done + 1} of {len(missing)}")
                answer = self._one(http, endpoint.model, prompt, temperature, repeat)
                with (self.folder / INDEX).open("a", encoding="utf-8") as file:
                    # On a line of its own, whatever a kill left half written before it.
                    file.write("\n" + json.dumps(asdict(answer)) + "\n")
                self.answers.append(answer)

    def states(self, answer: Answer) -> torch.Tensor:
        """[tokens, layers, hidden size], in the order of `wanted.layers`.

        Raises:
            BenchError: the file does not fit the answer.
        """
        from safetensors.torch import load_file

        found = load_file(str(self.folder / answer.states))
        states: torch.Tensor = found["hidden_states"]
        if states.shape[:2] != (len(answer.ids), len(self.wanted.layers)):
            raise BenchError(
                f"{self.folder / answer.states} has shape {tuple(states.shape)}; expected "
                f"({len(answer.ids)}, {len(self.wanted.layers)}, hidden size)."
            )
        return states

    def _seed(self, prompt: Prompt, repeat: int, what: str = "answer") -> int:
        """Another one for each answer: prompts that share their random numbers are as good as one
        sample of them, however many they are.
        """
        return seed_of(f"{prompt.id}/{repeat}/{what}", self.wanted.seed)

    def _one(
        self,
        http: httpx.Client,
        model: str,
        prompt: Prompt,
        temperature: float,
        repeat: int,
    ) -> Answer:
        where = f"prompt {prompt.id}"
        drawing = {"temperature": temperature, "seed": self._seed(prompt, repeat)}
        common = {"model": model, "return_token_ids": True}
        asked: dict[str, Any]
        if isinstance(prompt, TokenPrompt):
            path, asked = "/v1/completions", {"prompt": list(prompt.ids)}
        else:
            path, asked = "/v1/chat/completions", {"messages": [dict(m) for m in prompt.messages]}
        reply = _post(
            http, path, where,
            {**common, **asked, "max_tokens": self.wanted.max_tokens, **drawing,
             **self.wanted.request},
        )  # fmt: skip
        _forget(reply)
        asked_ids = _prompt_ids(reply)
        start = len(asked_ids)
        ids = [*asked_ids, *reply["choices"][0]["token_ids"]]
        end = len(ids)
        if end == start:
            raise BenchError(f"The body answered {where} with no token.")
        reply = _post(
            http, "/v1/completions", where,
            {**common, "prompt": ids, "max_tokens": self.wanted.depth, "ignore_eos": True,
             **drawing, "seed": self._seed(prompt, repeat, "beyond")},
        )  # fmt: skip
        _forget(reply)
        ids += reply["choices"][0]["token_ids"]
        reply = _post(
            http, "/v1/completions", where,
            {**common, "prompt": ids, "max_tokens": 1, "temperature": 0.0},
        )  # fmt: skip
        written = _states_file(reply, where)
        wait_until_written(written)
        taken = (int(p.stem) for p in self.folder.glob("*.safetensors"))
        name = f"{max(taken, default=-1) + 1:06d}.safetensors"
        shutil.copyfile(written, self.folder / f"{name}.part")
        (self.folder / f"{name}.part").replace(self.folder / name)
        discard(written)
        return Answer(prompt.id, prompt.kind, temperature, repeat, tuple(ids), start, end, name)


def _prompt_ids(reply: Mapping[str, Any]) -> list[int]:
    """Beside a chat's choices, within a completion's."""
    found = reply.get("prompt_token_ids") or reply["choices"][0]["prompt_token_ids"]
    return [int(i) for i in found]


def _read(index: Path) -> Iterator[Answer]:
    if not index.exists():
        return
    for line in index.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off by a kill; it is asked again
        yield Answer(**{**row, "ids": tuple(row["ids"])})


def _post(http: httpx.Client, path: str, where: str, body: Mapping[str, Any]) -> dict[str, Any]:
    try:
        reply = http.post(path, json=body)
    except httpx.HTTPError as e:
        raise BenchError(f"The server did not answer {where} ({type(e).__name__}).") from None
    if reply.status_code != 200:
        raise BenchError(
            f"The server did not answer {where} (HTTP {reply.status_code}: {reply.text[:300]})."
        )
    return dict(reply.json())


def _states_file(reply: Mapping[str, Any], where: str) -> Path:
    found = (reply.get("kv_transfer_params") or {}).get("hidden_states_path")
    if not found:
        raise BenchError(
            f"The server kept no hidden states for {where}: it is no extraction server."
        )
    return Path(found)


def _forget(reply: Mapping[str, Any]) -> None:
    found = (reply.get("kv_transfer_params") or {}).get("hidden_states_path")
    if found:
        discard_when_written(Path(found))
