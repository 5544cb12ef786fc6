"""Hidden states that come through Mooncake are waited for, or asked again; none is left out.

Upstream's reader gives a sample up when Mooncake's master does not answer for a moment, when the
producer that held it was killed, and 120 s after a full store kept its producer from storing it:
three quick tries, and training goes on without it. A reader that starts while the master is away
holds Python's lock for 90 s, deaf to Ctrl+C; on a machine whose own name does not resolve none
starts at all.

Here a reader waits while the master is away or the store has no room, as long as for a producer
(`wait_for_producer`, --producer-wait-minutes); then the run stops with one sentence and a
checkpoint. A sample that was lost with its producer or with the master's memory is asked again;
also where it was lost while it was read, as its memory may hold another one's bytes by then. What
the producer itself says is wrong with a sample goes upstream's way. Calls into Mooncake, which may
block for a minute, leave signals free.

Producers started with `recipes.mooncake_hidden_states` also never evict or drop a sample and say in
their answers who they are; with upstream's own connector a lost sample is noticed only by time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches import patience
from speculators_patches.mooncake_client import local_address
from speculators_patches.registry import Patch, Target
from speculators_patches.store_wait import Calls, Patience, Status, StoreAway, wait_until_stored

_MADE = "hs_connectors.transfer:MooncakeBackend.from_train_args"
_SETUP = "hs_connectors.transfer:MooncakeTransfer.setup"
_GET = "hs_connectors.transfer:MooncakeTransfer.get_generated"
_DELETE = "hs_connectors.transfer:MooncakeTransfer.delete"

PATCH = Patch(
    name="mooncake_waits",
    defect="While Mooncake's master is away, its store full or a producer killed, training leaves "
    "samples out; a start without a master hangs for 90 s, deaf to signals.",
    needed=SpecifierSet(">=0.9.0"),
    targets=(
        Target(
            "hs_connectors.transfer",
            "MooncakeBackend.from_train_args",
            fingerprints={"==0.9.0": "85f539623736105e"},
        ),
        Target(
            "hs_connectors.transfer",
            "MooncakeTransfer.setup",
            fingerprints={"==0.9.0": "123545cc473a6676"},
        ),
        Target(
            "hs_connectors.transfer",
            "MooncakeTransfer.get_generated",
            fingerprints={"==0.9.0": "cdf4cfd1ede9b7a1"},
        ),
        Target(
            "hs_connectors.transfer",
            "MooncakeTransfer.delete",
            fingerprints={"==0.9.0": "b48bcd691e50f595"},
        ),
        # Whose errors are told apart here.
        Target(
            "hs_connectors.mooncake_store",
            "MooncakeHiddenStatesStore.get_sample",
            fingerprints={"==0.9.0": "41cee4b7a4bd490d"},
            observed=True,
        ),
        Target(
            "hs_connectors.mooncake_store",
            "MooncakeHiddenStatesStore._read_from_store",
            fingerprints={"==0.9.0": "0bd94687be2b1258"},
            observed=True,
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream's Mooncake reader waits for its master and asks again for what was lost",
    proof="tests/faults/test_mooncake_waits.py::test_a_sample_is_waited_for_or_asked_again",
    tested=("0.9.0",),
    used_by="speculators",
)

# With upstream's own connector, which gives no sign of life: upstream's limit.
_WITHOUT_SIGN_S = 120.0
_ALIVE = "producer"  # of recipes.mooncake_hidden_states
_LEASE_EXPIRED, _TRANSFER_FAILED = -707, -800  # Mooncake's

logger = logging.getLogger("speculators")

_HOST = "MOONCAKE_LOCAL_HOSTNAME"

_made: Any = None
_setup: Any = None
_get_generated: Any = None
_delete: Any = None
_calls = Calls()


def from_train_args(args: Any, data_path: str) -> Any:
    """Upstream's, without a look for this machine's own name: `setup` finds the address."""
    if os.environ.get(_HOST):
        return _made(args, data_path)
    os.environ[_HOST] = "127.0.0.1"
    try:
        return _made(args, data_path)
    finally:
        del os.environ[_HOST]


def setup(self: Any) -> None:
    """Upstream's, once the master takes connections.

    Raises:
        StoreAway: it takes none.
    """
    if not self.store.is_setup:
        address = self.store.config.master_server_address
        try:
            self.store.config.local_hostname = local_address(address)
        except OSError as error:
            raise StoreAway(f"Mooncake's master at {address} takes no connection") from error
    _calls(_setup, self)


def get_generated(self: Any, hs_transfer_params: dict[str, Any]) -> Any:
    """Upstream's sample, waited for.

    Raises:
        StoreAway: it is lost.
        Gone: the store was away or full for too long.
        Exception: as upstream's, for what its producer or its manifest says.
    """
    from speculators_patches.producer import Gone

    if gone := vars(self).get("_gone"):
        raise Gone(gone)
    handle = hs_transfer_params["handle"]
    alive = (hs_transfer_params.get("metadata") or {}).get(_ALIVE)
    wait_s = patience.wait_s()
    try:
        wait_until_stored(
            lambda: _either(_look(self, handle), _look(self, f"{handle}:error")),
            lambda: _look(self, alive) if alive else "stored",
            Patience(wait_s=wait_s if alive else min(_WITHOUT_SIGN_S, wait_s)),
        )
    except TimeoutError as error:
        where = self.store.config.master_server_address
        if not alive:
            raise StoreAway(f"nothing came through Mooncake at {where}: {error}") from error
        self._gone = (
            f"no hidden states through Mooncake at {where} for {wait_s / 60:.3g} minutes: {error}. "
            "Mend that, then run the same command again: it goes on from the checkpoint. "
            "--producer-wait-minutes sets how long to wait"
        )
        raise Gone(self._gone) from error
    try:
        sample = _calls(_get_generated, self, hs_transfer_params)
    except Exception as error:
        if _is_lost(error):
            why = _took_too_long(error) or str(error).partition("\n")[0][:200]
            raise StoreAway(f"a stored sample could not be read: {why}") from error
        raise
    if _look(self, handle) != "stored":
        # A master that was started anew, or another process, may have given its memory away.
        raise StoreAway("a sample was removed from the store while it was read")
    return sample


def delete(self: Any, handle: str) -> None:
    """Upstream's; what cannot be removed now its producer removes later."""
    _calls(_delete, self, handle)


def _look(transfer: Any, key: str) -> Status:
    found = _calls(transfer.store._require_store().is_exist, key)
    return "stored" if found == 1 else "absent" if found == 0 else "away"


def _either(one: Status, other: Status) -> Status:
    found = (one, other)
    return "stored" if "stored" in found else "away" if "away" in found else "absent"


def _took_too_long(error: Exception) -> str | None:
    """What to do about a read that did, a clause; None: that is not what went wrong."""
    text = str(error)
    if f"returned {_LEASE_EXPIRED}" in text:
        return "it took longer than its lease; start the master with -default_kv_lease_ttl=90s"
    if f"returned {_TRANSFER_FAILED}" in text:
        return "its producer broke off, or it took above 60 s; fewer --num-workers read at once"
    return None


def _is_lost(error: Exception) -> bool:
    """Whether reading failed for other reasons than what was stored."""
    from hs_connectors.mooncake_store import MooncakeIntegrityError

    text = str(error)
    if isinstance(error, MooncakeIntegrityError):
        return "Mooncake value unavailable" in text or "Mooncake get_into" in text
    return isinstance(error, TimeoutError) or text.startswith("Mooncake ")


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _made, _setup, _get_generated, _delete
    _made, _setup = originals[_MADE], originals[_SETUP]
    _get_generated, _delete = originals[_GET], originals[_DELETE]
    return {_MADE: from_train_args, _SETUP: setup, _GET: get_generated, _DELETE: delete}
