"""Clients that give up, and the extraction server: with vLLM's connector, and with the recipe's.

    python -m benchmarks.abandoned_requests                  # a minute, on a GPU or a CPU

120 requests at once for the hidden states of a small random body, whose connections are closed
after a fraction of a second, as those of a client are that times out or is ended, and among them
one that waits for its answer, as one more does behind them. Four times, on a server with vLLM's own
connector ("vllm") and on one with `recipes.hidden_states` ("recipe"). Reported: how many of the 120
were answered before their connection was closed, storm by storm as long as those that wait are
answered; whether they were to the end; and what ended the engine if it ended.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from benchmarks.online_pipeline import recipe_at
from recipes.config import ConfigError, Recipe

REQUESTS = 120
AFTER_S = (0.3, 0.1, 0.6, 0.2)
RESULTS = Path(__file__).parent / "results"


async def give_up(url: str, body: dict[str, Any], requests: int, after_s: float) -> int:
    """Sends them all at once and closes what is open `after_s` later; how many were answered.

    Raises:
        httpx.HTTPError: one more, sent with them and never closed, is not answered.
    """
    limits = httpx.Limits(max_connections=requests + 1)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        asked = [asyncio.create_task(client.post(url, json=body)) for _ in range(requests)]
        patient = asyncio.create_task(client.post(url, json=body))
        done, left = await asyncio.wait(asked, timeout=after_s)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        (await patient).raise_for_status()
        return sum(not one.exception() and one.result().is_success for one in done)


def storms(base_url: str, model: str, tokens: int) -> Iterator[int]:
    """Several, given up sooner and later: how many of each were answered.

    Args:
        tokens: of each prompt.

    Raises:
        httpx.HTTPError: who waits is not answered in one or behind it.
    """
    url = f"{base_url}/v1/completions"
    body = {"model": model, "prompt": [5] * tokens, "max_tokens": 1}
    for after_s in AFTER_S:
        answered = asyncio.run(give_up(url, body, REQUESTS, after_s))
        httpx.post(url, json=body, timeout=120).raise_for_status()
        yield answered


def unmended(transfer: dict[str, Any], cpu: bool) -> dict[str, Any]:
    """The same --kv-transfer-config with vLLM's own connector."""
    if cpu:
        return transfer | {
            "kv_connector": "UnmendedConnector",
            "kv_connector_module_path": "benchmarks.vllms_connector",
        }
    plain = transfer | {"kv_connector": "ExampleHiddenStatesConnector"}
    return {key: value for key, value in plain.items() if key != "kv_connector_module_path"}


def arm(name: str, recipe: Recipe, work: Path, logs: Path) -> dict[str, Any]:
    """One server's record.

    Raises:
        ServerError: it does not start.
    """
    from recipes import vllm_server
    from recipes.server_specs import extraction_server
    from recipes.vllm import spec as specs
    from recipes.vllm.errors import cause_in_log

    flags = ["--load-format", "dummy", "--no-enable-prefix-caching", "--enforce-eager"]
    spec = extraction_server(recipe, work / "states", name)
    found = vllm_server.installed()
    if name == "vllm" and found is not None:  # of two such flags the last one holds
        transfer = unmended(specs._transfer(spec, found), found.cpu)
        flags += ["--kv-transfer-config", json.dumps(transfer)]
    spec, log = dataclasses.replace(spec, extra_args=tuple(flags)), logs / f"{name}.log"
    record: dict[str, Any] = {"connector": name, "answered": []}
    with vllm_server.Server(spec, log) as server:
        end = server.wait_ready(say=lambda said: typer.echo(said, err=True))
        try:
            for answered in storms(end.base_url, end.model, recipe.seq_len * 3 // 4):
                record["answered"].append(answered)
            record["answers_still"] = True
        except httpx.HTTPError:
            record |= {"answers_still": False, "ended_by": cause_in_log(log)}
    return record


def main(
    tokens: Annotated[int, typer.Option(help="Longest request; asked are 3/4 of it.")] = 4096,
    out: Annotated[Path | None, typer.Option(help="The result file.")] = None,
) -> None:
    """Requests that nobody waits for, on two extraction servers, one after the other."""
    import torch

    from benchmarks.random_body import VOCABULARY, write_body, write_tokenizer
    from recipes.environment import command_line, describe
    from recipes.vllm_server import ServerError

    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = out or RESULTS / f"abandoned_requests_{device}.json"
    logs = path.with_suffix(".logs")
    logs.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "command": command_line("benchmarks.abandoned_requests"),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "environment": describe(),
        "requests": REQUESTS, "given_up_after_s": AFTER_S, "tokens": tokens * 3 // 4,
        "arms": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        body = write_body(work / "body", divide=8, layers=8, fp8=False)
        write_tokenizer(body, VOCABULARY // 8)
        try:
            recipe = recipe_at(0.2, tokens, f"body={body}", "target_layers=2,4,5")
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
        for name in ("vllm", "recipe"):
            try:
                found = arm(name, recipe, work / name, logs)
            except ServerError as error:
                typer.echo(str(error), err=True)
                raise typer.Exit(1) from None
            record["arms"].append(found)
            path.write_text(json.dumps(record, indent=1) + "\n")
            print(json.dumps(found), flush=True)
    print(f"written: {path}")
    if not record["arms"][-1]["answers_still"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
