"""What the servers need to know of a network: the same for a made-up world and for a corpus of real repositories."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Document(NamedTuple):
    """What an earlier DID document of an account said."""

    multikey: str
    host: int
    pds_override: str | None


class Hosted(Protocol):
    """An account as its servers see it. `status` is empty when active; `rev` may be empty (commit version 2)."""

    @property
    def did(self) -> str: ...
    @property
    def handle(self) -> str: ...
    @property
    def host(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def tombstoned(self) -> bool: ...
    @property
    def pds_override(self) -> str | None: ...
    @property
    def past_documents(self) -> Sequence[Document]: ...
    @property
    def multikey(self) -> str: ...
    @property
    def rev(self) -> str: ...
    @property
    def head(self) -> str:
        """The commit's CID, as text."""

    def collections(self) -> frozenset[str]: ...
    def car(self) -> bytes: ...


class Network(Protocol):
    """All accounts. `lock` is held while any of this is read."""

    @property
    def lock(self) -> threading.RLock: ...
    @property
    def host_urls(self) -> Sequence[str]: ...
    def find(self, did: str) -> Hosted | None: ...
    def everyone(self) -> Sequence[Hosted]: ...
    def on_host(self, host: int) -> Sequence[Hosted]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a PDS sends an export: real ones differ."""

    chunked: bool = False
    gzip: bool = False  # when the client accepts it


def style_of(host: int, *, plain: bool) -> Style:
    """Return the manner of a host: the first with a length, the next chunked, the next with gzip, and so on."""
    if plain:
        return Style()
    return (Style(), Style(chunked=True), Style(gzip=True))[host % 3]
