"""Samples/s of 1 and 2 producers with 1 and 2 trainers, files against Mooncake, in one run.

    python -m benchmarks.transfer          # writes benchmarks/results/transfer.json

Real vLLM servers on a CPU with a random body, a real Mooncake over TCP, upstream's data set with
this project's patches, and upstream's drafter (the real one's widths divided) trained by one or two
gloo ranks. All of it is up from the beginning and the arms take turns. What carries over to another
machine is the ratio to one producer and one trainer with files in the same round; samples/s are
those of the machine that the file names. Every arm must get the same hidden states, bit for bit.

Every producer and every trainer is given the same fixed share of a core (benchmarks/quota.py), so
that a second one adds what a second machine would, as long as the cores suffice for all; with
--cores 0 they push each other off the cores. Loading (DataLoader workers) is not under a share: on
a GPU machine it has cores of its own.

`plan`'s model (recipes/spread/model.py) is given the trainers alone and one producer alone, and
foretells every other arm; the file holds the errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.quota import NoQuotas, Quotas
from benchmarks.transfer_arms import ARMS, TRANSFERS, largest_error, predictions, summary, table
from recipes import environment
from recipes.spread import torchrun
from recipes.vllm.mooncake import Store
from recipes.vllm.mooncake_master import Master
from recipes.vllm_server import Server, ServerSpec

RESULT = Path(__file__).parent / "results" / "transfer.json"
LAYERS, TARGETS = 4, (1, 2, 3)
VOCABULARY, HEAD = 256, 32
REAL_HIDDEN = 2816


def make_body(folder: Path, hidden: int, mlp: int) -> Path:
    """Writes a random Llama of 4 layers with a tokenizer; its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.random_body import write_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=mlp,
        num_hidden_layers=LAYERS, num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD, max_position_embeddings=8192,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)
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


@contextmanager
def servers(
    folder: Path, body: Path, tokens: int, store: Store
) -> Iterator[dict[str, list[Server]]]:
    """Two producers for each transfer, ready."""
    common: dict[str, Any] = {
        "dtype": "bfloat16", "max_model_len": tokens + 1, "extraction_layers": (*TARGETS, LAYERS),
        # Each row is computed, however often it is asked for.
        "extra_args": ("--no-enable-prefix-caching",),
    }  # fmt: skip
    places: dict[str, dict[str, Any]] = {
        "file": {"extraction_folder": folder / "states"},
        "mooncake": {"extraction_store": store},
    }
    with ExitStack() as stack:
        found: dict[str, list[Server]] = {}
        for transfer in TRANSFERS:
            for number in (1, 2):
                name = f"{transfer}-{number}"
                spec = ServerSpec(name, str(body), **common, **places[transfer])
                server = Server(spec, log=folder / "logs" / f"{name}.log")
                stack.callback(server.stop)
                server.start()
                found.setdefault(transfer, []).append(server)
        for server in (one for some in found.values() for one in some):
            server.wait_ready()
        yield found


def ranks(given: dict[str, Any], go: Path, servers: list[Server], log: Path) -> dict[str, Any]:
    """Runs the two ranks; what rank 0 said first, and `rates`: arm -> samples/s by round."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "2", "-m", "benchmarks.transfer_rank",
    ]  # fmt: skip
    variables = {
        **os.environ, **torchrun.ENVIRONMENT, "OMP_NUM_THREADS": "1",
        "TRANSFER_BENCHMARK": json.dumps(given | {"go": str(go)}),
    }  # fmt: skip
    rates: dict[Any, list[float]] = {arm: [] for arm in ARMS}
    first: dict[str, Any] = {}
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("wb"))
        process = stack.enter_context(
            subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=errors)
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(b"{"):
                continue
            said = json.loads(line)
            if not first:
                first = said
                if not said["same_bits"]:
                    raise SystemExit("error: the arms did not get the same hidden states")
                if given["cores"]:
                    try:
                        quotas = stack.enter_context(Quotas(given["cores"]))
                    except NoQuotas as error:
                        raise SystemExit(f"error: {error}; is the machine busy?") from None
                    for server in servers:
                        quotas.give(server.spec.name, server.pids())
                go.touch()
                continue
            arm = ARMS[said["arm"]]
            rates[arm].append(said["samples_s"])
            print(f"round {len(rates[arm])}: {arm.name}: {said['samples_s']:.2f}/s", flush=True)
        if process.wait():
            tail = log.read_text(errors="replace")[-3000:]
            raise SystemExit(f"the ranks ended with exit code {process.returncode}:\n{tail}")
    return first | {"rates": rates}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every arm's samples/s in every round, and the model's."""
    hidden = REAL_HIDDEN // options.divide
    body = make_body(folder / "body", hidden, options.mlp)
    data = make_rows(folder / "data", options.rows, options.tokens)
    size = options.tokens * (len(TARGETS) + 1) * hidden * 2
    with Master(folder / "logs" / "master.log") as master:
        master.wait_ready()
        store = Store(master.address, segment_gib=max(0.0625, 32 * size / 2**30))
        with servers(folder, body, options.tokens, store) as ready:
            given = {
                "divide": options.divide, "tokens": options.tokens, "rows": options.rows,
                "rounds": options.rounds, "workers": options.workers, "cores": options.cores,
                "unmeasured": options.unmeasured, "data": str(data), "master": master.address,
                "urls": {name: [one.base_url for one in some] for name, some in ready.items()},
            }  # fmt: skip
            every = [one for some in ready.values() for one in some]
            found = ranks(given, folder / "go", every, folder / "ranks.log")
    arms = summary(found["rates"])
    told = predictions(arms, options.tokens, found["gradient_bytes"])
    return {
        "bytes_a_sample": size,
        "gradient_bytes": found["gradient_bytes"],
        "same_bits": found["same_bits"],
        "arms": arms,
        "model": told,
        "largest_error_on_unseen": largest_error(told),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=32, help="samples of an arm in a round")
    parser.add_argument("--unmeasured", type=int, default=4, help="first ones of each trainer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="tokens a sample")
    parser.add_argument("--divide", type=int, default=8, help="divides the real drafter's widths")
    parser.add_argument("--mlp", type=int, default=24576, help="MLP of the random body")
    parser.add_argument("--workers", type=int, default=4, help="DataLoader workers a trainer")
    parser.add_argument(
        "--cores", type=float, default=0.4, help="of each producer and trainer; 0: no share"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.rows % 2 or options.rows // 2 <= options.unmeasured:
        parser.error("--rows must be even, and its half above --unmeasured.")
    began = time.monotonic()
    if options.cores:
        try:
            with Quotas(options.cores):
                pass
        except NoQuotas as error:
            raise SystemExit(
                f"error: {error}; with --cores 0 all of them share the cores of this machine."
            ) from None
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    made_with = environment.describe()
    share = f"{options.cores:g}" if options.cores else "no fixed share"
    result = {
        "command": environment.command_line("benchmarks.transfer"),
        "machine": f"{made_with['processor']}, {made_with['cores']} cores, {share} of one for each "
        "producer and trainer",
        "settings": settings, **found, "seconds": round(time.monotonic() - began, 1),
        "made_with": made_with,
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(found["arms"], found["model"]))


if __name__ == "__main__":
    main()
