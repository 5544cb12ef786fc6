"""What can go wrong with a vLLM server, each as one sentence a user can act on."""

from __future__ import annotations

import re
from pathlib import Path

_TAKEN = r"[Aa]ddress already in use"

# vLLM's own words in its log -> what they mean and what to do. First match wins.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"Available memory on node .*|Free memory on device .* less than desired GPU memory",
        "there is not enough free memory for it; stop what else uses the memory, or lower "
        "gpu_memory_utilization (on a CPU: kv_cache_bytes)",
    ),
    (
        r"No available memory for the cache blocks|larger than the available KV cache memory",
        "the memory left for its KV cache is too small; raise gpu_memory_utilization (on a CPU: "
        "kv_cache_bytes) or lower max_model_len",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|DefaultCPUAllocator: can't allocate memory",
        "it ran out of memory; lower gpu_memory_utilization or max_model_len, or free memory",
    ),
    (
        _TAKEN,
        "its port was taken while it started; start it again or give another port",
    ),
    (
        r"is not a local folder and is not a valid model identifier|Repository Not Found"
        r"|does not appear to have a file named|couldn't connect to .*huggingface",
        "its model could not be found or downloaded; check the name or path",
    ),
    (
        r"unrecognized arguments?: (?P<what>[^\n]*)",
        "this vLLM version does not know the option {what}; leave it out or change vLLM's version",
    ),
    (
        r"speculators_patches: (?P<what>[^\n]*)",
        "{what}",
    ),
    (
        r"No module named 'vllm|No module named vllm",
        "vLLM is not installed in this environment; install the extra [gpu] or [cpu]",
    ),
    (
        # Pydantic's form of a refused setting; its first sentence says which and why.
        r"Value error, (?P<what>[^\n]+?)(?:\.(?= |\n)| \[type=|\n)",
        "vLLM refuses its settings: {what}",
    ),
    (
        r"error: (?P<what>argument -[^\n]{1,400})",
        "vLLM refuses its settings: {what}",
    ),
    # Nothing we know: the engine's own error, before the one that only says that it failed.
    (
        r"\] (?P<what>\w*(?:Error|Exception): [^\n]*)",
        "its engine failed with {what}; see its log",
    ),
    (
        r"\n(?P<what>\w*(?:Error|Exception): [^\n]*)",
        "it failed with {what}; see its log",
    ),
)


class ServerError(Exception):
    """A vLLM server that did not start, is not the right one, or died.

    `str()` is one sentence (what, where, what to do), followed, where there is a log, by its path
    and last lines.

    Attributes:
        sentence: the sentence alone.
        log_path: the server's log, or None for an endpoint that we did not start.
    """

    def __init__(self, sentence: str, log_path: Path | None = None) -> None:
        self.sentence = sentence
        self.log_path = log_path
        text = sentence
        if log_path is not None:
            tail = log_tail(log_path)
            text += f"\nLog: {log_path}" + (f", ending:\n{tail}" if tail else " (empty)")
        super().__init__(text)


def log_tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log, "" if there are none or no file."""
    return "\n".join(_read_end(path).splitlines()[-lines:])


def cause_in_log(path: Path) -> str | None:
    """What vLLM's log says went wrong, as a clause, or None where it is not one we know."""
    text = _read_end(path)
    for pattern, meaning in _CAUSES:
        match = re.search(pattern, text)
        if match:
            groups = {key: value.strip() for key, value in match.groupdict().items() if value}
            return meaning.format(**groups)
    return None


def port_was_taken(path: Path) -> bool:
    """Whether vLLM's log says that another program had its port."""
    return re.search(_TAKEN, _read_end(path)) is not None


def _read_end(path: Path, size: int = 200_000) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
