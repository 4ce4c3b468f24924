"""A repo that is forgotten leaves nothing for the garbage collector to find."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from relay.atproto.nsid_filter import NsidFilter
from relay.model import RepoState
from relay.repos import live_events as e
from relay.repos.buffer import LiveBuffer
from relay.repos.facts import Facts
from relay.repos.handover import LiveEvent
from relay.repos.live import LiveRepo

DID = "did:plc:a"
DATA = bytes(36)
WANTED = NsidFilter.parse([])


@pytest.fixture
def only_counted() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _used_repo() -> LiveRepo:
    """A repo that has forwarded a commit, told a status and an identity, and was claimed."""
    facts = Facts(state=RepoState.SYNCED, rev="3a", data=DATA, covers="", touched=True)
    repo = LiveRepo(DID, LiveBuffer(max_operations=10), WANTED, facts)
    repo.begin()
    repo.feed(e.FrameSeen(seq=1, kind="commit", rev="3b", is_first=False))
    event = LiveEvent(seq=1, is_sync=False, rev="3b", since="3a", prev_data=DATA, data=DATA, operations=1, payload=b"x")
    offered = next(each for each in repo.feed(e.Proved(event=event)) if isinstance(each, e.Offer))
    repo.feed(e.Acknowledged(token=offered.token))
    repo.feed(e.Account(seq=2, active=True, status="", time_us=1))
    repo.feed(e.IdentitySeen(seq=3, handle="a.test", time_us=2))
    repo.feed(e.IdentityLearnt(handle="a.test", pds="https://pds.test", time_us=3))
    repo.feed(e.Claimed())
    return repo


@pytest.mark.usefixtures("only_counted")
def test_a_forgotten_repo_is_freed_at_once() -> None:
    repo = _used_repo()
    is_there = weakref.ref(repo)
    del repo
    assert is_there() is None
