"""Samples a second from 1 and 2 producers, through files and through Mooncake, in one run.

    python -m benchmarks.transfer          # writes benchmarks/results/transfer.json

Real vLLM servers on a CPU with a random body, upstream's data set with this project's patches, two
DataLoader workers that each ask for one sample at a time, no training step. All servers and workers
are up from the beginning; the four arms take turns, and what counts is the ratio to one producer
with files in the same round. Every sample is compared with the one that arm `1 file` got.

Where producers and readers share the cores of one machine, a second producer can add nothing but
what the first one leaves idle: such a run shows what sharing and the transfer cost, not how far
producers on machines of their own scale.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from recipes import environment
from recipes.servers import ServerPool
from recipes.vllm.mooncake import Store
from recipes.vllm.mooncake_master import Master
from recipes.vllm_server import Endpoint, ServerSpec
from speculators_patches import apply

RESULT = Path(__file__).parent / "results" / "transfer.json"
LAYERS, TARGETS = 4, (1, 2, 3)
VOCABULARY = 256
PATCHES = ("cpu_training", "mooncake_waits", "several_producers", "wait_for_producer")
ARMS = [(producers, transfer) for transfer in ("file", "mooncake") for producers in (1, 2)]


def make_body(folder: Path, hidden: int) -> Path:
    """Writes a random Llama of 4 layers with a tokenizer; its folder."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden,
        num_hidden_layers=LAYERS, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64, max_position_embeddings=8192,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="w0")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(folder: Path, count: int, tokens: int) -> Path:
    """Writes prepared rows of random tokens."""
    import torch
    from datasets import Dataset

    random = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        ids = torch.randint(5, VOCABULARY, (tokens,), generator=random).tolist()
        rows.append({"input_ids": ids, "loss_mask": [1] * tokens, "seq_len": tokens})
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder))
    return folder


def as_is(batch: list[Any]) -> Any:
    """Collates a batch of one."""
    return batch[0]


def loader(data: Path, store: Store | None, urls: list[str], tokens: int, workers: int) -> Any:
    """Upstream's data set as its trainer reads it, one sample at a time."""
    from hs_connectors import HiddenStatesBackend
    from speculators.train.data import ArrowDataset
    from torch.utils.data import DataLoader

    transfer = None
    if store is not None:
        backend = HiddenStatesBackend.registry["mooncake"]
        parser = argparse.ArgumentParser()
        backend.add_train_args(parser)
        flags = store.trainer_flags()[2:]  # without the choice of the backend
        transfer = backend.from_train_args(parser.parse_args(flags), str(data))
    dataset = ArrowDataset(
        tokens, data, transfer, vllm_endpoint=",".join(f"{url}/v1" for url in urls)
    )
    return DataLoader(
        dataset, batch_size=1, collate_fn=as_is, num_workers=workers, prefetch_factor=2,
        multiprocessing_context="spawn", persistent_workers=True,
    )  # fmt: skip


def epoch(samples: Any) -> tuple[float, list[str]]:
    """Seconds for all samples, and a digest of each."""
    import hashlib

    found = []
    began = time.perf_counter()
    for sample in samples:
        if not isinstance(sample, dict):
            raise SystemExit(f"error: a sample is missing: {sample}")
        found.append(sample["hidden_states"])
    seconds = time.perf_counter() - began
    return seconds, [hashlib.sha256(one.float().numpy().tobytes()).hexdigest() for one in found]


@contextmanager
def servers(
    folder: Path, body: Path, tokens: int, store: Store
) -> Iterator[dict[str, list[Endpoint]]]:
    """Two producers for each transfer, ready."""
    with ServerPool(folder / "logs", lambda _: None) as pool, ExitStack() as stack:
        common: dict[str, Any] = {
            "dtype": "bfloat16", "max_model_len": tokens + 1,
            "extraction_layers": (*TARGETS, LAYERS),
        }  # fmt: skip
        specs = {
            "file": [
                ServerSpec(f"file-{n}", str(body), extraction_folder=folder / "states", **common)
                for n in (1, 2)
            ],
            "mooncake": [
                ServerSpec(f"mooncake-{n}", str(body), extraction_store=store, **common)
                for n in (1, 2)
            ],
        }
        pool.prestart(*specs["file"], *specs["mooncake"])
        yield {
            name: [stack.enter_context(pool.lease(spec)) for spec in some]
            for name, some in specs.items()
        }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every arm's samples/s in every round."""
    body = make_body(folder / "body", options.hidden)
    data = make_rows(folder / "data", options.rows, options.tokens)
    size = options.tokens * (len(TARGETS) + 1) * options.hidden * 2
    gib = max(0.0625, 16 * size / 2**30)
    rates: dict[tuple[int, str], list[float]] = {arm: [] for arm in ARMS}
    with Master(folder / "logs" / "master.log") as master:
        master.wait_ready()
        store = Store(master.address, segment_gib=gib)
        with servers(folder, body, options.tokens, store) as ready:
            apply(only=PATCHES)
            loaders = {
                (number, transfer): loader(
                    data, store if transfer == "mooncake" else None,
                    [one.base_url for one in ready[transfer][:number]],
                    options.tokens, options.workers,
                )
                for number, transfer in ARMS
            }  # fmt: skip
            _, expected = epoch(loaders[ARMS[0]])
            for arm in ARMS[1:]:
                if epoch(loaders[arm])[1] != expected:
                    raise SystemExit(f"error: {arm} gave other hidden states than {ARMS[0]}")
            for number in range(options.rounds):
                for arm in ARMS[number % 4 :] + ARMS[: number % 4]:
                    seconds, found = epoch(loaders[arm])
                    if found != expected:
                        raise SystemExit(f"error: {arm} gave other hidden states than {ARMS[0]}")
                    rates[arm].append(options.rows / seconds)
                    print(f"round {number + 1}: {arm} {rates[arm][-1]:.1f} samples/s", flush=True)
    base = rates[ARMS[0]]
    return {
        "bytes_a_sample": size,
        "arms": [
            {
                "producers": number,
                "transfer": transfer,
                "samples_s": [round(one, 2) for one in found],
                "ratio": round(
                    statistics.median(x / y for x, y in zip(found, base, strict=True)), 3
                ),
                "ratios": [round(x / y, 3) for x, y in zip(found, base, strict=True)],
            }
            for (number, transfer), found in rates.items()
        ],
        "same_bits": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=48, help="samples a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512, help="tokens a sample")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size of the random body")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"settings": settings, **found, "made_with": environment.describe()}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for arm in found["arms"]:
        print(f"{arm['producers']} {arm['transfer']}: {arm['ratio']:.2f} of one with files")


if __name__ == "__main__":
    main()
