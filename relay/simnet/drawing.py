"""One change of one repo, drawn at random: what the writers of a world write."""

from __future__ import annotations

import random
from typing import Any

from relay.simnet.records import RecordStream
from relay.simnet.repo import Repo

Changes = dict[str, Any]


def draw_create(_rng: random.Random, _repo: Repo, records: RecordStream) -> Changes:
    """Return a new record."""
    collection, rkey, value = records.next()
    return {f"{collection}/{rkey}": value}


def draw_update(rng: random.Random, repo: Repo, records: RecordStream) -> Changes:
    """Return another value for any of the records; a new record where there is none."""
    paths = repo.paths()
    if not paths:
        return draw_create(rng, repo, records)
    path = rng.choice(paths).decode()
    return {path: {**records.next()[2], "$type": path.split("/")[0]}}


def draw_delete(rng: random.Random, repo: Repo, records: RecordStream) -> Changes:
    """Return the end of any of the records; a new record where there is none."""
    paths = repo.paths()
    return {rng.choice(paths).decode(): None} if paths else draw_create(rng, repo, records)


def draw_same(rng: random.Random, repo: Repo, records: RecordStream) -> Changes:
    """Return the value that a record has already: an update whose CID does not change."""
    paths = repo.paths()
    if not paths:
        return draw_create(rng, repo, records)
    path = rng.choice(paths)
    return {path.decode(): repo.records[path].block}


def draw_many(rng: random.Random, repo: Repo, records: RecordStream, *, most: int) -> Changes:
    """Return 2 to `most` changes of all kinds, on different paths; neighbours among them more often than not."""
    changes: Changes = {}
    paths = repo.paths()
    size = rng.randint(2, most)
    start = rng.randrange(len(paths)) if paths else 0
    for path in paths[start : start + rng.randint(0, size)]:
        if rng.random() < 0.7:
            changes[path.decode()] = None
    while len(changes) < size:
        changes |= rng.choice((draw_create, draw_create, draw_update, draw_delete))(rng, repo, records)
    return changes
