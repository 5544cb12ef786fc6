"""Property on 0.5.0: whichever samples fail, every batch has the dtypes and widths of a real one.

    python -m tests.compat.probes.dtype_property FOLDER

Upstream's data set, client, collate function and trainer; failing samples have no cached hidden
states and ask a server that drops the connection. Exits 1 with the falsifying example.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from speculators.models.eagle3.data import shift_batch
from speculators.train import data
from torch.utils.data import DataLoader

from tests.compat.probes import upstream_050 as upstream
from tests.compat.probes.silent_server import SilentServer

LENGTHS = [
    1,
    2,
    7,
    19,
    33,
    5,
]  # the last one is split off for validation, as upstream's script does


@dataclass
class Case:
    """A drafter with the data set and preprocessing that upstream's script gives it."""

    model: Any
    preprocess: Any
    dtype: torch.dtype
    samples: data.ArrowDataset
    files: Path


def cases(folder: Path, server: SilentServer) -> list[Case]:
    made = []
    for layers in (3, 5, 1):
        upstream.write_data(folder / str(layers), LENGTHS, layers)
    for model, preprocess, layers, dtype in (
        (upstream.eagle3(), shift_batch, 3, torch.bfloat16),
        (upstream.eagle3(), shift_batch, 3, torch.float32),
        (upstream.dflash(5), None, 5, torch.bfloat16),
        (upstream.dflash(1), None, 1, torch.float16),
    ):
        samples = data.ArrowDataset(
            max_len=64,
            datapath=folder / str(layers),
            vllm_endpoint=server.url,
            split_ratio=0.9,
            hidden_states_dtype=dtype,
            request_timeout=5,
            max_retries=0,
        )
        files = folder / str(layers) / "hidden_states"
        made.append(Case(model, preprocess, dtype, samples, files))
    return made


def looks(batch: dict[str, torch.Tensor]) -> dict[str, tuple]:
    """What a model must be able to rely on: dtype and feature width of each tensor."""
    return {
        key: (value.dtype, *value.shape[2:]) if key != "lengths" else (value.dtype,)
        for key, value in batch.items()
    }


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    server = SilentServer("drop")
    made = cases(folder, server)
    samples_there = len(made[0].samples)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck),
              derandomize=True, database=None)  # fmt: skip
    @given(
        case=st.sampled_from(made),
        chosen=st.lists(st.integers(0, samples_there - 1), min_size=1, max_size=6),
        failing=st.sets(st.integers(0, samples_there - 1)),
        max_len=st.integers(1, 80),
    )
    def batches_look_alike(case: Case, chosen: list[int], failing: set[int], max_len: int) -> None:
        collate = data.create_collate_fn(max_len, upstream.HIDDEN, case.preprocess)
        loader: DataLoader = DataLoader(case.samples, batch_sampler=[chosen], collate_fn=collate)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for index in range(samples_there):
                if index not in failing:
                    name = f"hs_{index}.safetensors"
                    (Path(scratch) / name).symlink_to(case.files / name)
            case.samples.hidden_states_path = case.files
            upstream.trainer(case.model, loader, case.dtype, folder / "checkpoints", {})
            real = next(iter(loader))
            case.samples.hidden_states_path = Path(scratch)
            batch = next(iter(loader))
        assert looks(batch) == looks(real), f"{looks(batch)} is not {looks(real)}"
        assert all(value.shape[:2] == (1, max_len) for key, value in batch.items()
                   if key != "lengths")  # fmt: skip
        if set(chosen) <= failing:
            assert not batch["loss_mask"].any(), "an empty batch must teach nothing"
            assert batch["lengths"].sum() == 0

    batches_look_alike()
    print("held")


if __name__ == "__main__":
    main()
