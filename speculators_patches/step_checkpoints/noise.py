"""Noise on hidden states (speculators 0.7 and 0.8) that does not depend on who draws it, or when.

Those versions add uniform noise to every sample (`--noise-std`, 0.05 by default), from the random
generator of whichever DataLoader worker loads it. Workers live and die with the process, so a
resumed run would draw other noise. Here each sample's noise is drawn from a generator of its own,
seeded by the run's seed, the epoch and the sample's tokens: the same with any number of workers,
stopped or not. Its distribution is upstream's.
"""

from __future__ import annotations

import hashlib
from typing import Any

from speculators_patches.checkpointing.fingerprint import Field


class SampleNoise:
    """Upstream's `transform` of a sample, drawn as described above. Travels to workers by pickle.

    Args:
        transform: takes and returns a sample (a dict with `input_ids`, [tokens]) and draws from
            torch's CPU generator, which is left as it was.
        seed: of the run.
    """

    def __init__(self, transform: Any, seed: int) -> None:
        import torch

        self._transform = transform
        self._seed = seed
        # Shared memory: persistent workers keep the copy of this object that they were given.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def begin(self, epoch: int) -> None:
        """Call before the epoch's first sample is asked for."""
        self._epoch.fill_(epoch)

    def __call__(self, sample: Any) -> Any:
        import torch

        told = f"{self._seed} {int(self._epoch)} ".encode()
        digest = hashlib.sha256(told + sample["input_ids"].numpy().tobytes()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            return self._transform(sample)


def install(loader: Any) -> tuple[SampleNoise | None, list[Field]]:
    """Gives the loader's data set such noise where upstream adds any; what identifies it.

    Call it before the loader has workers.
    """
    import torch

    dataset = getattr(loader, "dataset", None)
    transform = getattr(dataset, "transform", None)
    if dataset is None or transform is None:
        return None, []
    seed = torch.initial_seed()
    dataset.transform = noise = SampleNoise(transform, seed)
    return noise, [
        Field("data.noise", f"{type(transform).__name__} {getattr(transform, 'std', None)}"),
        Field("data.noise_seed", seed),
    ]
