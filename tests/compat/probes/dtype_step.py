"""One epoch of 0.5.0's own trainer in which the second batch times out entirely.

    python -m tests.compat.probes.dtype_step FOLDER [WORKERS]

Six samples in batches of two. Samples 2 and 3 have no cached hidden states, so upstream's client
asks a server that accepts and never answers; both requests time out. Prints one JSON line: the
steps done, the losses, the prompts the server swallowed. A crash of the trainer is left to crash.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from speculators.models.eagle3.data import shift_batch
from speculators.train import data
from speculators.train.noise_transforms import AddUniformNoise
from torch.utils.data import DataLoader

from tests.compat.probes import upstream_050 as upstream
from tests.compat.probes.silent_server import SilentServer

TOTAL_SEQ_LEN = 48
BATCHES = [[0, 1], [2, 3], [4, 5]]


def main() -> None:
    folder, workers = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    upstream.use_dense_attention()
    upstream.write_data(folder / "data", [20, 20, 20, 20, 20, 20, 20])
    for index in BATCHES[1]:
        (folder / "data" / "hidden_states" / f"hs_{index}.safetensors").unlink()
    server = SilentServer("hang")
    samples = data.ArrowDataset(
        max_len=TOTAL_SEQ_LEN,
        datapath=folder / "data",
        vllm_endpoint=server.url,
        split_ratio=0.9,
        transform=AddUniformNoise(std=0.05),
        hidden_states_dtype=torch.bfloat16,
        model="body",
        request_timeout=0.5,
        max_retries=0,
    )
    loader: DataLoader = DataLoader(
        samples,
        batch_sampler=BATCHES,
        num_workers=workers,
        collate_fn=data.create_collate_fn(TOTAL_SEQ_LEN, upstream.HIDDEN, shift_batch),
    )
    model = upstream.eagle3()
    call = {"use_off_policy_tokens": True, "ttt_steps": 3, "ttt_step_loss_decay": 1.0}
    trainer = upstream.trainer(model, loader, torch.bfloat16, folder / "checkpoints", call)
    seen: list[dict[str, str]] = []
    losses: list[float] = []

    def record(_module: object, _args: object, kwargs: dict, output: tuple) -> None:
        seen.append({name: str(value.dtype) for name, value in kwargs.items()
                     if isinstance(value, torch.Tensor)})  # fmt: skip
        losses.append(output[1].item())

    model.register_forward_hook(record, with_kwargs=True)
    before = model.fc.weight.detach().clone()
    trainer.train_epoch(0)
    trainer.maybe_save_checkpoint(0, None)
    print(
        json.dumps(
            {
                "steps": trainer.global_step,
                "losses": losses,
                "dtypes": seen,
                "prompts": server.prompts,
                "trained": not torch.equal(before, model.fc.weight),
                "finite": all(bool(p.isfinite().all()) for p in model.parameters()),
                "saved": sorted(p.name for p in (folder / "checkpoints" / "0").iterdir()),
            }
        )
    )
    server.close()


if __name__ == "__main__":
    main()
