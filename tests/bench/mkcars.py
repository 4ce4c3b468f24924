"""Synthetic repos for benchmarks: a realistic mix of records, valid trees, signed commits, CARv1. Deterministic.

    python -m tests.bench.mkcars            mix (400 repos, log-normal, 183,000 records), r1k, r10k into var/bench/cars
    python -m tests.bench.mkcars r1m        one repo of a million records too (350 MB, a minute, 2 GB of memory)

55 % likes, 18 % follows, 18 % posts, 7 % reposts, 2 % blocks; 215 bytes a record; every tenth key of the mix is P-256. Blocks
stand in random order behind the commit, as the reference PDS's order looks to a reader. Written with cbrrr and shares no code
with the reader that it feeds.
"""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbrrr import CID, encode_dag_cbor

from tests.support import repos
from tests.support.repos import CID_PREFIX, Signer, write_car

FOLDER = Path(__file__).resolve().parents[2] / "var" / "bench" / "cars"
VERSION = 2  # raise it when what is generated changes
MIX_REPOS = 400

_TID_CHARS = "234567abcdefghijklmnopqrstuvwxyz"
_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "one",
    "had",
    "by",
    "words",
    "but",
    "not",
    "what",
    "all",
    "were",
    "we",
    "when",
    "your",
    "can",
    "said",
    "there",
    "use",
    "an",
    "each",
    "which",
    "she",
    "do",
    "how",
    "their",
    "if",
    "will",
    "up",
    "other",
    "about",
    "out",
    "many",
    "then",
    "them",
    "these",
    "so",
    "some",
    "her",
    "would",
    "make",
    "like",
    "him",
    "into",
    "time",
    "has",
    "look",
    "two",
    "more",
    "skyline",
    "アニメ",
    "おはよう",
    "😀",
    "🔥",
    "bluesky",
    "Você",
    "não",
    "está",
    "aqui",
    "için",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repo:
    """A generated repo: its CAR's path, account, key as Multikey, and number of records."""

    name: str
    path: Path
    did: str
    key: str
    records: int

    def car(self) -> bytes:
        return self.path.read_bytes()


class _Generator:
    """Records of one account, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.did = self._did()
        self.time_us = 1_690_000_000_000_000 + self.random.randrange(10**12)

    def _did(self) -> str:
        return "did:plc:" + "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz234567", k=24))

    def _created_at(self) -> str:
        self.time_us += self.random.randrange(10**6, 10**9)
        parts = ((1, 13), (1, 29), (0, 24), (0, 60), (0, 60), (0, 1000))
        return "2024-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z".format(*(self.random.randrange(*part) for part in parts))

    def _subject(self) -> dict[str, str]:
        cid = CID(CID_PREFIX + self.random.randbytes(32))
        return {"cid": cid.encode(), "uri": f"at://{self._did()}/app.bsky.feed.post/{tid(self.time_us << 10)}"}

    def _blob(self, size: int) -> dict[str, Any]:
        ref = CID(b"\x01\x55\x12\x20" + self.random.randbytes(32))
        return {"$type": "blob", "ref": ref, "mimeType": "image/jpeg", "size": size}

    def profile(self) -> dict[str, Any]:
        text = "x" * 120
        return {
            "$type": "app.bsky.actor.profile",
            "displayName": "User",
            "description": text,
            "avatar": self._blob(31234),
        }

    def record(self) -> tuple[str, dict[str, Any]]:
        """Return (collection/rkey, record)."""
        draw, created_at = self.random.random(), self._created_at()
        fields: dict[str, Any]
        rkey = tid(self.time_us << 10 | self.random.randrange(1024))
        if draw < 0.55:
            collection, fields = "app.bsky.feed.like", {"subject": self._subject()}
        elif draw < 0.73:
            collection, fields = "app.bsky.graph.follow", {"subject": self._did()}
        elif draw < 0.80:
            collection, fields = "app.bsky.feed.repost", {"subject": self._subject()}
        elif draw < 0.82:
            collection, fields = "app.bsky.graph.block", {"subject": self._did()}
        else:
            collection, fields = "app.bsky.feed.post", self._post()
        return f"{collection}/{rkey}", {"$type": collection, "createdAt": created_at, **fields}

    def _post(self) -> dict[str, Any]:
        words = self.random.choices(_WORDS, k=min(60, int(self.random.expovariate(1 / 16)) + 1))
        post: dict[str, Any] = {"langs": ["en"], "text": " ".join(words)}
        draw = self.random.random()
        if draw < 0.5:
            post["reply"] = {"root": self._subject(), "parent": self._subject()}
        elif draw < 0.7:
            image = {"alt": "", "aspectRatio": {"width": 1200, "height": 900}, "image": self._blob(412345)}
            post["embed"] = {"$type": "app.bsky.embed.images", "images": [image]}
        elif draw < 0.8:
            link = {"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/some/long/path?q=1"}
            post["facets"] = [{"index": {"byteStart": 0, "byteEnd": 10}, "features": [link]}]
        return post


def tid(value: int) -> str:
    """Return the TID of a number."""
    return "".join(_TID_CHARS[value >> shift & 31] for shift in range(60, -1, -5))


def make_repo(seed: int, count: int, *, p256: bool = False) -> tuple[str, str, bytes]:
    """Return (DID, Multikey, CAR) of a repo of `count` records."""
    generator = _Generator(seed)
    made = {b"app.bsky.actor.profile/self": encode_dag_cbor(generator.profile())}
    while len(made) < count:
        path, record = generator.record()
        made[path.encode()] = encode_dag_cbor(record)
    signer = Signer(seed=seed, p256=p256)
    repo = repos.make_repo(made, signer=signer, did=generator.did, rev=tid(generator.time_us << 10))
    shuffled = list(dict(repo.blocks[1:]).items())
    random.Random(seed).shuffle(shuffled)
    return generator.did, repo.key, write_car(repo.commit[0], [repo.commit, *shuffled])


def _sizes(what: str) -> list[tuple[str, int, int, bool]]:
    """Return (name, seed, records, P-256) of each repo of a set."""
    if what != "mix":
        count = {"r1k": 1_000, "r10k": 10_000, "r1m": 1_000_000}[what]
        return [(what, count, count, False)]
    draw = random.Random(7)
    return [
        (
            f"mix{place:03}",
            10**6 + place,
            max(2, min(20_000, int(draw.lognormvariate(math.log(170), 1.45)))),
            place % 10 == 9,
        )
        for place in range(MIX_REPOS)
    ]


def load(what: str) -> list[Repo]:
    """Return the repos of a set (`mix`, `r1k`, `r10k`, `r1m`), which are made now if they are not there."""
    folder = FOLDER / f"v{VERSION}" / what
    index = folder / "index.json"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        listed = []
        for name, seed, count, p256 in _sizes(what):
            did, key, car = make_repo(seed, count, p256=p256)
            (folder / f"{name}.car").write_bytes(car)
            listed.append([name, did, key, count])
        index.write_text(json.dumps(listed))
    return [
        Repo(name=name, path=folder / f"{name}.car", did=did, key=key, records=count)
        for name, did, key, count in json.loads(index.read_text())
    ]


if __name__ == "__main__":
    for wanted in ("mix", "r1k", "r10k", *sys.argv[1:]):
        made_repos = load(wanted)
        size = sum(repo.path.stat().st_size for repo in made_repos)
        print(
            f"{wanted}: {len(made_repos)} repos, {sum(repo.records for repo in made_repos):,} records, {size:,} bytes"
        )
