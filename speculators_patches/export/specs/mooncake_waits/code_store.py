"""For `hs_connectors/mooncake_store.py`."""

import socket
import time

_MASTER_TIMEOUT = 90.0
_LOST_AFTER = 12.0


class MooncakeUnavailableError(RuntimeError):
    """Mooncake's master does not answer."""


def _wait_for_master(address: str) -> None:
    """Return once the master takes a connection.

    Mooncake's own ``setup`` waits as long, but holds Python's lock meanwhile.
    """
    if "://" in address:  # high availability: no address of one master
        return
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _MASTER_TIMEOUT
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise MooncakeUnavailableError(
                    f"Mooncake's master at {address} takes no connection: {error}"
                ) from error
        time.sleep(0.5)


def after_a_look(look, deadline):
    try:
        look()
    except MooncakeUnavailableError:
        if time.monotonic() >= deadline:
            raise
        was_away = True
    else:
        if was_away:  # and has forgotten what it had
            was_away = False
            deadline = min(deadline, time.monotonic() + _LOST_AFTER)


def constants():
    # How long a client waits for the master before it connects, in seconds.
    _MASTER_TIMEOUT = 90.0
    # How long after a restart of the master a sample may still be stored, in seconds.
    _LOST_AFTER = 12.0
