"""Drafters that differ in one thing, trained by upstream and compared by what would be accepted.

    python -m benchmarks.drafter_variants --run runs/miniature --experiment depth --depth 5 \\
        --seeds 0 1 2 --prompts 24 --out runs/variants
    python -m benchmarks.drafter_variants --body BODY --data PREPARED --dataset FILE.jsonl \\
        --variant 'capped=' --variant 'uncapped=--skip softcap_targets' --out runs/mine

Each variant is a fresh EAGLE-3 drafter, trained on the same rows and hidden states once a seed. The
body's held-out answers, from an extraction server, then say what vLLM would accept of it
(`benchmarks.predict`): the same answers for all, so differences are paired by prompt and free of
sampling noise of the drafts (`benchmarks.variant_differences`). Writes EXPERIMENT.json (or
variants.json). A variant that is trained already is not trained again, so experiments that share
`--out` share trainings and answers.

What a variant's flags may be: `benchmarks.variant_drafters`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import variant_differences as differences
from benchmarks.arms import ArmError
from benchmarks.client import BenchError
from benchmarks.prompts import PromptError, WorkloadPrompt, load_workload
from benchmarks.variant_drafters import Data, Variant, parse, scaled, train

# The first variant is what the others are compared with.
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "teacher": ("capped=", "uncapped=--skip softcap_targets"),
    "depth": ("ttt 4=", "ttt 3=--ttt-steps 3", "ttt 5=--ttt-steps 5"),
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
    # A second training behind the first, half as long and at a quarter of its rate.
    "phase": (
        *(
            f"{name}={flags} --then --loss-fn {loss} --epochs 3 --lr 0.001"
            for name, flags, loss in (
                ("kl, then kl", "", "kl_div"),
                ("kl, then kl, head / 0.9", "--scale-head 0.9", "kl_div"),
                ("kl, then tv", "", "tv"),
                ("kl, then tv, head / 0.9", "--scale-head 0.9", "tv"),
                ("kl, then nla", "", "nla"),
                ("kl, then nla, head / 0.9", "--scale-head 0.9", "nla"),
                ("kl, then lk", "", "lk_hybrid"),
            )
        ),
        "kl alone=",
    ),
    "vocabulary": (
        "full=",
        "384=--draft-vocab-size 384",
        "384, unsayable masked=--draft-vocab-size 384 --mask-unsayable",
        "192=--draft-vocab-size 192",
        "192, unsayable masked=--draft-vocab-size 192 --mask-unsayable",
    ),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.drafter_variants", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = found.add_argument
    add("--run", type=Path, help="a finished miniature run: its vanilla body, rows and states")
    add("--body", help="hub id or folder of the body")
    add("--data", type=Path, help="prepared rows")
    add("--states", type=Path, help="their hidden states (default: beside them)")
    add("--dataset", type=Path, help="held-out prompts, .jsonl")
    add("--prompts", type=int, metavar="K", help="instead: K of each kind of the miniature's world")
    add("--experiment", choices=sorted(EXPERIMENTS), help="a set of variants")
    add("--variant", action="append", default=[], metavar="NAME=FLAGS", help="repeatable")
    add("--seeds", type=int, nargs="+", default=[0], metavar="S", help="a training for each")
    add("--temperature", type=float, nargs="+", default=[0.0, 0.3, 0.7, 1.0], metavar="T")
    add("--depth", type=int, default=4)
    add("--repeats", type=int, default=2, help="answers a prompt at T > 0")
    add("--answers", type=Path, help="folder of answers to share between experiments")
    add("--out", type=Path, required=True)
    return found


def heldout(each: int) -> list[WorkloadPrompt]:
    """The first held-out prompts of each kind of the miniature's world; none was trained on."""
    from recipes.miniature.corpus import prompts

    chosen = [p for kind in ("harmless", "refused") for p in prompts("heldout", kind)[:each]]
    return [WorkloadPrompt(p.id, p.kind, "medium", False, tuple(p.messages)) for p in chosen]


def read(options: argparse.Namespace) -> tuple[list[Variant], Data, list[WorkloadPrompt]]:
    """What is asked for; raises ArmError and PromptError."""
    variants = [parse(v) for v in (*EXPERIMENTS.get(options.experiment, ()), *options.variant)]
    names = [v.name for v in variants]
    if len(set(names)) < len(names) or len(set(options.seeds)) < len(options.seeds):
        raise ArmError(f"Each variant needs a name and each seed a value of its own: {names}.")
    run, states, dataset = options.run, options.states, options.dataset
    body, rows = options.body, options.data
    if run is not None:
        rows = rows or run / "vanilla" / "prepare" / "dataset"
        body = body or str(run / "bodies" / "vanilla")
        states = states or run / "vanilla" / "extract" / "hidden_states"
        dataset = dataset or run / "bodies" / "prompts.heldout.jsonl"
    if not variants or not body or not rows or (dataset is None and options.prompts is None):
        raise ArmError("Give --run (or --body, --data and --dataset), and variants.")
    for folder in (rows, states):
        if folder is not None and not folder.is_dir():
            raise ArmError(f"There is no folder {folder}: was the run's vanilla drafter trained?")
    prompts = load_workload(dataset) if options.prompts is None else heldout(options.prompts)
    return variants, Data(body, rows, states), prompts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 done, 1 it failed, 2 bad input."""
    options = parser().parse_args(arguments)
    options.argv = sys.argv[1:] if arguments is None else list(arguments)
    from recipes.display import Display
    from recipes.servers import ServerPool
    from recipes.vllm_server import ServerError

    try:
        variants, data, prompts = read(options)
    except (ArmError, PromptError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    display = Display()
    try:
        with ServerPool(options.out / "logs", display.note) as pool:
            report = run(options, variants, data, prompts, pool, display.line)
    except (BenchError, ServerError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    finally:
        display.close()
    print(f"written into {options.out}: {len(report['variants'])} variants")
    return 0


def run(
    options: argparse.Namespace,
    variants: Sequence[Variant],
    data: Data,
    prompts: Sequence[WorkloadPrompt],
    pool: Any,
    say: Any,
) -> dict[str, Any]:
    """Trains what is missing, predicts for all, writes and returns the report."""
    from benchmarks.predict import summary
    from benchmarks.predict.drafting import softcap_of
    from benchmarks.predict.session import Question, collect, rows_of
    from recipes.environment import describe
    from recipes.vllm_server import ServerSpec

    drafters: dict[tuple[str, int], str] = {}
    seconds: dict[str, list[float]] = {}
    for seed in options.seeds:
        for variant in variants:
            drafter, took = train(variant, seed, data, options.out)
            seconds.setdefault(variant.name, []).append(took)
            drafters[variant.name, seed] = str(scaled(drafter, variant.scale, options.out))
            say(f"{variant.name}, seed {seed}: trained ({took:.0f} s)")
    named = {f"{name}, seed {seed}": folder for (name, seed), folder in drafters.items()}
    question = Question(
        data.body, named, prompts, tuple(options.temperature), options.depth, options.depth,
        max_tokens=96, repeats=options.repeats,
    )  # fmt: skip
    template = ServerSpec("predict", data.body, max_model_len=256, dtype="float32")
    collection = collect(question, options.answers or options.out, pool, template, lambda _: None)
    rows: dict[str, dict[int, Any]] = {v.name: {} for v in variants}
    for name, seed in drafters:
        rows[name][seed] = rows_of(question, collection, f"{name}, seed {seed}", lambda _: None)
        say(f"{name}, seed {seed}: judged on {len(rows[name][seed])} answers")
    base = variants[0].name
    report = {
        "made_with": describe(),
        "command": shlex.join(["python", "-m", "benchmarks.drafter_variants", *options.argv]),
        "body": Path(data.body).name,
        "softcap": summary.reach(rows[base][options.seeds[0]], softcap_of(data.body)),
        "depth": options.depth,
        "seeds": options.seeds,
        "variants": {
            v.name: {
                "flags": shlex.join(v.flags), "skip": list(v.skip), "scale": v.scale,
                "mask_unsayable": v.mask,
                "train_seconds": seconds[v.name],
                "cells": differences.brief(
                    summary.summarise(differences.pooled(rows[v.name]), options.depth),
                    options.depth,
                ),
            }
            for v in variants
        },
        "differences": differences.compare(rows, options.depth, base),
    }  # fmt: skip
    name = f"{options.experiment or 'variants'}.json"
    (options.out / name).write_text(
        json.dumps(differences.rounded(report), indent=1) + "\n", "utf-8"
    )
    for line in differences.lines(report):
        say(line)
    return report


if __name__ == "__main__":
    sys.exit(main())
