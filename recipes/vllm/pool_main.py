"""A process that has imported vLLM and speculators once, and forks a server or a command from it.

    python -m speculators_patches run --only vllm_cpu_sampling \
        --module recipes.vllm.pool_main -- LOG

The owner writes JSON lines to standard input and reads JSON lines from standard output:

    {"start": 1, "args": [...], "env": {...}, "log": "...", "threads": 1}
        -> {"started": 1, "pid": P}, and when that server has ended {"ended": P, "code": C}
    {"start": 2, "module": "speculators.train", "args": [...], "env": {...}, "log": "...", ...}
        runs upstream's module instead, with the patches that it needs, as `run --module` does
    {"stop": P, "grace": 10.0}

The first line it writes is {"ready": seconds}. Its own output goes to LOG. When standard input
closes, all servers are ended and so is the pool. It has one thread, and must: a fork copies only
the thread that calls it, and locks that others hold stay locked in the copy.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import Any

from recipes.vllm.cpu_entry import die_with_parent, hold_threads, serve
from recipes.vllm.group import Group, adopt_orphans
from speculators_patches.launcher import Program, run_patched

# What a server imports in its first seconds. Missing ones (other vLLM versions) are passed over:
# the server then imports them itself.
_IMPORTS = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.spec_decode.eagle",
    "vllm.v1.spec_decode.extract_hidden_states",
    "vllm.model_executor.models.gemma4",
    "vllm.model_executor.models.llama_eagle3",
    "vllm.model_executor.models.extract_hidden_states",
    "recipes.cpu_hidden_states",
    "speculators.cli",
    "speculators.train.cli",
)
_MODELS = ("Gemma4ForCausalLM", "Eagle3LlamaForCausalLM", "ExtractHiddenStatesModel")
_LAST_GRACE_S = 5.0


class Pool:
    """The servers forked so far, and the line to their owner."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies
        self._groups: dict[int, Group] = {}
        self._unread = b""

    def run(self) -> None:
        """Answers requests until the owner is gone; ends every server before it returns."""
        while self._answer_requests():
            self._report_ended()
        for group in self._groups.values():
            group.ask_to_stop(_LAST_GRACE_S)
        while any(group.poll() is None for group in self._groups.values()):
            time.sleep(0.05)

    def _answer_requests(self) -> bool:
        readable, _, _ = select.select([self._requests], [], [], 0.05)
        if not readable:
            return True
        data = os.read(self._requests, 65536)
        self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._answer(json.loads(line))
        return bool(data)

    def _answer(self, request: dict[str, Any]) -> None:
        if "start" in request:
            pid = self._fork(request)
            self._groups[pid] = Group(pid)
            self.tell({"started": request["start"], "pid": pid})
        elif request["stop"] in self._groups:
            self._groups[request["stop"]].ask_to_stop(request["grace"])

    def _report_ended(self) -> None:
        for pid, group in list(self._groups.items()):
            code = group.poll()
            if code is not None:
                del self._groups[pid]
                self.tell({"ended": pid, "code": code})

    def tell(self, message: dict[str, Any]) -> None:
        """One line to the owner; if it is gone, the next read says so."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._replies, json.dumps(message).encode() + b"\n")

    def _fork(self, request: dict[str, Any]) -> int:
        owner = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            die_with_parent()
            if os.getppid() != owner:  # it died before the line above
                os._exit(1)
            os.close(self._requests)
            os.close(self._replies)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            _send_output_to(request["log"])
            os.environ.update(request["env"])
            if "module" in request:
                run_module(request["module"], request["args"], request["threads"])
            else:
                serve(request["args"], request["threads"])
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            if isinstance(ended.code, str):  # as the interpreter does
                print(ended.code, file=sys.stderr)
        except KeyboardInterrupt:
            code = 130
        except BaseException:  # noqa: BLE001  (a fork must never return into the pool's loop)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def register_models() -> None:
    """Gives vLLM's registry the imported classes of the models that the recipe serves.

    It would otherwise look at each in a process of its own, which imports vLLM again: several
    servers that start together on a fresh machine then take minutes.
    """
    from vllm import ModelRegistry

    for name in _MODELS:
        lazy = ModelRegistry.models.get(name)
        if lazy is not None:
            ModelRegistry.register_model(name, lazy.load_model_cls())


def run_module(module: str, args: list[str], threads: int) -> None:
    """Runs upstream's `module` as `__main__`, patched; what it raises passes through."""
    import torch

    torch.set_num_threads(threads)
    run_patched(Program(module=module, args=tuple(args)))


def _send_output_to(log: str) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def main() -> None:
    """Imports, says so, and serves requests."""
    began = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the owner's to handle
    adopt_orphans()
    pool = Pool(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    _send_output_to(sys.argv[1])
    for name in _IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    register_models()
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if threads != 1:
        sys.exit(f"the imports started {threads - 1} threads, so forking is not safe here")
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it looks at
    pool.tell({"ready": round(time.monotonic() - began, 2)})
    pool.run()


if __name__ == "__main__":
    hold_threads()
    main()
