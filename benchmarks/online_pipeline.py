"""Extraction and training side by side on one GPU, as the recipe runs them: who waits for whom?

    python -m benchmarks.online_pipeline                     # a GPU with 80 GB, real size
    python -m benchmarks.online_pipeline --divide 8 --layers 8 --no-fp8 --tokens 512 \\
        --rows 60 --length 120 --workers 2 --share 0.4       # a CPU

Per memory share: the recipe's extraction server with Gemma 4 26B-A4B's shape and random FP8 weights
(`random_body`), upstream's data set, packing and collation, and the real drafter's step
(`real_size.Training`) in this process, with the patches that the recipe applies. Four arms of
`--seconds`, which begin when the first batch is there (twelve workers take longer to start than an
arm), the first half of each unmeasured, since workers have batches ready before the first is asked
for:

- training: the step alone, on one batch that stays in pinned memory;
- extraction: the loader alone, with its workers;
- in turn: both, without workers: a batch is asked for when the step before is done;
- side by side: both, with `--workers` as upstream prefetches.

Reported: tokens and conversations a second, the share of the time in which the step waited for a
batch, and how far trainer and producer are from what either does alone. `foretold` is the model
behind `plan`: the GPU's work for both takes turns, so a token costs what it costs either alone,
added up. A share at which vLLM does not start, or ends, is recorded with its reason, each arm when
it is done (`unfinished`: the others of this share are not); logs lie beside the result. Workers
wait a minute for a server that is gone (SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES). Rows have
random tokens and the published run's mean length; prefix caching is off, since rows here are read
again and again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from benchmarks.random_body import LAYERS, VOCABULARY, write_body, write_tokenizer
from benchmarks.train_step import turn

RESULTS = Path(__file__).parent / "results"
PATCHES = (
    "durable_responses",
    "several_producers",
    "wait_for_producer",
)  # besides the default ones
TARGETS = (2, 15, 27)


def write_rows(folder: Path, count: int, length: int, vocabulary: int) -> Path:
    """Prepared rows: random tokens, lengths spread evenly over half to one and a half times."""
    from datasets import Dataset

    chance = random.Random(0)
    rows = []
    for _ in range(count):
        tokens = chance.randint(length // 2, length + length // 2)
        ids = [chance.randrange(5, vocabulary) for _ in range(tokens)]
        rows.append({"input_ids": ids, "loss_mask": [1] * tokens, "seq_len": tokens})
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder))
    return folder


def loader(order: dict[str, Any], url: str, states: Path, workers: int) -> Any:
    """Upstream's loader of packed batches, as its trainer makes it."""
    import torch
    from hs_connectors.transfer import FileTransfer
    from speculators.models.eagle3.data import shift_batch
    from speculators.train.dataloader import create_train_val_loaders

    return create_train_val_loaders(
        data_path=order["data"], total_seq_len=order["tokens"],
        hidden_states_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        transfer=FileTransfer(states), vllm_endpoint=f"{url}/v1", on_missing="generate",
        verifier_name_or_path=order["body"], request_timeout=120, max_retries=3,
        generation_validation_retries=2, max_consecutive_generation_failures=20,
        hidden_size=order["hidden"], num_target_layers=len(TARGETS), num_workers=workers,
        prefetch_factor=4, preprocess=shift_batch, train_data_ratio=0.98,
    )[0]  # fmt: skip


def tokens_in(batch: dict[str, Any]) -> int:
    """Tokens of a packed batch that are not padding."""
    return int((batch["document_ids"] != -1).sum())


def forever(batches: Any) -> Iterator[dict[str, Any]]:
    """Epoch after epoch, as the trainer orders them."""
    epoch = 0
    while True:
        batches.batch_sampler.set_epoch(epoch)
        yield from batches
        epoch += 1


def timed(step: Any, batches: Iterator[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """One arm: `step(batch)` until the time is over; the record of its second half.

    The time begins when one batch is done.
    """
    step(next(batches))
    began = time.perf_counter()
    start = 0.0
    waited = worked = 0.0
    tokens = steps = documents = lost = 0
    while True:
        now = time.perf_counter()
        if not start and now >= began + seconds / 2:
            start = now
        if now >= began + seconds and steps:
            break
        batch = next(batches)
        got = time.perf_counter()
        step(batch)
        if start:
            waited += got - now
            worked += time.perf_counter() - got
            tokens += tokens_in(batch)
            documents += len(set(batch["document_ids"].flatten().tolist()) - {-1})
            lost += int(batch.get("error_records", 0))
            steps += 1
    whole = time.perf_counter() - start
    return {
        "seconds": round(whole, 2), "steps": steps, "tokens_s": round(tokens / whole, 1),
        "conversations_s": round(documents / whole, 2), "lost": lost,
        "waiting_share": round(waited / whole, 4), "step_s": round(worked / steps, 5),
    }  # fmt: skip


class Step:
    """The drafter's training step on a batch from the loader, finished when it returns."""

    def __init__(self, tokens: int, divide: int) -> None:
        import torch

        from benchmarks.real_size import Size, Training

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._training = Training(Size(divide, tokens), self._device)

    def __call__(self, batch: dict[str, Any]) -> None:
        import torch

        from benchmarks.real_size import synchronise

        moved = {
            name: value.to(self._device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        }
        self._training.step(moved)
        synchronise(self._device)


def alive(url: str) -> bool:
    """Whether the server says that it is well."""
    try:
        return httpx.get(f"{url}/health", timeout=30).is_success
    except httpx.HTTPError:
        return False


def recipe_at(share: float, tokens: int, *more: str) -> Any:
    """The recipe for one H100 with these settings.

    Raises:
        ConfigError: one of them cannot be.
    """
    from recipes.config import resolve

    asked = [f"train_vllm_share={share}", f"seq_len={tokens}", *more]
    return resolve("h100", assignments=asked)[0]


@contextmanager
def server(order: dict[str, Any], share: float, folder: Path) -> Iterator[str]:
    """The recipe's extraction server at this share of the memory; its address."""
    from recipes.server_specs import extraction_server
    from recipes.servers import ServerPool

    flags = [
        "--load-format", "dummy", "--no-enable-prefix-caching",
        "--worker-extension-cls", "benchmarks.random_body.SpreadWeights",
        *(["--attention-backend", order["attention"]] if order["attention"] else []),
    ]  # fmt: skip
    body = (f"body={order['body']}", f"target_layers={','.join(map(str, order['targets']))}")
    spec = dataclasses.replace(
        extraction_server(recipe_at(share, order["tokens"], *body), folder / "states"),
        extra_args=tuple(flags),
        env={"VLLM_SERVER_DEV_MODE": "1"},  # for /collective_rpc
    )
    with (
        ServerPool(order["logs"] / f"{share}", lambda said: print(said, file=sys.stderr)) as pool,
        pool.lease(spec) as ready,
    ):
        httpx.post(
            f"{ready.base_url}/collective_rpc", json={"method": "spread_weights"}, timeout=120
        ).raise_for_status()
        yield ready.base_url


def stop_workers(batches: Any) -> None:
    """Ends the loader's workers at once.

    What they were asked for ahead would be made beside the next arm otherwise, and for a server
    that is gone they wait long.
    """
    from speculators_patches.step_checkpoints import stopping

    iterator, batches._iterator = batches._iterator, None
    stopping.end_workers(iterator)
    if pinning := getattr(iterator, "_pin_memory_thread_done_event", None):
        pinning.set()


def measure(
    order: dict[str, Any],
    share: float,
    folder: Path,
    step: Step,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """All arms at one memory share; `keep` gets those that are done after each.

    Raises:
        ServerError: the server does not start, or is gone after an arm, which then does not count.
    """
    import torch

    from recipes.vllm_server import ServerError

    lock = Path(order["lock"])
    arms: dict[str, dict[str, Any]] = {}

    def done(name: str, work: Any, batches: Iterator[dict[str, Any]]) -> None:
        found = timed(work, batches, order["seconds"])
        stop_workers(ahead)
        if not alive(url):
            log = order["logs"] / f"{share}" / "vllm-extraction.log"
            raise ServerError(f"The server did not answer after the arm {name!r}.", log)
        arms[name] = found
        print(json.dumps({"share": share, "arm": name, **found}), flush=True)
        keep({"share": share, "arms": dict(arms), "unfinished": True})

    with ExitStack() as held:
        with turn(lock, alone=False):
            url = held.enter_context(server(order, share, folder))
            alone = loader(order, url, folder / "states", 0)
            ahead = loader(order, url, folder / "states", order["workers"])
            held.callback(stop_workers, ahead)  # before the server ends
            one = next(iter(alone))
            for _ in range(3):
                step(one)  # compiles
        held.enter_context(turn(lock, alone=True))
        done("training", step, itertools.repeat(one))
        done("side by side", step, forever(ahead))  # early: what is known if the rest is cut off
        done("extraction", lambda _: None, forever(ahead))
        done("in turn", step, forever(alone))
        used = torch.cuda.mem_get_info() if torch.cuda.is_available() else None
    return {
        "share": share,
        "arms": arms,
        **compared(arms),
        "device_bytes_used": used and used[1] - used[0],
    }


def compared(arms: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """What the four arms say together; None where an arm got no tokens, or waited for none."""
    side, turns = arms["side by side"], arms["in turn"]
    rates = {name: arm["tokens_s"] for name, arm in arms.items()}
    if not all(rates.values()):
        return dict.fromkeys(
            ("foretold_tokens_s", "foretold_error", "trainer_load", "producer_load",
             "hidden_by_prefetch")
        )  # fmt: skip
    foretold = 1 / (1 / rates["training"] + 1 / rates["extraction"])
    waits = [arm["waiting_share"] / arm["tokens_s"] for arm in (side, turns)]
    return {
        "foretold_tokens_s": round(foretold, 1),
        "foretold_error": round(foretold / side["tokens_s"] - 1, 4),
        # Of what each does alone on this device.
        "trainer_load": round(side["tokens_s"] / rates["training"], 4),
        "producer_load": round(side["tokens_s"] / rates["extraction"], 4),
        # Of the waiting for a token's hidden states, what workers ahead of the step take away.
        "hidden_by_prefetch": round(1 - waits[0] / waits[1], 4) if waits[1] else None,
    }


def main(
    share: Annotated[list[float] | None, typer.Option(help="train_vllm_share [0.4 0.7]")] = None,
    workers: Annotated[int, typer.Option(min=1, help="DataLoader workers (upstream: 12).")] = 12,
    seconds: Annotated[float, typer.Option(min=1, help="Of each arm.")] = 20,
    tokens: Annotated[int, typer.Option(help="Packed tokens a step.")] = 4096,
    rows: Annotated[int, typer.Option(help="Conversations.")] = 1500,
    length: Annotated[int, typer.Option(help="Their mean length in tokens.")] = 934,
    attention: Annotated[str, typer.Option(help="vLLM's attention backend.")] = "",
    divide: Annotated[int, typer.Option(help="Divide all widths by this (1: real size).")] = 1,
    layers: Annotated[int, typer.Option(help="Layers of the body.")] = LAYERS,
    fp8: Annotated[bool, typer.Option(help="FP8 weights.")] = True,
    out: Annotated[Path | None, typer.Option(help="The result file.")] = None,
) -> None:
    """Extraction and training on one device, alone, in turn and side by side."""
    import torch

    from benchmarks.real_size import Size
    from recipes.config import ConfigError
    from recipes.environment import command_line, describe
    from recipes.vllm_server import ServerError
    from speculators_patches import apply, patience
    from speculators_patches.overlay import defaults

    asked = share or [0.4, 0.7]
    try:
        for one in asked:
            recipe_at(one, tokens)
    except ConfigError as error:  # before an earlier share has taken its minutes
        raise typer.BadParameter(str(error)) from None
    # A server that ends in an arm is gone for good here: nobody starts it again.
    os.environ.setdefault(patience.MINUTES, "1")
    apply(only=defaults())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = out or RESULTS / f"online_pipeline_{device}.json"
    record: dict[str, Any] = {
        "command": command_line("benchmarks.online_pipeline"),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "environment": describe(),
        "settings": {
            "workers": workers, "seconds": seconds, "tokens": tokens, "rows": rows,
            "length": length, "divide": divide, "layers": layers, "fp8_weights": fp8,
        },
        "shares": [],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    size = Size(divide, tokens)
    with tempfile.TemporaryDirectory() as work:
        body = write_body(Path(work) / "body", divide=divide, layers=layers, fp8=fp8)
        write_tokenizer(body, VOCABULARY // divide)
        (Path(work) / "states").mkdir()
        order = {
            "body": str(body), "tokens": tokens, "hidden": size.hidden, "seconds": seconds,
            "workers": workers, "attention": attention,
            "lock": os.environ.get("BENCH_TURN", str(Path(work) / "turn")),
            "logs": path.with_suffix(".logs"),
            "targets": TARGETS if layers == LAYERS else (2, layers // 2, layers - 3),
            "data": str(write_rows(Path(work) / "data", rows, length, size.draft_vocabulary)),
        }  # fmt: skip
        step = Step(tokens, divide)
        for one in asked:
            before = record["shares"]

            def keep(found: dict[str, Any], before: list[Any] = before) -> None:
                record["shares"] = [*before, found]
                path.write_text(json.dumps(record, indent=1) + "\n")

            try:
                keep(measure(order, one, Path(work), step, keep))
            except (ServerError, httpx.HTTPError, RuntimeError) as error:  # another may do
                (so_far,) = record["shares"][len(before) :] or ({"share": one},)
                keep({**so_far, "error": getattr(error, "sentence", str(error))})
                print(f"share {one}: {error}", file=sys.stderr)
    print(f"written: {path}")
    if any("error" in found for found in record["shares"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
