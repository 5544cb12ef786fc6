"""Keys and passwords have no place in settings: those are written into files that others read.

Settings go into the run folder, launch files, commands.jsonl, result files and, as a command line,
the list of processes; and stages send no key with their requests, as upstream's clients do not.
vLLM takes its secrets from the environment as well, which is written nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# vLLM's flags whose value is a secret -> where else it may come from.
_FLAGS = {
    "--api-key": "VLLM_API_KEY in the environment of serve.sh or `serve --run`; the servers of the "
    "other stages are asked without a key",
    "--hf-token": "HF_TOKEN in the environment, or `hf auth login`",
    "--watermark-config": "no server of a training or a bench",
}
# The shortest beginning that no other flag of vLLM has; argparse takes beginnings for flags.
_SHORTEST = {"--api-key": 7, "--hf-token": 6, "--watermark-config": 5}
_USER = re.compile(r"//[^/\s\"']*@")


def in_flags(words: Sequence[str]) -> str | None:
    """Why a server's flags can't be taken, a clause that does not hold the secret; None: they can.

    Args:
        words: vLLM's flags, as they would stand on its command line.
    """
    for number, word in enumerate(words):
        if in_text(word):
            return (
                "it holds an address with a user's name or password, which would be written into "
                "the run folder, launch files and results: give the address alone"
            )
        # A flag and its value in one word are a slip, which vLLM would refuse and log.
        first, *rest = word.split(maxsplit=1) or [""]
        name, has_value, _ = first.partition("=")
        name = name.partition(".")[0].replace("_", "-")
        follows = number + 1 < len(words) and not words[number + 1].startswith("--")
        for flag, instead in _FLAGS.items():
            if (
                flag.startswith(name)
                and len(name) >= _SHORTEST[flag]
                and (has_value or rest or follows)
            ):
                return (
                    f"{flag} gives a secret, which would be written into the run folder, launch "
                    f"files and results: leave it out; it belongs into {instead}"
                )
    return None


def in_text(text: str) -> bool:
    """Whether an address in `text` holds a user's name or password."""
    return _USER.search(text) is not None


def in_url(url: str) -> str | None:
    """What a server's address holds that may be a secret; None: nothing.

    A query is none of an address either: no request could be appended to it.
    """
    if "@" in url:
        return "a user's name or password"
    return "a query or fragment, which may be a key" if "?" in url or "#" in url else None
