"""Mooncake for hidden states: is it installed, where is its master, what is vLLM told. No torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.vllm.errors import ServerError

GIB = 2**30
# After how long Mooncake's client gives up reading a sample; it cannot be set (0.3.13).
READ_S = 60.0
# For how long a sample stays for who has asked for it; a read that outlasts it counts as failed.
# Mooncake's own 10 s are too few for a slow link, over which then no sample would ever arrive.
LEASE_S = 90.0
# Room for Mooncake's own small messages; samples go through buffers of their own.
LOCAL_BUFFER_GIB = 0.0625


def package() -> Path | None:
    """Mooncake's folder in this environment; None: not installed."""
    found = importlib.util.find_spec("mooncake")
    folders = (found.submodule_search_locations or ()) if found else ()
    return next((Path(one) for one in folders if (Path(one) / "mooncake_master").is_file()), None)


def missing() -> str | None:
    """Why Mooncake cannot be used here, as a sentence that says what to do; None if it can."""
    folder = package()
    if folder is None:
        return (
            "Mooncake is not installed in this environment: pip install "
            "'speculators-patches[mooncake]' (on a GPU machine mooncake-transfer-engine works too)."
        )
    lacking = [name for name in ("libibverbs.so.1", "librdmacm.so.1") if not _loads(name)]
    if lacking:
        return (
            f"Mooncake needs {' and '.join(lacking)}, also for TCP: install your distribution's "
            "packages (Debian, Ubuntu: apt-get install libibverbs1 librdmacm1)."
        )
    return None


def require() -> Path:
    """Mooncake's folder.

    Raises:
        ServerError: it cannot be used here.
    """
    why = missing()
    if why is not None:
        raise ServerError(why)
    folder = package()
    assert folder is not None
    return folder


def _loads(library: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Store:
    """A Mooncake store as servers and trainers of one run use it.

    Attributes:
        master: its master's address, host:port.
        segment_gib: memory of each producer for samples that wait for their reader, GiB.
        room_s: how long a producer waits for room or for the master, seconds.
        unread_s: after how long a sample that nobody read or reads is removed, seconds.
    """

    master: str
    segment_gib: float = 4.0
    room_s: float = 900.0
    unread_s: float = 120.0

    def connector(self) -> dict[str, Any]:
        """vLLM's --kv-transfer-config."""
        return {
            "kv_connector": "PinnedMooncakeConnector",
            "kv_connector_module_path": "recipes.mooncake_hidden_states",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {
                "mooncake": {
                    "metadata_server": "P2PHANDSHAKE",
                    "master_server_address": self.master,
                    "global_segment_size": round(self.segment_gib * GIB),
                    "local_buffer_size": round(LOCAL_BUFFER_GIB * GIB),
                    "protocol": "tcp",
                },
                "patience": {"room_s": self.room_s, "unread_s": self.unread_s},
            },
        }

    def trainer_flags(self) -> list[str]:
        """Upstream's flags. A trainer lends no memory: what it held would end with it."""
        return [
            "--hidden-states-backend", "mooncake",
            "--mooncake-master", self.master,
            "--mooncake-global-segment-gib", "0",
            "--mooncake-local-buffer-gib", str(LOCAL_BUFFER_GIB),
        ]  # fmt: skip
