"""Which network interface carries an address of this machine, and is it one for others?"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct

_GET_ADDRESS, _GET_NETMASK = 0x8915, 0x891B  # SIOCGIFADDR, SIOCGIFNETMASK


def of(name: str) -> str | None:
    """The interface whose IPv4 network holds the address of `name`, e.g. "eth0".

    None where the name has no IPv4 address, or no interface of this machine holds it; then gloo's
    and NCCL's own choice stands.
    """
    try:
        address = ipaddress.IPv4Address(socket.gethostbyname(name))
    except (OSError, UnicodeError):
        return None
    for _, interface in socket.if_nameindex():
        network = _network(interface)
        if network is None:
            continue
        # Every 127.x.y.z is this machine's, whatever lo itself is called.
        if address == network.ip or (address.is_loopback and address in network.network):
            return interface
    return None


def address(name: str) -> str | None:
    """The IPv4 address of `name`, as this machine finds it; None where it is not known here."""
    try:
        return socket.gethostbyname(name)
    except (OSError, UnicodeError):
        return None


def is_own(found: str) -> bool:
    """Whether every machine finds itself at the address `found`."""
    known = ipaddress.IPv4Address(found)
    return known.is_loopback or known.is_unspecified


def towards(name: str) -> str | None:
    """This machine's address on the way to `name`; None where no way is known. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((name, 9))
        except (OSError, UnicodeError):
            return None
        found = ipaddress.IPv4Address(probe.getsockname()[0])
    return None if found.is_loopback else str(found)


def _network(interface: str) -> ipaddress.IPv4Interface | None:
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            address, mask = (
                socket.inet_ntoa(fcntl.ioctl(probe.fileno(), code, request)[20:24])
                for code in (_GET_ADDRESS, _GET_NETMASK)
            )
        except OSError:
            return None
    return ipaddress.IPv4Interface(f"{address}/{mask}")
