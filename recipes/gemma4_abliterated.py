"""Fine-tune an EAGLE-3 drafter for an abliterated Gemma 4, from prompts to a serving command.

    python -m recipes.gemma4_abliterated                       # the miniature, start to end
    python -m recipes.gemma4_abliterated plan --preset dgx-spark
    python -m recipes.gemma4_abliterated all  --preset dgx-spark --run-dir runs/round1

Each stage (`regenerate`, `prepare`, `train`, `calibrate`, `bench`, `serve`) is one command, reads
what the one before wrote, and continues where it stopped. `all` runs what is missing.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from recipes import plan as planning
from recipes.config import (
    ADDITIONS,
    PRESETS,
    ConfigError,
    Recipe,
    resolve,
    split_preset,
)
from recipes.display import Display
from recipes.process import StageError
from recipes.run_folder import RunFolder
from recipes.spread import outlook, refusals
from recipes.spread.placement import leader_serves, place
from recipes.upstream import UpstreamError
from recipes.vllm_server import ServerError
from speculators_patches.output import endure_a_full_disk

app = typer.Typer(
    help=__doc__,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Folder of the run [default: runs/PRESET].")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help=f"One of {', '.join(PRESETS)}, with +{', +'.join(ADDITIONS)} behind it if wanted "
        "[default: the run folder's, else miniature].",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value over preset and file; see `settings`. Repeatable."),
]
Config = Annotated[Path | None, typer.Option("--config", help="TOML or JSON file of settings.")]


@contextmanager
def _clear_errors() -> Iterator[None]:
    """One sentence and an exit code for what can go wrong; tracebacks only for our own bugs."""
    from benchmarks.acceptance import BenchError

    def terminate(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    # Under nohup SIGHUP is ignored, and stays so.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, terminate) for number in numbers}
    try:
        yield
    except (ConfigError, UpstreamError) as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    except StageError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    except (ServerError, BenchError) as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as e:
        print(f"error: {e.strerror or e}: {e.filename or 'no file named'}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resolve(
    run_dir: Path | None, preset: str | None, config: Path | None, assignments: list[str] | None
) -> tuple[Recipe, dict[str, str], RunFolder, str]:
    """Settings and folder of this call: a run folder's own settings hold until they are changed.

    Raises:
        ConfigError: a setting that cannot be used, or a folder that holds another preset's run.
    """
    run = RunFolder((run_dir or Path("runs") / (preset or "miniature")).absolute())
    saved = run.saved()
    if saved is None:
        preset = preset or "miniature"
        recipe, origin = resolve(preset, config, assignments or [])
        return recipe, origin, run, split_preset(preset)[0]
    machine, additions = split_preset(preset or saved["preset"])
    if machine != saved["preset"]:
        raise ConfigError(
            f"{run.root} holds a run of preset {saved['preset']}; give another --run-dir for "
            f"{machine}, or leave --preset out to go on with that run."
        )
    recipe, origin = resolve(
        "+".join([machine, *additions]), config, assignments or [], saved["settings"],
        saved["origin"],
    )  # fmt: skip
    return recipe, origin, run, saved["preset"]


def _run(
    names: list[str],
    run_dir: Path | None,
    preset: str | None,
    config: Path | None,
    assignments: list[str] | None,
) -> None:
    from recipes import stages
    from recipes.servers import ServerPool
    from recipes.spread import join as joining
    from recipes.spread.call import Call
    from recipes.stage import Context

    with _clear_errors():
        recipe, origin, run, preset = _resolve(run_dir, preset, config, assignments)
        refusals.check(recipe, preset, run.root)
        several = place(recipe).is_spread
        if several:
            refusals.check_is(recipe.hosts, 0)
        display = Display()
        wait_s = recipe.start_timeout if several else 0.0
        logs = run.root / "logs"
        pool = ServerPool(logs, display.note, recipe.start_timeout, run.record_server, wait_s)
        try:
            with ExitStack() as stack:
                stack.enter_context(run.locked())
                stack.enter_context(pool)
                run.write_config(preset, recipe.to_json(), origin)
                call = stack.enter_context(Call(run)) if several else None
                if leader_serves(recipe):
                    display.line(
                        f"the producers of {recipe.hosts[0]}, this machine, need beside this: "
                        "python -m recipes.gemma4_abliterated join --number 0 --run-dir "
                        f"{shlex.quote(str(run.root))}"
                    )
                ctx = Context(joining.with_endpoints(recipe), run, display, pool, call=call)
                if preset == "miniature":
                    from recipes.miniature import pipeline

                    pipeline.run(ctx, names)
                else:
                    for name in names:
                        stages.STAGES[name](ctx)
        finally:
            display.close()


def _stage_command(name: str, help_text: str) -> None:
    def command(
        run_dir: RunDir = None, preset: Preset = None, config: Config = None, set_: Set = None
    ) -> None:
        _run([name], run_dir, preset, config, set_)

    app.command(name, help=help_text)(command)


_stage_command("regenerate", "The body answers the prompts (its own words are what is learnt).")
_stage_command("prepare", "Answers -> packed training rows and token frequencies.")
_stage_command("train", "Fine-tune the drafter on the body's hidden states.")
_stage_command("calibrate", "The drafter to serve: the trained one at head_temperature.")
_stage_command("bench", "Acceptance by position and tok/s for each number of drafted tokens.")


@app.command(name="all")
def all_(
    run_dir: RunDir = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    until: Annotated[
        str, typer.Option("--until", help="The last stage to run, e.g. train.")
    ] = "serve",
) -> None:
    """Every stage that is not done yet, in order."""
    names = ["regenerate", "prepare", "train", "calibrate", "bench", "serve"]
    if until not in names:
        print(f"error: --until {until} is none of {', '.join(names)}.", file=sys.stderr)
        raise SystemExit(2)
    _run(names[: names.index(until) + 1], run_dir, preset, config, set_)


@app.command()
def join(
    run_dir: RunDir = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    number: Annotated[
        int | None,
        typer.Option("--number", help="Place in `hosts` [default: this machine's name there]."),
    ] = None,
    silence: Annotated[
        float, typer.Option("--silence", help="Seconds that the leading machine may be silent.")
    ] = 1800.0,
) -> None:
    """On every machine of `hosts` but the first: the producers and trainers placed on it.

    Where `plan` places producers on the first machine too, run `join --number 0` there beside
    `all`: it starts them.
    """
    from recipes.spread import join as joining

    with _clear_errors():
        recipe, _, run, name = _resolve(run_dir, preset, config, set_)
        placement = refusals.check(recipe, name, run.root)
        if not placement.is_spread:
            raise ConfigError("join is for a run on several machines: give --set hosts=a,b,...")
        if number is None:
            number = placement.number_of(socket.gethostname())
        if not 0 <= number < len(placement.hosts):
            raise ConfigError(f"--number {number} is none of the {len(placement.hosts)} hosts.")
        refusals.check_is(recipe.hosts, number)
        display = Display()
        try:
            joining.join(recipe, run, number, display.line, display.note, silence)
        finally:
            display.close()


@app.command()
def serve(
    run_dir: RunDir = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    run: Annotated[
        bool, typer.Option("--run", help="Become the server instead of printing.")
    ] = False,
) -> None:
    """Print the production command for the trained drafter, or run it."""
    from recipes import stages
    from recipes.calibrate_stage import served_drafter
    from recipes.drafting_choice import choose
    from recipes.vllm_server import command

    with _clear_errors():
        recipe, _, folder, name = _resolve(run_dir, preset, config, set_)
        if name == "miniature":
            from recipes.miniature import pipeline

            recipe = pipeline.with_bodies(recipe, folder)
        argv = command(stages.production_spec(recipe, folder))
        print(f"# {choose(recipe, folder).reason}", file=sys.stderr)
        print(f"# {served_drafter(recipe, folder).words}", file=sys.stderr)
        print(shlex.join(argv))
        if run:
            sys.stdout.flush()
            os.execv(argv[0], argv)


@app.command()
def plan(
    run_dir: RunDir = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    launcher: Annotated[
        str | None,
        typer.Option(
            "--launcher", help="Write files for skypilot, slurm, torchrun, docker-compose."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for those files.")] = None,
) -> None:
    """What each stage would run and cost. Starts nothing, needs neither vLLM nor a GPU."""
    with _clear_errors():
        if (launcher is None) != (out is None):
            raise ConfigError("--launcher NAME and --out FOLDER go together.")
        recipe, _, folder, name = _resolve(run_dir, preset, config, set_)
        print(f"preset: {name}")
        for package, version in planning.versions().items():
            print(f"{package}: {version}")
        for line in planning.notes(recipe, folder.root, name):
            print(line)
        if name == "miniature":
            from recipes.miniature import pipeline

            steps = pipeline.plan(recipe, folder)
        else:
            from recipes.spread import join as joining

            steps = planning.make_plan(joining.with_endpoints(recipe), folder, name)
        for line in planning.render(steps):
            print(line)
        if outlook.is_several(recipe):
            print()
            for line in outlook.lines(recipe, name, folder.root):
                print(line)
        elif recipe.transfer == "mooncake":
            refusals.check(recipe, name, folder.root)
        if launcher is not None and out is not None:
            from recipes.spread import launch
            from recipes.spread.launch.job import Job

            refusals.check(recipe, name, folder.root)
            print()
            for path in launch.write(launcher, Job(recipe, name, folder.root, out.absolute())):
                print(f"written: {path}")


@app.command(name="worth-it")
def worth_it(
    run_dir: RunDir = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    closes: Annotated[
        float,
        typer.Option(help="Share of the way to a perfect drafter that training may close."),
    ] = 0.5,
) -> None:
    """Train, do not train, or change the serving flags first? Asks the body, trains nothing."""
    from benchmarks.predict.distributions import SamplingError
    from recipes import worth_it as judging
    from recipes.servers import ServerPool

    with _clear_errors():
        if not 0 < closes <= 1:
            raise ConfigError(f"--closes {closes} must lie between 0 and 1.")
        recipe, _, run, name = _resolve(run_dir, preset, config, set_)
        if name == "miniature":
            from recipes.miniature import pipeline

            recipe = pipeline.with_bodies(recipe, run)
        display = Display()
        pool = ServerPool(run.root / "logs", display.note, recipe.start_timeout, run.record_server)
        try:
            with run.locked(), pool, display.activity("worth-it") as activity:
                report = list(judging.worth_it(recipe, run, pool, closes, activity.update))
        except SamplingError as e:
            raise ConfigError(str(e)) from None
        finally:
            display.close()
        print("\n".join(report))


@app.command()
def doctor(
    run_dir: RunDir = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Will this machine carry the run? Exit code 1 if something would break it."""
    from recipes import doctor as doctoring
    from recipes import machine

    with _clear_errors():
        recipe, _, folder, name = _resolve(run_dir, preset, config, set_)
        endpoints = (*recipe.regenerate_endpoints, *recipe.train_endpoints)
        found = doctoring.examine(
            recipe,
            machine.examine(
                folder.root,
                (recipe.body, recipe.draft_start),
                (recipe.serve_port,),
                tuple(url for url in endpoints if url),
            ),
            folder.root,
            name,
        )
        if as_json:
            print(json.dumps([f.to_json() for f in found], indent=1))
        else:
            for line in doctoring.render(found):
                print(line)
        raise SystemExit(int(doctoring.is_broken(found)))


@app.command()
def settings(
    run_dir: RunDir = None, preset: Preset = None, config: Config = None, set_: Set = None
) -> None:
    """Every setting: its value, where that came from, what it means."""
    with _clear_errors():
        recipe, origin, _, name = _resolve(run_dir, preset, config, set_)
        print(f"# preset {name}")
        for key, value, doc in recipe.describe():
            print(f"{key} = {value!r}  # {doc} [{origin.get(key, 'published default')}]")


def main() -> None:
    """Entry point; a bare call runs the miniature, which needs minutes and no download."""
    if len(sys.argv) == 1:
        sys.argv += ["all", "--preset", "miniature"]
    endure_a_full_disk()  # nohup ... > night.log
    app()


if __name__ == "__main__":
    main()
