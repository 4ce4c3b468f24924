"""What goes wrong, declared: which fault, where, how often; and a count of each that fired, so that a test can prove it did.

Seeded: whether a fault with a rate below 1 fires depends on the seed, the place and how often that place was asked before, not
on the order in which different places are asked. `pick` is called by the servers and by `telling`; `spoil` knows how a CAR is
made wrong, `lies` how an event is, and `firehose` how a stream is.
"""

from __future__ import annotations

import enum
import gzip
import hashlib
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any

from relay.simnet.answers import NEVER, Response
from relay.simnet.block import car_head, cid_of, section


class FaultKind(enum.StrEnum):
    """Every fault; the comment names what `seconds`, `status`, `bytes`, `text` and `count` of it mean, and what 0 stands for."""

    # Any answer
    TOO_MANY = "too_many"  # 429; seconds: Retry-After; text "html": a page without headers, as some front ends send
    STATUS = "status"  # status (503), text: the XRPC error name, or "html"
    SLOW = "slow"  # bytes: bytes a second (1000)
    CUT = "cut"  # the connection ends after so many bytes of the body (half of it)
    HANG = "hang"  # seconds before the answer; 0: for ever
    RESET = "reset"  # TCP reset instead of an answer
    REDIRECT = "redirect"  # 302; text: where to (a private address)
    OVERSIZE = "oversize"  # an endless body, of bytes (4 GiB) at most
    GZIP_BOMB = "gzip_bomb"  # a small body that unpacks to bytes (1 GiB) of zeros
    GARBAGE = "garbage"  # 200 with a page of HTML
    # getRepo
    CUT_AT_BLOCK = "cut_at_block"  # a CAR that ends between two blocks, with the right length
    WRONG_DID = "wrong_did"  # a commit that names another DID, well signed
    OTHER_CAR = "other_car"  # the whole repo of another account
    STALE_CAR = "stale_car"  # an earlier rev
    HIGH_S = "high_s"
    BAD_SIGNATURE = "bad_signature"
    MISSING_RECORD = "missing_record"
    MISSING_NODE = "missing_node"
    MISSING_COMMIT = "missing_commit"
    CORRUPT_BLOCK = "corrupt_block"  # one bit of a record
    # DID documents
    STALE_DOCUMENT = "stale_document"  # the one before the last change
    OTHER_DOCUMENT = "other_document"  # its id is another DID
    NO_KEY = "no_key"
    NO_PDS = "no_pds"
    # Listings
    REPEAT_CURSOR = "repeat_cursor"  # the same cursor for ever
    FALSE_CLAIM = "false_claim"  # lists accounts of every other host too
    # An event as it enters the log: what is wrong with it comes again at each replay
    DROP_EVENT = "drop_event"  # it is never told
    EVENT_BAD_SIGNATURE = "event_bad_signature"
    EVENT_HIGH_S = "event_high_s"
    EVENT_WRONG_DID = "event_wrong_did"  # a commit that names another DID, well signed
    EVENT_FUTURE_REV = "event_future_rev"  # seconds: how far (a day); well signed
    EVENT_MISSING_NODE = "event_missing_node"  # the last node on the way to the first op's path
    EVENT_MISSING_RECORD = "event_missing_record"
    EVENT_CORRUPT_BLOCK = "event_corrupt_block"  # one bit of the first piece
    EVENT_OTHER_PREV_DATA = "event_other_prev_data"  # a claim that inversion refutes
    EVENT_NO_PREV_DATA = "event_no_prev_data"  # as old PDS software told it: nothing is lost
    EVENT_DOUBLE_PATH = "event_double_path"  # two ops on one path, as @atproto/pds tells create and update in one write
    EVENT_TOO_BIG = "event_too_big"  # tooBig, with the commit block alone and no ops
    # A further event after a right one, with a seq of its own: nothing is lost
    EVENT_ROLLBACK = "event_rollback"  # a #sync of another tree with an earlier rev, well signed
    EVENT_AGAIN = "event_again"  # the same event under another seq
    UNKNOWN_FRAME = "unknown_frame"  # text: the type (#tombstone)
    GARBAGE_FRAME = "garbage_frame"  # bytes that are no CBOR
    OVERSIZE_FRAME = "oversize_frame"  # bytes: how many (5,500,000)
    # A subscription
    SILENT_CURSOR = "silent_cursor"  # neither OutdatedCursor nor FutureCursor is told, as indigo
    OUTDATED_CURSOR = "outdated_cursor"  # told of any cursor, and the whole window is replayed
    FUTURE_CURSOR = "future_cursor"  # told of any cursor
    LOSE_WINDOW = "lose_window"  # the log is lost but for its newest events; count: how many of them are kept
    # An event as it is sent to one subscriber: another connection gets it right
    STREAM_CUT = "stream_cut"  # the connection ends within the frame; bytes: after so many of it (half of it)
    STREAM_RESET = "stream_reset"  # TCP reset before the frame
    STREAM_CLOSE = "stream_close"  # a close frame before it; count: the code (1001)
    STREAM_SILENCE = "stream_silence"  # nothing more is sent, no pong either; seconds: for how long, then at the next event (0: for ever)
    STREAM_TOO_SLOW = "stream_too_slow"  # ConsumerTooSlow, and the end
    REPEAT_RANGE = "repeat_range"  # it comes again with those before it; count: how many in all (16)
    REORDER = "reorder"  # it comes after the events that follow it; count: as do so many in all (1)
    CORRUPT_FRAME = "corrupt_frame"  # its first byte is wrong
    TEXT_FRAME = "text_frame"  # a text message before it
    FRAGMENT = "fragment"  # in three parts with a ping between: allowed, and seldom seen


CAR_FAULTS = frozenset(
    {
        FaultKind.CUT_AT_BLOCK,
        FaultKind.WRONG_DID,
        FaultKind.OTHER_CAR,
        FaultKind.STALE_CAR,
        FaultKind.HIGH_S,
        FaultKind.BAD_SIGNATURE,
        FaultKind.MISSING_RECORD,
        FaultKind.MISSING_NODE,
        FaultKind.MISSING_COMMIT,
        FaultKind.CORRUPT_BLOCK,
    }
)
DOCUMENT_FAULTS = frozenset({FaultKind.STALE_DOCUMENT, FaultKind.OTHER_DOCUMENT, FaultKind.NO_KEY, FaultKind.NO_PDS})
LISTING_FAULTS = frozenset({FaultKind.REPEAT_CURSOR, FaultKind.FALSE_CLAIM})
EVENT_FAULTS = frozenset(
    {
        FaultKind.DROP_EVENT,
        FaultKind.EVENT_BAD_SIGNATURE,
        FaultKind.EVENT_HIGH_S,
        FaultKind.EVENT_WRONG_DID,
        FaultKind.EVENT_FUTURE_REV,
        FaultKind.EVENT_MISSING_NODE,
        FaultKind.EVENT_MISSING_RECORD,
        FaultKind.EVENT_CORRUPT_BLOCK,
        FaultKind.EVENT_OTHER_PREV_DATA,
        FaultKind.EVENT_NO_PREV_DATA,
        FaultKind.EVENT_DOUBLE_PATH,
        FaultKind.EVENT_TOO_BIG,
        FaultKind.EVENT_ROLLBACK,
        FaultKind.EVENT_AGAIN,
        FaultKind.UNKNOWN_FRAME,
        FaultKind.GARBAGE_FRAME,
        FaultKind.OVERSIZE_FRAME,
    }
)
SUBSCRIPTION_FAULTS = frozenset(
    {FaultKind.SILENT_CURSOR, FaultKind.OUTDATED_CURSOR, FaultKind.FUTURE_CURSOR, FaultKind.LOSE_WINDOW}
)
STREAM_FAULTS = frozenset(
    {
        FaultKind.STREAM_CUT,
        FaultKind.STREAM_RESET,
        FaultKind.STREAM_CLOSE,
        FaultKind.STREAM_SILENCE,
        FaultKind.STREAM_TOO_SLOW,
        FaultKind.REPEAT_RANGE,
        FaultKind.REORDER,
        FaultKind.CORRUPT_FRAME,
        FaultKind.TEXT_FRAME,
        FaultKind.FRAGMENT,
    }
)
_FIREHOSE_FAULTS = EVENT_FAULTS | SUBSCRIPTION_FAULTS | STREAM_FAULTS
ANSWER_FAULTS = frozenset(FaultKind) - CAR_FAULTS - DOCUMENT_FAULTS - LISTING_FAULTS - _FIREHOSE_FAULTS
# Before an upgrade: what changes how a body is sent has no meaning there.
HANDSHAKE_FAULTS = ANSWER_FAULTS - {FaultKind.SLOW, FaultKind.CUT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault and where it strikes; what is None strikes anywhere.

    `endpoint`: getRepo, listRepos, ..., `plc` (DID documents), `subscribeRepos` (subscriptions, and what is sent on them),
    `#commit`, `#sync`, `#identity`, `#account` (events as they enter the log). `host`: the number of a PDS, -1 for the upstream
    relay, None also for PLC; of an event the account's PDS. `rate`: share of the requests or events, 0 to 1. `times`: firings
    in all; `per_did`: firings for each DID (attempts after that succeed). `after`: requests that pass before the first.
    """

    kind: FaultKind
    endpoint: str | None = None
    host: int | None = None
    did: str | None = None
    rate: float = 1.0
    times: int | None = None
    per_did: int | None = None
    after: int = 0
    seconds: float = 0.0
    status: int = 503
    bytes: int = 0
    text: str = ""
    count: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fault:
        """Raise ValueError for an unknown kind or key."""
        unknown = set(value) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        return cls(**{**value, "kind": FaultKind(value["kind"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a request arrived."""

    endpoint: str
    host: int | None = None
    did: str | None = None


class FaultPlan:
    """The faults in force, first match first, and how often each fired. May be used from any thread."""

    def __init__(self, faults: Iterable[Fault] = (), *, seed: int = 0) -> None:
        self.faults = tuple(faults)
        self.seed = seed
        self._kinds = frozenset(fault.kind for fault in self.faults)
        self._lock = threading.Lock()  # guards the counters
        self._asked: Counter[tuple[int, Place]] = Counter()
        self._passed: Counter[int] = Counter()
        self._fired: Counter[int] = Counter()
        self._fired_for: Counter[tuple[int, str | None]] = Counter()

    def pick(self, kinds: frozenset[FaultKind], place: Place) -> Fault | None:
        """Return the fault that strikes this request, and count it as fired."""
        if not self.has(kinds):
            return None
        with self._lock:
            for index, fault in enumerate(self.faults):
                if fault.kind in kinds and _matches(fault, place) and self._strikes(index, fault, place):
                    self._fired[index] += 1
                    self._fired_for[index, place.did] += 1
                    return fault
        return None

    def has(self, kinds: frozenset[FaultKind]) -> bool:
        """Whether any of these kinds is declared at all."""
        return not self._kinds.isdisjoint(kinds)

    def take_back(self, fault: Fault, place: Place) -> None:
        """A picked fault could not be committed (no record to leave out): it did not fire."""
        with self._lock:
            index = self.faults.index(fault)
            self._fired[index] -= 1
            self._fired_for[index, place.did] -= 1

    def fired(self) -> dict[str, int]:
        """Return how often each kind in the plan fired, zeros included."""
        with self._lock:
            counts: Counter[str] = Counter({fault.kind.value: 0 for fault in self.faults})
            for index, fault in enumerate(self.faults):
                counts[fault.kind.value] += self._fired[index]
            return dict(counts)

    def struck(self, kind: FaultKind) -> set[str]:
        """Return the DIDs that a fault of this kind struck."""
        with self._lock:
            return {
                did
                for (index, did), count in self._fired_for.items()
                if count > 0 and did is not None and self.faults[index].kind is kind
            }

    def _strikes(self, index: int, fault: Fault, place: Place) -> bool:
        if fault.times is not None and self._fired[index] >= fault.times:
            return False
        if fault.per_did is not None and self._fired_for[index, place.did] >= fault.per_did:
            return False
        if self._passed[index] < fault.after:
            self._passed[index] += 1
            return False
        if fault.rate >= 1.0:
            return True
        turn = self._asked[index, place]
        self._asked[index, place] += 1
        name = f"{self.seed}/{index}/{place.endpoint}/{place.host}/{place.did}/{turn}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < fault.rate * 2**64


def _matches(fault: Fault, place: Place) -> bool:
    return (
        (fault.endpoint is None or fault.endpoint == place.endpoint)
        and (fault.host is None or fault.host == place.host)
        and (fault.did is None or fault.did == place.did)
    )


def bad_answer(fault: Fault) -> Response | None:
    """Return the answer that takes the place of the right one; None for a fault that only changes how it is sent."""
    match fault.kind:
        case FaultKind.TOO_MANY:
            if fault.text == "html":
                return Response(status=429, body=_page("Too Many Requests"), content_type="text/html")
            headers = (("Retry-After", f"{fault.seconds:.0f}"),) if fault.seconds else ()
            return Response(status=429, body=_error("RateLimitExceeded", "Rate Limit Exceeded"), headers=headers)
        case FaultKind.STATUS:
            if fault.text == "html":
                return Response(status=fault.status, body=_page("Error"), content_type="text/html")
            return Response(status=fault.status, body=_error(fault.text or "InternalServerError", "by plan"))
        case FaultKind.HANG if not fault.seconds:
            return Response(delay_s=NEVER)
        case FaultKind.RESET:
            return Response(reset=True)
        case FaultKind.REDIRECT:
            target = fault.text or "http://127.0.0.1:1/latest/meta-data"
            return Response(status=302, headers=(("Location", target),))
        case FaultKind.OVERSIZE:
            return Response(body=_endless_car(fault.bytes or 4 << 30), content_type="application/vnd.ipld.car")
        case FaultKind.GZIP_BOMB:
            body = _packed_zeros() * max(1, (fault.bytes or 1 << 30) // _PACKED_BYTES)
            headers = (("Content-Encoding", "gzip"),)
            return Response(body=body, content_type="application/vnd.ipld.car", headers=headers)
        case FaultKind.GARBAGE:
            return Response(body=_page("Welcome"), content_type="text/html")
        case _:
            return None


def bad_manners(fault: Fault, response: Response) -> Response:
    """Return the right answer, sent badly."""
    match fault.kind:
        case FaultKind.SLOW:
            return replace(response, bytes_per_s=float(fault.bytes or 1000))
        case FaultKind.CUT:
            length = len(response.body) if isinstance(response.body, bytes) else 0
            return replace(response, cut_at=min(fault.bytes or length // 2, max(0, length - 1)))
        case FaultKind.HANG:
            return replace(response, delay_s=fault.seconds)
        case _:
            return response


def _error(name: str, message: str) -> bytes:
    return f'{{"error":"{name}","message":"{message}"}}'.encode()


def _page(title: str) -> bytes:
    return f"<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>".encode()


_PACKED_BYTES = 16 << 20


@cache
def _packed_zeros() -> bytes:
    """One gzip member of 16 MiB of zeros; members can follow one another."""
    return gzip.compress(bytes(_PACKED_BYTES), compresslevel=6, mtime=0)


def _endless_car(limit_bytes: int) -> Iterator[bytes]:
    """Yield a CAR of unrelated but well-hashed blocks of 1 MiB, up to a size."""
    block = random.Random(0).randbytes(1 << 20)
    cid = cid_of(block)
    yield car_head(cid)
    piece = section(cid, block)
    for _ in range(max(1, limit_bytes // len(piece))):
        yield piece
