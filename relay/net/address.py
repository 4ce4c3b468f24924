"""Origins and URLs as the network room uses them (pure): parsed once, compared as values."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin, urlsplit

from relay.config.addresses import http_url

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PATH_SAFE = "/%:@!$&'()*+,;=-._~"
_REQUEST_TARGET = re.compile(r"/[!-~]*")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?|[0-9a-f:.]{{2,45}}", re.ASCII)
_LISTED_HOST = re.compile(r"([a-zA-Z0-9.-]{1,253})(?::([0-9]{1,5}))?", re.ASCII)


class InvalidAddress(ValueError):
    """Not a URL or origin that HTTP can be spoken to; the message quotes it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who is spoken to: scheme `http` or `https`, host in lower case (IPv6 without brackets), port."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """`host` or `host:port`, as in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


@dataclass(frozen=True, slots=True)
class Target:
    """One URL, split: its origin and the request target (`path?query`, printable ASCII without spaces)."""

    origin: Origin
    path: str

    def __str__(self) -> str:
        return f"{self.origin}{self.path}"


def parse_target(url: str) -> Target:
    """Split an http(s) URL. Raises InvalidAddress: other schemes, user names, bad hosts and ports, control characters."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise InvalidAddress(f"not a URL: {url[:200]!r} ({exc})") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidAddress(f"not an http(s) URL: {url[:200]!r}")
    if "@" in parts.netloc:
        raise InvalidAddress(f"user names are not allowed in a URL: {parts.hostname!r}")
    host = parts.hostname or ""
    if not _HOST.fullmatch(host) or port == 0:
        raise InvalidAddress(f"no usable host or port in the URL {url[:200]!r}")
    if _CONTROL.search(url):
        raise InvalidAddress(f"control character or space in the URL {url[:200]!r}")
    path = quote(parts.path or "/", safe=_PATH_SAFE)
    if parts.query:
        path += "?" + quote(parts.query, safe=_PATH_SAFE + "?")
    return Target(Origin(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme]), path)


@functools.lru_cache(maxsize=4096)
def _base(url: str) -> tuple[Origin, str]:
    target = parse_target(url)
    return target.origin, target.path.rstrip("/")


def target_below(base: str, path: str) -> Target:
    """Return the target of `base + path` where the same base is asked again and again: it is parsed once, which takes 12 us.

    `base` is a URL without query; `path` a request target, `/path?query`, as its maker quoted it. Raises InvalidAddress for either.
    """
    if not _REQUEST_TARGET.fullmatch(path):
        raise InvalidAddress(f"not the path of a URL: {path[:200]!r}")
    origin, above = _base(base)
    return Target(origin, above + path)


def join_target(base: Target, location: str) -> Target:
    """Return where a `Location` header leads from `base`. Raises InvalidAddress."""
    try:
        return parse_target(urljoin(str(base), location.strip()))
    except InvalidAddress:
        raise
    except ValueError as exc:
        raise InvalidAddress(f"not a URL: {location[:200]!r} ({exc})") from None


def http_origin(address: str) -> str:
    """Return the HTTP origin of an address that the operator wrote: `wss://host` -> `https://host`, `host` -> `https://host`.

    A path is dropped. Raises InvalidAddress. Source: config.addresses, which reads the same forms.
    """
    try:
        return str(parse_target(http_url(address.strip())).origin)
    except InvalidAddress:
        raise
    except ValueError as exc:
        raise InvalidAddress(f"{address[:200]!r}: {exc}") from None


def listed_host_origin(hostname: str) -> str:
    """Return the origin of a listHosts entry, which has no scheme: https, but `localhost:PORT` means http.

    Raises InvalidAddress. Source: DESIGN 8.
    """
    match = _LISTED_HOST.fullmatch(hostname)
    if match is None:
        raise InvalidAddress(f"not a host name: {hostname[:200]!r}")
    name = match[1].lower()
    is_local = match[2] is not None and name in ("localhost", "127.0.0.1")
    return str(parse_target(f"{'http' if is_local else 'https'}://{name}{':' + match[2] if match[2] else ''}").origin)


def did_web_url(did: str) -> str:
    """Return where the document of a did:web is: `https://<host>/.well-known/did.json`.

    No path form. A port stands as `%3A<port>` and is for development: `localhost` then means http, and the guard decides
    whether any port is allowed. Raises InvalidAddress. Source: PROTOCOL 8.
    """
    name = did.removeprefix("did:web:")
    if ":" in name or "/" in name:
        raise InvalidAddress(f"{did}: did:web with a path is not supported")
    return listed_host_origin(unquote(name)) + "/.well-known/did.json"
