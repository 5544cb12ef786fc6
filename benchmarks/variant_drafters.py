"""One drafter of `benchmarks.drafter_variants`: what it is trained with, and its training.

A variant's flags are `--skip PATCH`, `--scale-head T` (its head divided by T after training),
`--mask-unsayable` (patch unsayable_positions), and whatever upstream's train takes; the last of a
repeated flag counts. Flags behind `--then` are a second training's, which starts from the first
one's drafter, with the same rows, seed and patches.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.arms import ArmError
from benchmarks.client import BenchError
from recipes import scaled_drafter
from speculators_patches.patches.unsayable_positions import SETTING as UNSAYABLE

# Miniature's drafter A: what every variant starts from.
BASE = (
    "--speculator-type", "eagle3", "--total-seq-len", "512", "--train-data-ratio", "0.9",
    "--epochs", "6", "--optimizer", "adamw", "--lr", "0.004", "--scheduler-type", "cosine",
    "--ttt-steps", "4", "--hidden-states-dtype", "float32", "--loss-implementation",
    "eager", "--draft-attn-impl", "sdpa", "--target-layer-ids", "1", "2", "3", "--on-missing",
    "raise", "--checkpoint-every-minutes", "0", "--num-workers", "0",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One drafter: what it is called, what is left out or added, and how its head is scaled.

    `then` are the flags of a second training; None: there is none.
    """

    name: str
    flags: tuple[str, ...]
    skip: tuple[str, ...] = ()
    scale: float = 1.0
    mask: bool = False
    then: tuple[str, ...] | None = None

    @property
    def first(self) -> Variant:
        """The drafter that a second training starts from."""
        return replace(self, scale=1.0, then=None)

    def trained_as(self, seed: int = 0) -> str:
        """Folder of the training; variants that differ in `scale` only share one."""
        words = shlex.join([*self.flags, *(f"--skip={name}" for name in self.skip)])
        words += " masked" if self.mask else ""
        words += "" if self.then is None else f" then {shlex.join(self.then)}"
        name = "".join(c if c.isalnum() else "-" for c in words).strip("-") or "base"
        return name if seed == 0 else f"{name}-seed-{seed}"


@dataclass(frozen=True)
class Data:
    """What all variants are trained on.

    Attributes:
        body: hub id or folder of the verifier.
        rows: prepared rows.
        states: their hidden states; None where they lie beside the rows, as upstream expects.
    """

    body: str
    rows: Path
    states: Path | None = None


def parse(text: str) -> Variant:
    """`name=flags`; raises ArmError where it is not of that form."""
    name, _, flags = text.partition("=")
    if not name.strip() or "=" not in text:
        raise ArmError(f"--variant {text!r} must have the form 'name=flags'.")
    rest, skip, scale, mask = [], [], 1.0, False
    given_flags, later = shlex.split(flags), None
    if "--then" in given_flags:
        cut = given_flags.index("--then")
        given_flags, later = given_flags[:cut], tuple(given_flags[cut + 1 :])
        wrong = {"--then", "--skip", "--scale-head", "--mask-unsayable", "--seed"} & {*later}
        if wrong:
            raise ArmError(
                f"{name!r} has {', '.join(sorted(wrong))} behind --then, where only flags of "
                "upstream's train may be: put it before."
            )
    words = iter(given_flags)
    for word in words:
        if word == "--skip":
            skip.append(next(words, ""))
        elif word == "--scale-head":
            given = next(words, "")
            try:
                scale = float(given)
            except ValueError:
                raise ArmError(f"--scale-head {given!r} of {name!r} is not a number.") from None
            if not 0 < scale < float("inf"):
                raise ArmError(f"--scale-head {given} of {name!r} must be above 0 and finite.")
        elif word == "--mask-unsayable":
            mask = True
        elif word == "--seed":
            raise ArmError(f"{name!r} sets --seed: give the seeds of all variants with --seeds.")
        else:
            rest.append(word)
    return Variant(name.strip(), tuple(rest), tuple(skip), scale, mask, later)


def train(variant: Variant, seed: int, data: Data, out: Path) -> tuple[Path, float]:
    """The folder of the drafter that vLLM can load, and the seconds its (last) training took.

    Raises:
        BenchError: upstream's trainer failed; the message names its log.
    """
    from recipes.upstream import newest_drafter

    start: list[str] = []
    if variant.then is not None:
        start = ["--from-pretrained", str(train(variant.first, seed, data, out)[0])]
    folder = out / "trained" / variant.trained_as(seed)
    took = folder / "seconds.json"
    if not took.exists():
        folder.mkdir(parents=True, exist_ok=True)
        skip = [part for name in variant.skip for part in ("--skip", name)]
        states = [] if data.states is None else ["--hidden-states-path", str(data.states)]
        argv = [
            sys.executable, "-m", "speculators_patches", "run", *skip, "--module",
            "speculators.train", "--", "--verifier-name-or-path", data.body, "--data-path",
            str(data.rows), *states, "--save-path", str(folder / "checkpoints"), "--log-dir",
            str(folder / "logs"), *_base(started=bool(start)), *start, "--seed", str(seed),
            *variant.flags, *(variant.then or ()),
        ]  # fmt: skip
        began = time.monotonic()
        with (folder / "train.log").open("wb") as log:
            code = subprocess.run(
                argv, stdout=log, stderr=subprocess.STDOUT, check=False,
                # One thread: on a busy machine two wait for each other longer than they compute.
                env={**os.environ, UNSAYABLE: "mask" if variant.mask else "",
                     "OMP_NUM_THREADS": "1"},
            ).returncode  # fmt: skip
        if code:
            raise BenchError(f"Training {variant.name} ended with code {code}: {folder}/train.log")
        took.write_text(json.dumps({"seconds": time.monotonic() - began}), "utf-8")
    seconds = float(json.loads(took.read_text("utf-8"))["seconds"])
    return newest_drafter(folder / "checkpoints"), seconds


def _base(*, started: bool) -> tuple[str, ...]:
    """BASE; a started drafter brings the layers that it reads."""
    if not started:
        return BASE
    at = BASE.index("--target-layer-ids")
    return (*BASE[:at], *BASE[at + 4 :])


def scaled(drafter: Path, scale: float, out: Path) -> Path:
    """A copy of the drafter whose head is divided by `scale`: its softmax at that temperature."""
    if scale == 1.0:
        return drafter
    target = out / "scaled" / f"{drafter.parent.parent.name}-{scale:g}"
    target.parent.mkdir(parents=True, exist_ok=True)
    scaled_drafter.scale(drafter, target, scale)
    return target
