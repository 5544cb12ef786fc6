"""A training run that waits for a vLLM which never answers. Prints `trained` if it ever gets on.

    python -m tests.faults.probes.waiting_run FOLDER ENDPOINT PATCH [...]

Upstream's trainer, data set and OpenAI client, in one process (what --num-workers 0 means).
"""

from __future__ import annotations

import sys
from pathlib import Path

from speculators_patches import apply
from tests.faults import tiny


def main() -> None:
    folder, endpoint, *patches = sys.argv[1:]
    apply(only=["cpu_training", *patches])
    from datasets import Dataset
    from speculators.models.eagle3.data import shift_batch
    from speculators.train.data import ArrowDataset
    from speculators.train.dataloader import _setup_dataloader

    data = Path(folder) / "data"
    ids = tiny.sample(0)["input_ids"].tolist()
    row = {"input_ids": ids, "loss_mask": [1] * len(ids), "seq_len": len(ids)}
    Dataset.from_list([row] * 8).with_format("torch").save_to_disk(str(data))
    trainer = tiny.trainer(Path(folder), "R")
    dataset = ArrowDataset(tiny.TOKENS, data, vllm_endpoint=endpoint, request_timeout=3600)
    trainer.train_loader = _setup_dataloader(
        dataset, tiny.TOKENS, tiny.HIDDEN, num_workers=0, preprocess=shift_batch
    )
    trainer.val_loader = None
    trainer.run_training()
    print("returned from run_training", flush=True)


if __name__ == "__main__":
    main()
