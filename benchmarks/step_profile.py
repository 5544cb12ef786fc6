"""Where a step's time goes on a GPU: phases of training by events, kernels by kind."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.real_size import Training, synchronise

PHASES = ("forward", "backward", "clip", "optimizer")

# First match wins. Names are those of cuBLAS, Triton, inductor and PyTorch's own kernels.
KINDS = (
    ("attention", r"flex_attention|flash|fmha|attention"),
    ("optimizer and clipping", r"multi_tensor_apply|foreach|[Aa]dam|lpnorm|newton"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|xmma|triton_tem|splitK|_scaled_mm"),
    ("loss and accuracy", r"loss_(for|back)ward_kernel|softmax|argmax|xlogy|tanh|ArgMax|nll"),
    ("copies between host and device", r"Memcpy (HtoD|DtoH)"),
    ("casts, copies, fills", r"Memcpy|Memset|copy_kernel|FillFunctor|_to_copy|CatArray"),
)


def kind_of(kernel: str) -> str:
    """The kind of a GPU kernel, by its name; everything unknown is pointwise work of the layer."""
    return next((name for name, pattern in KINDS if re.search(pattern, kernel)), "other pointwise")


def phases(training: Training, batches: list[Any], steps: int) -> dict[str, float]:
    """Median seconds of each phase; the device is waited for after each, as upstream's log does."""
    seen: dict[str, list[float]] = {name: [] for name in PHASES}
    parameters = list(training.model.parameters())
    for number in range(steps):
        synchronise(training.device)
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            synchronise(training.device)
            marks.append(time.perf_counter())

        loss = training.loss(batches[number % len(batches)])
        mark()
        for one in training.optimizers:
            one.zero_grad()
        loss.backward()
        mark()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        mark()
        for one in (*training.optimizers, *training.schedulers):
            one.step()
        mark()
        for index, name in enumerate(PHASES):
            seen[name].append(marks[index + 1] - marks[index])
    return {name: round(statistics.median(values), 5) for name, values in seen.items()}


def kernels(training: Training, batches: list[Any], steps: int = 3) -> dict[str, Any]:
    """Seconds a training step by kind of kernel, and the busiest kernels."""

    def run() -> None:
        for number in range(steps):
            training.step(batches[number % len(batches)])

    return device_time(run, steps)


def device_time(run: Callable[[], None], steps: int) -> dict[str, Any]:
    """What the GPU does while `run` makes so many steps: seconds a step by kind, and kernels.

    The profiler slows the host down, not the kernels: for how long the GPU had nothing to do is to
    be taken from the step's time without it. `host` is where the host's own time went, as far as
    PyTorch and CUDA know (waiting for the GPU is cudaEventSynchronize, cudaStreamSynchronize...).
    """
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        synchronise("cuda")
    kinds: dict[str, float] = {}
    rows, host = [], []
    for event in seen.key_averages():
        if event.device_type == DeviceType.CPU:
            host.append((event.self_cpu_time_total / 1e6 / steps, event.count / steps, event.key))
        if event.device_type != DeviceType.CUDA or event.is_user_annotation:
            continue
        seconds = event.self_device_time_total / 1e6 / steps
        kinds[kind_of(event.key)] = kinds.get(kind_of(event.key), 0.0) + seconds
        rows.append((seconds, event.count / steps, event.key))
    rows.sort(reverse=True)
    host.sort(reverse=True)
    return {
        "kinds_s": {
            name: round(seconds, 5)
            for name, seconds in sorted(kinds.items(), key=lambda item: -item[1])
        },
        "busy_s": round(sum(kinds.values()), 5),
        "launches": round(sum(row[1] for row in rows)),
        "kernels": [_row(*row) for row in rows[:40]],
        "host": [_row(*row) for row in host[:10]],
    }


def _row(seconds: float, calls: float, name: str) -> dict[str, Any]:
    return {"s": round(seconds, 6), "calls": round(calls, 1), "name": name[:160]}
