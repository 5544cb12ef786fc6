"""Which network interface carries an address of this machine."""

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
