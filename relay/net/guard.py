"""Public addresses only: checked by name, after resolution, and connected to exactly the address that was checked.

Endpoints come from other people's DID documents. A name that resolves to our own network must not be asked (SSRF), and resolving
twice would let a name change between the check and the connection; so `connect` takes the checked address, and TLS and Host keep the name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from typing import Any

from relay.net.address import Origin, http_origin
from relay.net.errors import HostDown, PrivateAddress

# Host names in handle syntax (PROTOCOL 9): two labels or more, the last one starts with a letter, so no IP literal in any notation.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PUBLIC_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?", re.ASCII)
_PRIVATE_TLDS = frozenset(("alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion", "test"))

# PROTOCOL 10.
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# Inside 2000::/3: 6to4 carries an IPv4 address; so does Teredo, in 2001::/23 with benchmarks and identifiers; documentation.
_REFUSED_V6 = tuple(ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
# A name may have many addresses; trying them all would multiply the connect timeout.
_ADDRESSES_TRIED = 4

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
Lookup = Callable[[str, int], list[AddressInfo]]


def is_public(address: str) -> bool:
    """Say whether an IP address (text, perhaps with a zone) is public as PROTOCOL 10 has it. Raises ValueError on other text."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _REFUSED_V4)
    # Mapped (::ffff:0:0/96) and NAT64 (64:ff9b::/96) forms lie outside of 2000::/3.
    return ip.scope_id is None and ip in _GLOBAL_V6 and not any(ip in network for network in _REFUSED_V6)


def is_public_name(host: str) -> bool:
    """Say whether a host (lower case) is a name in handle syntax under a TLD that can be public."""
    return _PUBLIC_NAME.fullmatch(host) is not None and host.rpartition(".")[2] not in _PRIVATE_TLDS


def _system_lookup(host: str, port: int) -> list[AddressInfo]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(int(family), int(kind), protocol, name, address) for family, kind, protocol, name, address in found]


class Guard:
    """Decides whether an origin may be asked, and connects to it.

    `allow_private` (security.allow_private_hosts) switches the guard off; `exempt` are the origins that the operator named
    (upstream, PLC, `--host`), each in any form that `http_origin` reads. Immutable, so safe for any thread.
    """

    def __init__(self, *, allow_private: bool, exempt: Collection[str] = (), lookup: Lookup = _system_lookup) -> None:
        self.allow_private = allow_private
        self.exempt = frozenset(http_origin(text) for text in exempt if text)
        self._lookup = lookup

    def is_exempt(self, origin: Origin) -> bool:
        return self.allow_private or str(origin) in self.exempt

    def check_name(self, origin: Origin) -> None:
        """Raise PrivateAddress unless the origin's form is allowed: https, a public name, no port of its own."""
        if self.is_exempt(origin):
            return
        if origin.scheme != "https":
            raise self._refusal(origin, "is not https")
        if not is_public_name(origin.host):
            raise self._refusal(origin, "is not a public host name")
        if origin.port != 443:
            raise self._refusal(origin, "names a port of its own")

    def resolve(self, origin: Origin) -> list[AddressInfo]:
        """Return the addresses that may be connected to, at least one and at most four.

        Blocks as long as the system's resolver does (resolv.conf: commonly at most 10-30 s; it cannot be interrupted).
        Raises PrivateAddress when none of the name's addresses is public, HostDown when the name has none.
        """
        self.check_name(origin)
        try:
            found = self._lookup(origin.host, origin.port)
        except (OSError, UnicodeError) as exc:
            raise HostDown(f"{origin}: the name has no address ({exc})", host=str(origin)) from exc
        if not self.is_exempt(origin):
            refused = [info[4][0] for info in found if not is_public(str(info[4][0]))]
            found = [info for info in found if is_public(str(info[4][0]))]
            if refused and not found:
                raise self._refusal(origin, f"resolves to {refused[0]}, which is not public")
        if not found:
            raise HostDown(f"{origin}: the name has no address", host=str(origin))
        return found[:_ADDRESSES_TRIED]

    def _refusal(self, origin: Origin, why: str) -> PrivateAddress:
        return PrivateAddress(
            f"{origin} {why}: refused (security.allow_private_hosts allows it, for development)", host=str(origin)
        )
