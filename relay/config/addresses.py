"""Addresses that an operator writes: upstream and directory URLs, `host:port` of ingesters and listeners (pure).

Every function raises ValueError with a text that says what is wrong and what is expected; `load.py` adds key and place.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

# What people paste from the protocol's documentation instead of the origin.
_SUBSCRIBE_PATH = "/xrpc/com.atproto.sync.subscribeRepos"

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?\Z")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?\Z")
_SECURE = {"wss": True, "https": True, "ws": False, "http": False}


def ws_form(url: str) -> str:
    """Return `url`, an origin in any of its four forms or a bare `host[:port]`, as `wss://host[:port]` or `ws://host[:port]`.

    A bare name is taken as secure, but `localhost` is not (the rule of listHosts). An empty text stays empty.
    """
    if not url:
        return ""
    secure, authority, _ = _parse(url, allowed_path=_SUBSCRIBE_PATH)
    return f"{'wss' if secure else 'ws'}://{authority}"


def http_form(url: str) -> str:
    """Return `url` as `https://host[:port]` or `http://host[:port]`; the same rules as `ws_form`."""
    if not url:
        return ""
    secure, authority, _ = _parse(url, allowed_path=_SUBSCRIBE_PATH)
    return f"{'https' if secure else 'http'}://{authority}"


def http_url(url: str) -> str:
    """Return `url` as http or https with its path, which has no slash at its end: for services that live under a path."""
    secure, authority, path = _parse(url, allowed_path=None)
    return f"{'https' if secure else 'http'}://{authority}{path}"


def parse_host_port(text: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[ipv6]:port`; the port is 1 to 65535."""
    host, colon, port_text = text.rpartition(":")
    if "://" in text or "/" in text:
        raise ValueError("expected host:port, without a scheme or a path")
    if not colon or not port_text:
        raise ValueError("expected host:port, the port is missing")
    host = _checked_host(host)
    return host, _checked_port(port_text)


def format_host_port(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether nobody but this machine reaches an address that is listened on."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _parse(url: str, *, allowed_path: str | None) -> tuple[bool, str, str]:
    """Return (secure, authority, path without a slash at its end)."""
    if any(ord(char) <= 32 or ord(char) == 127 for char in url):
        raise ValueError("contains a space or a control character")
    if "://" not in url:
        name = url.split("/", 1)[0].split(":", 1)[0]
        url = f"{'http' if name == 'localhost' else 'https'}://{url}"
    parts = urlsplit(url)
    if parts.scheme not in _SECURE:
        raise ValueError(f"scheme {parts.scheme}:// is not one of wss://, https://, ws://, http://")
    if "@" in parts.netloc:
        raise ValueError("user names and passwords in the address are not supported")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise ValueError("expected an address without ? or #")
    path = parts.path.rstrip("/")
    if allowed_path is not None and path not in ("", allowed_path):
        raise ValueError(f"expected scheme://host[:port] without the path {path}")
    host_text, port = _split_authority(parts.netloc)
    host = _checked_host(host_text).lower()
    if port is not None and port != (443 if _SECURE[parts.scheme] else 80):
        return _SECURE[parts.scheme], format_host_port(host, port), path
    return _SECURE[parts.scheme], f"[{host}]" if ":" in host else host, path


def _split_authority(authority: str) -> tuple[str, int | None]:
    if authority.startswith("["):
        host, _, rest = authority.partition("]")
        if not rest:
            return host + "]", None
        if not rest.startswith(":"):
            raise ValueError(f"unexpected {rest!r} behind the ]")
        return host + "]", _checked_port(rest[1:])
    host, colon, port_text = authority.partition(":")
    return host, _checked_port(port_text) if colon else None


def _checked_host(host: str) -> str:
    if not host:
        raise ValueError("the host is missing")
    if host.startswith("["):
        inner = host[1:-1]
        if not host.endswith("]") or ":" not in inner or not _IPV6.match(inner):
            raise ValueError(f"{host} is not an IPv6 address in brackets")
        return inner
    if ":" in host:
        raise ValueError("an IPv6 address needs brackets: [address]:port")
    if not _HOST_NAME.match(host):
        raise ValueError(f"{host!r} is not a host name")
    return host


def _checked_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"port {text!r} is not a number from 1 to 65535")
    return int(text)
