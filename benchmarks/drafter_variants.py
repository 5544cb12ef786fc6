"""Drafters that differ in one thing, trained by upstream and compared by what would be accepted.

    python -m benchmarks.drafter_variants --run runs/miniature --experiment teacher --out runs/a
    python -m benchmarks.drafter_variants --body BODY --data PREPARED --dataset FILE.jsonl \\
        --variant 'capped=' --variant 'uncapped=--skip softcap_targets' --out runs/mine

Each variant is a fresh EAGLE-3 drafter trained on the same rows with hidden states that lie beside
them (`hidden_states` of a run's `vanilla/prepare/dataset`). Then the body's held-out answers, from
an extraction server, say for every one what vLLM would accept (`benchmarks.predict`): the same
answers for all, so differences are paired by prompt and free of sampling noise of the drafts.
Writes EXPERIMENT.json (or variants.json). A variant that is trained already is not trained again.

A variant's flags are `--skip PATCH`, `--scale-head T` (its head divided by T after training),
`--mask-unsayable` (patch unsayable_positions), and whatever upstream's train takes; the last of a
repeated flag counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import stats
from benchmarks.arms import ArmError
from benchmarks.client import BenchError
from speculators_patches.patches.unsayable_positions import SETTING as UNSAYABLE

# Miniature's drafter A: what every variant starts from.
BASE = (
    "--speculator-type", "eagle3", "--total-seq-len", "512", "--train-data-ratio", "0.9",
    "--epochs", "6", "--optimizer", "adamw", "--lr", "0.004", "--scheduler-type", "cosine",
    "--ttt-steps", "4", "--seed", "0", "--hidden-states-dtype", "float32", "--loss-implementation",
    "eager", "--draft-attn-impl", "sdpa", "--target-layer-ids", "1", "2", "3", "--on-missing",
    "raise", "--checkpoint-every-minutes", "0", "--num-workers", "0",
)  # fmt: skip
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "teacher": ("capped=", "uncapped=--skip softcap_targets"),
    "depth": tuple(f"ttt {k}=--ttt-steps {k}" for k in (1, 2, 3, 4, 5)),
    "loss": (
        "kl=",
        "kl, head / 0.8=--scale-head 0.8",
        "kl, head / 0.9=--scale-head 0.9",
        "kl, head / 1.1=--scale-head 1.1",
        "kl, head / 1.25=--scale-head 1.25",
        "tv=--loss-fn tv",
        "nla=--loss-fn nla",
        "lk_hybrid=--loss-fn lk_hybrid",
    ),
    "vocabulary": (
        "full=",
        "384=--draft-vocab-size 384",
        "384, unsayable masked=--draft-vocab-size 384 --mask-unsayable",
        "192=--draft-vocab-size 192",
        "192, unsayable masked=--draft-vocab-size 192 --mask-unsayable",
    ),
}


@dataclass(frozen=True)
class Variant:
    """One drafter: what it is called, what is left out or added, and how its head is scaled."""

    name: str
    flags: tuple[str, ...]
    skip: tuple[str, ...] = ()
    scale: float = 1.0
    mask: bool = False

    @property
    def trained_as(self) -> str:
        """Variants that differ in `scale` only share a training."""
        words = shlex.join([*self.flags, *(f"--skip={name}" for name in self.skip)])
        words += " masked" if self.mask else ""
        return "".join(c if c.isalnum() else "-" for c in words).strip("-") or "base"


def parse(text: str) -> Variant:
    """`name=flags`; raises ArmError where it is not of that form."""
    name, _, flags = text.partition("=")
    if not name.strip() or "=" not in text:
        raise ArmError(f"--variant {text!r} must have the form 'name=flags'.")
    rest, skip, scale, mask = [], [], 1.0, False
    words = iter(shlex.split(flags))
    for word in words:
        if word == "--skip":
            skip.append(next(words, ""))
        elif word == "--scale-head":
            scale = float(next(words, "1"))
        elif word == "--mask-unsayable":
            mask = True
        else:
            rest.append(word)
    return Variant(name.strip(), tuple(rest), tuple(skip), scale, mask)


def train(variant: Variant, body: str, data: Path, out: Path) -> tuple[Path, float]:
    """The folder of the drafter that vLLM can load, and the seconds its training took.

    Raises:
        BenchError: upstream's trainer failed; the message names its log.
    """
    from recipes.upstream import newest_drafter

    folder = out / "trained" / variant.trained_as
    took = folder / "seconds.json"
    if not took.exists():
        folder.mkdir(parents=True, exist_ok=True)
        skip = [part for name in variant.skip for part in ("--skip", name)]
        argv = [
            sys.executable, "-m", "speculators_patches", "run", *skip, "--module",
            "speculators.train", "--", "--verifier-name-or-path", body, "--data-path", str(data),
            "--save-path", str(folder / "checkpoints"), "--log-dir", str(folder / "logs"),
            *BASE, *variant.flags,
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


def scaled(drafter: Path, scale: float, out: Path) -> Path:
    """A copy of the drafter whose head is divided by `scale`: its softmax at that temperature."""
    if scale == 1.0:
        return drafter
    import shutil

    from safetensors.torch import load_file, save_file

    target = out / "scaled" / f"{drafter.parent.parent.name}-{scale:g}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(drafter, target)
    weights = load_file(str(target / "model.safetensors"))
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = (head.float() / scale).to(head.dtype)
    save_file(weights, str(target / "model.safetensors"), metadata={"format": "pt"})
    return target


def compare(rows: dict[str, list[Any]], depth: int, base: str) -> list[dict[str, Any]]:
    """Expected tokens a step of each variant minus the first one's, paired by prompt."""
    from benchmarks.predict.evaluate import GREEDY, PROBABILISTIC
    from benchmarks.predict.summary import by_prompt

    found = []
    for name in rows:
        if name == base:
            continue
        for temperature in sorted({r.temperature for r in rows[base]}):
            for way in (GREEDY, PROBABILISTIC):
                sides = []
                for side in (name, base):
                    chosen = [
                        r for r in rows[side] if r.temperature == temperature and r.starts > 0
                    ]
                    drafts, accepted = by_prompt(chosen, way, depth)
                    import numpy as np

                    sides += [drafts, np.minimum.accumulate(accepted, axis=1)]
                difference = stats.length_difference(*sides)
                found.append(
                    {"variant": name, "minus": base, "temperature": temperature, "drafting": way,
                     "tokens_a_step": difference.to_json()}
                )  # fmt: skip
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.drafter_variants", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = found.add_argument
    add("--run", type=Path, help="a finished miniature run: its vanilla body, rows and states")
    add("--body", help="hub id or folder of the body")
    add("--data", type=Path, help="prepared rows with hidden_states beside them")
    add("--dataset", type=Path, help="held-out prompts, .jsonl")
    add("--experiment", choices=sorted(EXPERIMENTS), help="a set of variants")
    add("--variant", action="append", default=[], metavar="NAME=FLAGS", help="repeatable")
    add("--temperature", type=float, nargs="+", default=[0.0, 0.3, 0.7, 1.0], metavar="T")
    add("--depth", type=int, default=4)
    add("--repeats", type=int, default=2, help="answers a prompt at T > 0")
    add("--answers", type=Path, help="folder of answers to share between experiments")
    add("--out", type=Path, required=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 done, 1 it failed, 2 bad input."""
    options = parser().parse_args(arguments)
    from recipes.display import Display
    from recipes.servers import ServerPool
    from recipes.vllm_server import ServerError

    try:
        variants = [parse(v) for v in (*EXPERIMENTS.get(options.experiment, ()), *options.variant)]
        if options.run is not None:
            options.body = options.body or str(options.run / "bodies" / "vanilla")
            options.data = options.data or options.run / "vanilla" / "prepare" / "dataset"
            options.dataset = options.dataset or options.run / "bodies" / "prompts.heldout.jsonl"
        if not variants or not (options.body and options.data and options.dataset):
            raise ArmError("Give --run (or --body, --data and --dataset), and variants.")
    except (ArmError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    display = Display()
    try:
        with ServerPool(options.out / "logs", display.note) as pool:
            report = run(options, variants, pool, display.line)
    except (BenchError, ServerError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    finally:
        display.close()
    print(f"written into {options.out}: {len(report['variants'])} variants")
    return 0


def run(
    options: argparse.Namespace, variants: Sequence[Variant], pool: Any, say: Any
) -> dict[str, Any]:
    """Trains what is missing, predicts for all, writes and returns the report."""
    from benchmarks.predict import summary
    from benchmarks.predict.session import Question, collect, rows_of
    from benchmarks.prompts import load_workload
    from recipes.environment import describe
    from recipes.vllm_server import ServerSpec

    prompts = load_workload(options.dataset)
    drafters, seconds = {}, {}
    for variant in variants:
        drafter, seconds[variant.name] = train(variant, options.body, options.data, options.out)
        drafters[variant.name] = str(scaled(drafter, variant.scale, options.out))
        say(f"{variant.name}: trained ({seconds[variant.name]:.0f} s)")
    question = Question(
        options.body, drafters, prompts, tuple(options.temperature), options.depth,
        options.depth, max_tokens=96, repeats=options.repeats,
    )  # fmt: skip
    template = ServerSpec("predict", options.body, max_model_len=256, dtype="float32")
    collection = collect(question, options.answers or options.out, pool, template, lambda _: None)
    rows = {name: rows_of(question, collection, name, lambda _: None) for name in drafters}
    report = {
        "made_with": describe(),
        "body": Path(options.body).name,
        "softcap": summary.reach(next(iter(rows.values())), _cap(options.body)),
        "depth": options.depth,
        "variants": {
            v.name: {
                "flags": shlex.join(v.flags), "skip": list(v.skip), "scale": v.scale,
                "mask_unsayable": v.mask,
                "train_seconds": seconds[v.name],
                "cells": summary.summarise(rows[v.name], options.depth),
            }
            for v in variants
        },
        "differences": compare(rows, options.depth, variants[0].name),
    }  # fmt: skip
    name = f"{options.experiment or 'variants'}.json"
    (options.out / name).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for line in lines(report):
        say(line)
    return report


def _cap(body: str) -> float | None:
    from benchmarks.predict.drafting import softcap_of

    return softcap_of(body)


def lines(report: dict[str, Any]) -> list[str]:
    """Tokens a step of every variant, at every temperature, both ways of drafting."""
    found = []
    for name, variant in report["variants"].items():
        for cell in variant["cells"]:
            if cell["workload"] != "all":
                continue
            told = {
                way: cell["tokens_a_step"][way][report["depth"]]["value"]
                for way in ("greedy", "probabilistic")
            }
            found.append(
                f"{name:<28} T = {cell['temperature']:g}: greedy {told['greedy']:.3f}, "
                f"probabilistic {told['probabilistic']:.3f}, p(argmax q) "
                f"{cell['measures']['greedy'][0]:.3f}, overlap {cell['measures']['overlap'][0]:.3f}"
            )
    for d in report["differences"]:
        t = d["tokens_a_step"]
        found.append(
            f"{d['variant']} - {d['minus']}, T = {d['temperature']:g}, {d['drafting']}: "
            f"{t['value']:+.3f} ({t['low']:+.3f} to {t['high']:+.3f})"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
