"""Identifiers: DID, handle, NSID, record key, TID (a rev is one), AT-URI, datetime.

`parse_x` returns the identifier as its own type or raises InvalidSyntax; `is_x` says whether it would. Only these functions
make the NewTypes. All grammars are ASCII and are matched against the whole text. Source: PROTOCOL 9; vectors:
atproto-interop-tests/syntax.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType

from relay.atproto.errors import InvalidSyntax

Did = NewType("Did", str)
Handle = NewType("Handle", str)
Nsid = NewType("Nsid", str)
Rkey = NewType("Rkey", str)
Tid = NewType("Tid", str)
Rev = Tid

DID_CHARS = 2048
HANDLE_CHARS = 253
NSID_CHARS = 317
AT_URI_CHARS = 8192
DATETIME_CHARS = 64

_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_DID = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]", re.ASCII)
_DID_PLC = re.compile(r"did:plc:[a-z2-7]{24}", re.ASCII)
_DID_WEB = re.compile(
    rf"did:web:(?:(?:{_LABEL}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?|localhost%3A[0-9]{{1,5}})", re.ASCII
)
_HANDLE = re.compile(rf"(?:{_LABEL}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?", re.ASCII)
_NSID = re.compile(
    rf"[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?(?:\.{_LABEL})+\.[a-zA-Z][a-zA-Z0-9]{{0,62}}", re.ASCII
)
_RKEY = re.compile(r"[a-zA-Z0-9_~.:-]{1,512}", re.ASCII)
_TID = re.compile(r"[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}", re.ASCII)
_CID_STRING = re.compile(r"[a-zA-Z0-9+=]{8,256}", re.ASCII)
_DATETIME = re.compile(
    r"([0-9]{4})-([01][0-9])-([0-3][0-9])T([0-2][0-9]):([0-6][0-9]):([0-6][0-9])(?:\.([0-9]{1,20}))?"
    r"(?:Z|([+-])([0-2][0-9]):([0-5][0-9]))",
    re.ASCII,
)
_EPOCH = dt.datetime(1970, 1, 1)
_MICROSECOND = dt.timedelta(microseconds=1)
_YEARS_400_US = 146_097 * 86_400 * 1_000_000
_YEAR_0_US = (dt.datetime(400, 1, 1) - _EPOCH) // _MICROSECOND - _YEARS_400_US

# Top-level domains that never name an account (PROTOCOL 9); `.test` is for development and allowed.
_BANNED_TLDS = (".alt", ".arpa", ".example", ".internal", ".invalid", ".local", ".localhost", ".onion")

TID_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_TID_VALUE = {char: value for value, char in enumerate(TID_ALPHABET)}


def _refuse(what: str, text: object) -> InvalidSyntax:
    shown = repr(text)
    return InvalidSyntax(f"not a {what}: {shown if len(shown) <= 100 else shown[:97] + '...'}")


def is_did(text: object) -> bool:
    return isinstance(text, str) and len(text) <= DID_CHARS and _DID.fullmatch(text) is not None


def parse_did(text: str) -> Did:
    """Return a DID of any method; case counts. At most 2048 characters."""
    if not is_did(text):
        raise _refuse("DID", text)
    return Did(text)


def is_resolvable_did(text: object) -> bool:
    """Say whether this is a DID of a method that accounts have: did:plc, or did:web without path (a port on localhost only)."""
    return (
        isinstance(text, str)
        and len(text) <= DID_CHARS
        and (_DID_PLC.fullmatch(text) is not None or _DID_WEB.fullmatch(text) is not None)
    )


def is_handle(text: object) -> bool:
    """Follow the grammar only; see `is_usable_handle` for the domains that no account can have."""
    return isinstance(text, str) and len(text) <= HANDLE_CHARS and _HANDLE.fullmatch(text) is not None


def is_usable_handle(text: object) -> bool:
    """Say whether an account can have this handle: the grammar, and none of the reserved top-level domains."""
    return is_handle(text) and isinstance(text, str) and not text.lower().endswith(_BANNED_TLDS)


def parse_handle(text: str) -> Handle:
    """Return the handle in lower case, as handles are compared. At most 253 characters."""
    if not is_handle(text):
        raise _refuse("handle", text)
    return Handle(text.lower())


def is_at_identifier(text: object) -> bool:
    """Say whether this is a DID or a handle."""
    return is_did(text) or is_handle(text)


def is_nsid(text: object) -> bool:
    return isinstance(text, str) and len(text) <= NSID_CHARS and _NSID.fullmatch(text) is not None


def parse_nsid(text: str) -> Nsid:
    """Return the NSID as written (repo keys are compared as bytes); `fold_nsid` gives the form for comparing meaning."""
    if not is_nsid(text):
        raise _refuse("NSID", text)
    return Nsid(text)


def fold_nsid(nsid: Nsid) -> Nsid:
    """Return the NSID with its authority (all but the last segment) in lower case; the name keeps its case."""
    authority, _, name = nsid.rpartition(".")
    return Nsid(f"{authority.lower()}.{name}")


def is_rkey(text: object) -> bool:
    return isinstance(text, str) and _RKEY.fullmatch(text) is not None and text not in (".", "..")


def parse_rkey(text: str) -> Rkey:
    """Return a record key: 1 to 512 characters, neither `.` nor `..`; case counts."""
    if not is_rkey(text):
        raise _refuse("record key", text)
    return Rkey(text)


def parse_path(path: str) -> tuple[Nsid, Rkey]:
    """Split and check a repo path, `collection/rkey`."""
    collection, slash, rkey = path.partition("/")
    if not slash or not is_nsid(collection) or not is_rkey(rkey):
        raise _refuse("repo path", path)
    return Nsid(collection), Rkey(rkey)


def is_tid(text: object) -> bool:
    return isinstance(text, str) and _TID.fullmatch(text) is not None


def parse_tid(text: str) -> Tid:
    """Return a TID. Its ASCII order is its numeric order: revs compare as plain strings."""
    if not is_tid(text):
        raise _refuse("TID", text)
    return Tid(text)


def tid_to_int(tid: Tid) -> int:
    """Return the 63-bit number of a TID: 53 bits of microseconds since 1970, 10 bits of clock id."""
    value = 0
    for char in tid:
        value = value << 5 | _TID_VALUE[char]
    return value


def int_to_tid(value: int) -> Tid:
    """Return the TID of a number from 0 to 2**63 - 1. Raises InvalidSyntax outside of it."""
    if not 0 <= value < 1 << 63:
        raise InvalidSyntax(f"no TID has the number {value}: it must be from 0 to 2**63 - 1")
    return Tid("".join(TID_ALPHABET[value >> shift & 31] for shift in range(60, -1, -5)))


def tid_time_us(tid: Tid) -> int:
    """Return the time that a TID claims, microseconds since 1970. A rev is a logical clock: use it for the future check only."""
    return tid_to_int(tid) >> 10


def make_tid(time_us: int, clock_id: int) -> Tid:
    """Return the TID of a time (microseconds since 1970, below 2**53) and a clock id (0 to 1023)."""
    if not (0 <= time_us < 1 << 53 and 0 <= clock_id < 1 << 10):
        raise InvalidSyntax(f"no TID has the time {time_us} and the clock id {clock_id}")
    return int_to_tid(time_us << 10 | clock_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class AtUri:
    """`at://authority/collection/rkey`; the last two may be absent. The authority is a DID or a handle, as written."""

    authority: str
    collection: Nsid | None = None
    rkey: Rkey | None = None


def parse_at_uri(text: str) -> AtUri:
    """Return the parts of an AT-URI that names an account, a collection or a record; at most 8192 characters."""
    if len(text) > AT_URI_CHARS or not text.startswith("at://"):
        raise _refuse("AT-URI", text)
    authority, *path = text[5:].split("/")
    if not is_at_identifier(authority) or len(path) > 2:
        raise _refuse("AT-URI", text)
    try:
        collection = parse_nsid(path[0]) if path else None
        rkey = parse_rkey(path[1]) if len(path) == 2 else None
    except InvalidSyntax as exc:
        raise _refuse("AT-URI", text) from exc
    return AtUri(authority=authority, collection=collection, rkey=rkey)


def is_at_uri(text: object) -> bool:
    return isinstance(text, str) and _parses(parse_at_uri, text)


def parse_datetime(text: str) -> int:
    """Return a datetime as microseconds since 1970 (may be negative); digits beyond the microsecond are cut off.

    Raises InvalidSyntax unless it has the one format that AT Protocol allows and names a real time from year 0 to 9999 (no
    leap seconds, no offset of -00:00, nothing that its offset moves before year 0).
    """
    match = _DATETIME.fullmatch(text) if len(text) <= DATETIME_CHARS else None
    if match is None:
        raise _refuse("datetime", text)
    year, month, day, hour, minute, second, fraction, sign, offset_hour, offset_minute = match.groups()
    try:
        # Python has no year 0; year 400 has the same days, one whole cycle of the calendar later.
        moment = dt.datetime(int(year) or 400, int(month), int(day), int(hour), int(minute), int(second))
    except ValueError as exc:
        raise _refuse("datetime", text) from exc
    time_us = (moment - _EPOCH) // _MICROSECOND - (0 if int(year) else _YEARS_400_US)
    if fraction is not None:
        time_us += int(fraction[:6].ljust(6, "0"))
    if sign is not None:
        offset_s = int(offset_hour) * 3600 + int(offset_minute) * 60
        if offset_s >= 86_400 or (sign == "-" and not offset_s):
            raise _refuse("datetime", text)
        time_us += offset_s * (-1_000_000 if sign == "+" else 1_000_000)
    if time_us < _YEAR_0_US:
        raise _refuse("datetime", text)
    return time_us


def is_datetime(text: object) -> bool:
    return isinstance(text, str) and _parses(parse_datetime, text)


def is_cid_string(text: object) -> bool:
    """Follow the generic grammar of the string format `cid` (version 0 is refused); links of repos are stricter (`cid.parse_cid_text`)."""
    return isinstance(text, str) and _CID_STRING.fullmatch(text) is not None and not text.startswith("Qm")


def _parses(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except InvalidSyntax:
        return False
    return True
