"""vLLM's OpenAI server on a CPU, in two processes instead of three, of which one imports vLLM.

    python -m speculators_patches run --only vllm_cpu_sampling \
        --module recipes.vllm.cpu_entry -- --model M ...

vLLM on a CPU starts its engine and its worker by spawn, and each of them imports torch and vLLM
again, 10 s a process. Here the worker's work is done in the engine's process (spec.py asks for
that) and the engine is forked. A fork is safe because nothing has run in OpenMP threads before it:
threads are what a forked process would miss. That is also why `hold_threads` comes first.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
import warnings
from typing import Any

from recipes.vllm import drafting

SERVER = "vllm.entrypoints.openai.api_server"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Linux: this process is killed when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hold_threads() -> None:
    """Keeps OpenMP single-threaded in this process; call before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = "1"


def fork_the_engine(threads: int) -> None:
    """Makes vLLM fork its engine process, which then computes with `threads` threads."""
    from vllm.utils import system_utils
    from vllm.v1.engine import utils as engine_utils

    def get_mp_context() -> Any:
        return multiprocessing.get_context("fork")

    for module in (system_utils, engine_utils):
        if hasattr(module, "get_mp_context"):
            module.get_mp_context = get_mp_context

    def in_child() -> None:
        import torch

        die_with_parent()
        torch.set_num_threads(threads)

    os.register_at_fork(after_in_child=in_child)


def serve(arguments: list[str], threads: int) -> None:
    """Runs the server in this process until it is told to stop."""
    faulthandler.enable()  # SIGABRT prints every thread's stack (incidents.py); a fork keeps it
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would override --kv-cache-memory-bytes
    block = drafting.block_config(arguments)
    if block is not None and not drafting.verify_blocks():
        sys.exit(f"error: {drafting.on_v1(block, 'a CPU')}")
    fork_the_engine(threads)
    # It is deprecated in favour of the `vllm` command, which vllm-cpu's metadata breaks.
    warnings.filterwarnings("ignore", message=".*api_server.*", category=DeprecationWarning)
    sys.argv = [SERVER, *arguments]
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    wanted = int(os.environ.get("OMP_NUM_THREADS") or 1)
    hold_threads()
    serve(sys.argv[1:], wanted)
