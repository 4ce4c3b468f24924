"""Which addresses may be asked."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Blame
from relay.net.address import Origin, parse_target
from relay.net.errors import HostDown, PrivateAddress
from relay.net.guard import AddressInfo, Guard, is_public, is_public_name

PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.7", "224.0.0.1",
    "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::7f00:1", "64:ff9b::7f00:1",
    "64:ff9b:1::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1", "2002:7f00:1::", "2002:808:808::1", "2001::1",
    "2001:db8::1", "2001:10::1", "2001:20::1", "2001:2::1", "3fff::1", "4000::1", "100::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "172.15.255.255",
    "172.32.0.0", "191.255.255.255", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
    "2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "2003::1",
]  # fmt: skip


def answering(*addresses: str) -> Guard:
    """A guard whose names all resolve to `addresses`."""

    def lookup(host: str, port: int) -> list[AddressInfo]:
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in addresses
        ]

    return Guard(allow_private=False, lookup=lookup)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_every_embedding_of_an_ipv4_address_in_ipv6_is_refused(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for base, shift in (("::ffff:0:0", 0), ("::", 0), ("64:ff9b::", 0), ("2002::", 80)):
        embedded = ipaddress.IPv6Address(int(ipaddress.IPv6Address(base)) | number << shift)
        assert not is_public(str(embedded))


@given(st.ip_addresses())
def test_what_passes_is_global_in_the_standard_librarys_view_too(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert not is_public(str(address)) or (address.is_global and not address.is_multicast)


@pytest.mark.parametrize(
    "name",
    [
        "localhost", "127.0.0.1", "0x7f.1", "2130706433", "127.1", "0177.0.0.1", "1.2.3.4", "::1", "com", "a.local", "pds.internal",
        "pds.test", "x.onion", "x.example", "x.arpa", "x.invalid", "x.localhost", "x.alt", "-a.com", "a-.com", "a..com", "a.com.", "a_b.com",
        "", ".com", "a.1com", "a.com\n", "ünï.com", "a" * 64 + ".com", ".".join(["abcdefg"] * 40),
    ],
)  # fmt: skip
def test_names_that_are_no_public_host_names_are_refused(name: str) -> None:
    assert not is_public_name(name)


@pytest.mark.parametrize(
    "name", ["bsky.network", "morel.us-east.host.bsky.network", "a.co", "1and1.com", "xn--bcher-kva.ch"]
)
def test_public_host_names_pass(name: str) -> None:
    assert is_public_name(name)


@pytest.mark.parametrize(
    "url",
    ["http://pds.host.net", "https://pds.host.net:8443", "https://10.0.0.1", "https://[::1]", "https://localhost"],
)
def test_an_origin_of_a_refused_form_never_reaches_the_resolver(url: str) -> None:
    def lookup(host: str, port: int) -> list[AddressInfo]:
        raise AssertionError("resolved")

    with pytest.raises(PrivateAddress) as caught:
        Guard(allow_private=False, lookup=lookup).resolve(parse_target(url).origin)
    assert caught.value.reason == "private_address"
    assert caught.value.blame is Blame.OPERATOR


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_resolves_to_a_private_address_is_refused(address: str) -> None:
    with pytest.raises(PrivateAddress, match="allow_private_hosts"):
        answering(address).resolve(Origin("https", "pds.host.net", 443))


def test_of_a_names_addresses_only_the_public_ones_are_connected_to() -> None:
    found = answering("10.0.0.1", "1.1.1.1", "::1", "2606:4700::1111").resolve(Origin("https", "pds.host.net", 443))
    assert [info[4][0] for info in found] == ["1.1.1.1", "2606:4700::1111"]


def test_a_name_with_many_addresses_is_not_tried_for_ever() -> None:
    found = answering(*[f"1.1.1.{n}" for n in range(1, 60)]).resolve(Origin("https", "pds.host.net", 443))
    assert len(found) == 4


def test_a_name_without_an_address_is_the_hosts_failure() -> None:
    with pytest.raises(HostDown):
        answering().resolve(Origin("https", "pds.host.net", 443))


def test_what_the_operator_named_is_exempt_in_every_way_of_writing_it_and_nothing_else_is() -> None:
    guard = Guard(
        allow_private=False, exempt=["ws://localhost:2583", "https://10.0.0.1/xrpc/x", "", "wss://relay.internal:443"]
    )
    for url in ("http://localhost:2583", "https://10.0.0.1", "https://relay.internal"):
        guard.check_name(parse_target(url).origin)
    for url in ("http://localhost:2584", "https://localhost:2583", "https://10.0.0.2", "https://10.0.0.1:8443"):
        with pytest.raises(PrivateAddress):
            guard.check_name(parse_target(url).origin)


def test_allow_private_hosts_lets_everything_through() -> None:
    guard = Guard(allow_private=True)
    for url in ("http://127.0.0.1:1", "http://[::1]:2583", "https://localhost"):
        guard.check_name(parse_target(url).origin)
