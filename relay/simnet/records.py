"""What people write: a seeded stream of records with the mix and the sizes of the real network.

55 % likes, 18 % follows, 18 % posts (half of them replies, some with images, links or facets), 7 % reposts, 2 % blocks: 215
bytes a record on average; and a few of other lexicons with everything that the data model allows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relay.simnet.block import DAG_CBOR, RAW, cid_text, link, tid

Value = dict[str, Any]

_TEXT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by words but not what "
    "all were we when your can said there use an each which she do how their if will up other about out many then them these "
    "so some her would make like him into time has look two more skyline アニメ おはよう 😀 🔥 bluesky Você não está aqui için "
    'e\u0301 \u2028 " \\ </script>'
)
_WORDS = _TEXT.split(" ")  # not at every white space: U+2028 is a word here
_MAX_INTEGER = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What records point at. Drawn once for a world: 2,000 names are enough, and making them anew would be half the cost."""

    dids: tuple[str, ...]
    cids: tuple[str, ...]
    blobs: tuple[bytes, ...]

    @classmethod
    def drawn(cls, rng: random.Random, own_dids: tuple[str, ...]) -> Surroundings:
        foreign = tuple(random_plc_did(rng) for _ in range(1000))
        return cls(
            dids=own_dids[:1000] + foreign,
            cids=tuple(cid_text(DAG_CBOR + rng.randbytes(32)) for _ in range(2000)),
            blobs=tuple(RAW + rng.randbytes(32) for _ in range(500)),
        )


def random_plc_did(rng: random.Random) -> str:
    return "did:plc:" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz234567", k=24))


class RecordStream:
    """Records of one account in the order of their making, with rising record keys. Seeded by `rng`; bounded by nothing."""

    def __init__(self, rng: random.Random, around: Surroundings, *, start_us: int) -> None:
        self._rng = rng
        self._around = around
        self.time_us = start_us
        self._clock_id = rng.randrange(1024)

    def profile(self) -> tuple[str, str, Value]:
        """Return the record that nearly every account has: its rkey is `self`."""
        blob = self._blob("image/jpeg")
        text = " ".join(self._rng.choices(_WORDS, k=20))
        value = {"$type": "app.bsky.actor.profile", "displayName": "User", "description": text, "avatar": blob}
        return "app.bsky.actor.profile", "self", value

    def __iter__(self) -> Iterator[tuple[str, str, Value]]:
        while True:
            yield self.next()

    def next(self) -> tuple[str, str, Value]:
        """Return (collection, rkey, record)."""
        rng = self._rng
        self.time_us += rng.randrange(10**6, 10**8)
        rkey = tid(self.time_us, self._clock_id)
        at = self._moment()
        pick = rng.random()
        if pick < 0.55:
            collection = "app.bsky.feed.like"
            return collection, rkey, {"$type": collection, "subject": self._reference(), "createdAt": at}
        if pick < 0.73:
            collection = "app.bsky.graph.follow"
            return collection, rkey, {"$type": collection, "subject": self._did(), "createdAt": at}
        if pick < 0.80:
            collection = "app.bsky.feed.repost"
            return collection, rkey, {"$type": collection, "subject": self._reference(), "createdAt": at}
        if pick < 0.82:
            collection = "app.bsky.graph.block"
            return collection, rkey, {"$type": collection, "subject": self._did(), "createdAt": at}
        if pick < 0.99:
            return "app.bsky.feed.post", rkey, self.post(at)
        return self._foreign(rkey, at)

    def post(self, at: str) -> Value:
        rng = self._rng
        words = rng.choices(_WORDS, k=min(60, int(rng.expovariate(1 / 16)) + 1))
        record: Value = {"$type": "app.bsky.feed.post", "createdAt": at, "langs": ["en"], "text": " ".join(words)}
        pick = rng.random()
        if pick < 0.5:
            record["reply"] = {"root": self._reference(), "parent": self._reference()}
        elif pick < 0.7:
            shape = {"width": 1200, "height": 900}
            image = {"alt": "", "aspectRatio": shape, "image": self._blob("image/jpeg")}
            record["embed"] = {"$type": "app.bsky.embed.images", "images": [image]}
        elif pick < 0.8:
            feature = {"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/some/long/path?q=1"}
            record["facets"] = [{"index": {"byteStart": 0, "byteEnd": 10}, "features": [feature]}]
        return record

    def _foreign(self, rkey: str, at: str) -> tuple[str, str, Value]:
        """A record of a lexicon outside `app.bsky.`: bytes, links, nested and empty things, the ends of the integer range."""
        rng = self._rng
        collection = rng.choice(("com.example.note", "chat.bsky.convo.draft", "app.bskyish.feed.item"))
        value: Value = {
            "$type": collection,
            "createdAt": at,
            "bytes": rng.randbytes(rng.randrange(40)),
            "link": link(rng.choice(self._around.blobs)),
            "none": None,
            "flags": [True, False],
            "numbers": [0, 23, 24, 255, 256, 65536, -1, -25, _MAX_INTEGER, -_MAX_INTEGER],
            "nested": {"a": {"bb": [[], {}, [{"ccc": ""}]]}, "": "empty key", "ключ": "не ASCII"},
        }
        return collection, rkey, value

    def _moment(self) -> str:
        bits = self._rng.getrandbits(40)
        day = f"2024-{bits % 12 + 1:02d}-{(bits >> 4) % 28 + 1:02d}"
        clock = f"{(bits >> 9) % 24:02d}:{(bits >> 14) % 60:02d}:{(bits >> 20) % 60:02d}"
        return f"{day}T{clock}.{(bits >> 26) % 1000:03d}Z"

    def _did(self) -> str:
        return self._rng.choice(self._around.dids)

    def _reference(self) -> Value:
        rng = self._rng
        rkey = tid(self.time_us - rng.getrandbits(40), rng.getrandbits(10))
        return {"cid": rng.choice(self._around.cids), "uri": f"at://{self._did()}/app.bsky.feed.post/{rkey}"}

    def _blob(self, mime: str) -> Value:
        rng = self._rng
        return {
            "$type": "blob",
            "ref": link(rng.choice(self._around.blobs)),
            "mimeType": mime,
            "size": rng.getrandbits(20) + 1,
        }


def padded_record(block_bytes: int) -> Value:
    """Return a record whose block has exactly `block_bytes` bytes (at least 100,000): for the limits of size."""
    head = {"$type": "com.example.large", "text": ""}
    # The map and its keys take 34 bytes; a text of 64 KiB or more has a head of 5.
    return {**head, "text": "x" * (block_bytes - _LARGE_OVERHEAD)}


_LARGE_OVERHEAD = len(b"\xa2\x64text\x7a....\x65$type\x71com.example.large")
