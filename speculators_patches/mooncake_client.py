"""Before a process connects to Mooncake: is its master there, how do others reach this machine?"""

from __future__ import annotations

import os
import socket

_CONNECT_S = 5.0
# Mooncake's own defaults: a line for each thing it does; 20 tries of 4.5 s to connect, during which
# Python's lock is held (run with 0.3.13: 90 s without a master).
_SETTINGS = {"GLOG_minloglevel": "2", "MC_STORE_CLIENT_SETUP_RETRIES": "2"}


def local_address(master: str) -> str:
    """The address by which this machine reaches `master` (host:port), and is reached by others.

    Call it before Mooncake is imported: it also sets what Mooncake reads from the environment,
    where the user has not. MOONCAKE_LOCAL_HOSTNAME overrides the address.

    An address with a scheme (`etcd://`, high availability) is none of one master and is not tried;
    the address is then the one of this machine's name, as upstream takes it.

    Raises:
        OSError: the master takes no connection.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    named = os.environ.get("MOONCAKE_LOCAL_HOSTNAME")
    if "://" in master:
        return named or socket.gethostbyname(socket.gethostname())
    host, _, port = master.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S) as connection:
        address: str = connection.getsockname()[0]
    return named or address
