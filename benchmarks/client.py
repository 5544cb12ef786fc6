"""One streamed request to a vLLM server, with its times and its own speculation counts.

Requests go through `/v1/chat/completions`, so the server applies the chat template. `raw` sends the
bare text to `/v1/completions` instead: that is how the published 100 tok/s came about, and nothing
made that way is reported without saying so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from recipes.vllm import probes
from recipes.vllm_server import SpecCounters

# An answer's own ends: its stop token or a tool call, the token limit, vLLM's repetition detector.
_ENDS = ("stop", "length", "tool_calls", "repetition")

Messages = Sequence[Mapping[str, str]]


class BenchError(RuntimeError):
    """The bench cannot go on; the message says where and why."""


@dataclass(frozen=True)
class Reply:
    """One answer. `started` is `time.perf_counter()` at sending; times are seconds.

    `ttft_s` is to the first token, `itl_s` the mean time between the tokens after the first chunk
    (a chunk holds all tokens of one step); None where there was but one chunk. `spent` are the
    request's own speculation counts, None if the server did not report them.
    """

    text: str
    token_ids: tuple[int, ...] | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    started: float
    seconds: float
    ttft_s: float | None
    itl_s: float | None
    spent: SpecCounters | None


@dataclass
class _Stream:
    """What the chunks of one answer add up to."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    spent: SpecCounters | None = None
    first: float | None = None
    first_tokens: int = 0
    last: float = 0.0

    def add(self, chunk: dict[str, Any], now: float) -> None:
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            # Thinking is part of what the body says, and may loop like the rest.
            thought = delta.get("reasoning") or delta.get("reasoning_content") or ""
            words = thought + (delta.get("content") or choice.get("text") or "")
            ids = choice.get("token_ids") or ()
            if words or ids:
                self.text.append(words)
                self.token_ids += ids
                if self.first is None:
                    self.first, self.first_tokens = now, max(1, len(ids))
                self.last = now
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.usage = chunk.get("usage") or self.usage
        counted = (chunk.get("metrics") or {}).get("speculative_decoding")
        if counted:
            self.spent = per_request_counts(counted)


def per_request_counts(metrics: Mapping[str, Any]) -> SpecCounters:
    """vLLM's `metrics.speculative_decoding` of one response as counters.

    Its histogram holds, at j, the steps that accepted exactly j drafts; accepted up to position k
    are those that accepted more than k.
    """
    histogram = [int(count) for count in metrics["acceptance_histogram"]]
    by_position = tuple(sum(histogram[k + 1 :]) for k in range(len(histogram) - 1))
    return SpecCounters(
        drafts=sum(histogram),
        draft_tokens=int(metrics["num_draft_tokens"]),
        accepted_tokens=sum(by_position),
        accepted_per_pos=by_position,
    )


class Client:
    """Sends requests to one server; safe to use from several threads.

    Args:
        base_url: e.g. `http://127.0.0.1:8000`, without `/v1`.
        model: the name the server answers to.
        raw: send bare text to `/v1/completions`, without a chat template.
        timeout_s: for one answer, between two of its chunks.
        extra: merged into every request.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        raw: bool = False,
        timeout_s: float = 600.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.base_url, self.model, self.raw = base_url, model, raw
        self._extra = dict(extra or {})
        self._http = probes.client_for(base_url, timeout_s)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, messages: Messages, where: str, **sampling: Any) -> Reply:
        """One answer.

        Args:
            where: what to call the request in an error message.
            sampling: temperature, max_tokens, seed, cache_salt and so on.

        Raises:
            BenchError: no answer, an error status, or a stream that ends early.
        """
        body = self._body(messages, sampling) | {
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        found = _Stream()
        started = time.perf_counter()
        try:
            with self._http.stream("POST", self._path, json=body) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise _refused(where, reply)
                for chunk in _events(reply.iter_lines(), where):
                    if "error" in chunk:
                        raise BenchError(f"The server broke off {where}: {chunk['error']}.")
                    found.add(chunk, time.perf_counter())
        except httpx.HTTPError as e:
            raise BenchError(
                f"The server at {self.base_url} did not answer {where} ({type(e).__name__}: {e})."
            ) from None
        ended = time.perf_counter()
        if not found.usage or not found.finish_reason:
            raise BenchError(f"The stream of {where} ended early: no finish reason or no usage.")
        if found.finish_reason not in _ENDS:
            raise BenchError(
                f"The server ended {where} with the reason {found.finish_reason!r}, which is not "
                "the end of an answer."
            )
        tokens = int(found.usage["completion_tokens"])
        rest = tokens - found.first_tokens
        gap = found.last - (found.first or 0.0)
        return Reply(
            text="".join(found.text),
            token_ids=tuple(found.token_ids) if len(found.token_ids) == tokens else None,
            finish_reason=found.finish_reason,
            prompt_tokens=int(found.usage["prompt_tokens"]),
            completion_tokens=tokens,
            started=started,
            seconds=ended - started,
            ttft_s=None if found.first is None else found.first - started,
            itl_s=gap / rest if rest > 0 and gap > 0 else None,
            spent=found.spent,
        )

    def gaps(
        self, messages: Messages, where: str, **sampling: Any
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The token ids of an answer, and for each the gap between its two best log-probabilities.

        Asked apart from the timed requests, as log-probabilities cost time. Raises as `ask`.
        """
        more: dict[str, Any] = (
            {"logprobs": 2} if self.raw else {"logprobs": True, "top_logprobs": 2}
        )
        body = self._body(messages, sampling) | {"return_token_ids": True} | more
        try:
            reply = self._http.post(self._path, json=body)
        except httpx.HTTPError as e:
            raise BenchError(f"The server did not answer {where} ({type(e).__name__}).") from None
        if reply.status_code != 200:
            raise _refused(where, reply)
        choice = reply.json()["choices"][0]
        seen = choice.get("logprobs") or {}
        if self.raw:
            best = [sorted((top or {}).values(), reverse=True) for top in seen["top_logprobs"]]
        else:
            best = [
                sorted((top["logprob"] for top in item["top_logprobs"]), reverse=True)
                for item in seen["content"]
            ]
        return tuple(choice["token_ids"]), tuple(
            b[0] - b[1] if len(b) > 1 else float("inf") for b in best
        )

    def first_token_seconds(self, token_ids: Sequence[int]) -> float:
        """Seconds from sending bare token ids to the one token they are answered with."""
        body = {"model": self.model, "prompt": list(token_ids), "max_tokens": 1, "temperature": 0.0}
        started = time.perf_counter()
        try:
            reply = self._http.post("/v1/completions", json=body)
        except httpx.HTTPError as e:
            raise BenchError(f"The server did not answer a probe ({type(e).__name__}).") from None
        if reply.status_code != 200:
            raise _refused("a probe of bare token ids", reply)
        return time.perf_counter() - started

    @property
    def _path(self) -> str:
        return "/v1/completions" if self.raw else "/v1/chat/completions"

    def _body(self, messages: Messages, sampling: Mapping[str, Any]) -> dict[str, Any]:
        asked: dict[str, Any] = (
            {"prompt": "\n".join(m["content"] for m in messages)}
            if self.raw
            else {"messages": [dict(m) for m in messages]}
        )
        return {"model": self.model, **asked, **sampling, **self._extra}


def _events(lines: Iterator[str], where: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to `[DONE]`."""
    for line in lines:
        if not line.startswith("data:") or line.strip() == "data: [DONE]":
            continue
        try:
            event = json.loads(line.removeprefix("data:"))
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise BenchError(f"The stream of {where} holds what is not JSON: {line[:80]!r}.")
        yield event


def _refused(where: str, reply: httpx.Response) -> BenchError:
    hint = ""
    if reply.status_code == 400 and "context length" in reply.text:
        hint = " Raise --max-model-len, or leave out the workload with these long prompts."
    return BenchError(
        f"The server did not answer {where} (HTTP {reply.status_code}: {reply.text[:300]}).{hint}"
    )
