from __future__ import annotations

import pickle

from relay.atproto import errors
from relay.atproto.errors import AtprotoError, InvalidMessage, MissingBlock


def _tree(kind: type[AtprotoError]) -> list[type[AtprotoError]]:
    return [kind] + [below for sub in kind.__subclasses__() for below in _tree(sub)]


def test_every_error_has_a_reason_of_its_own() -> None:
    reasons = [kind.reason for kind in _tree(AtprotoError)]
    assert len(reasons) == len(set(reasons))
    assert all(reason.isidentifier() and reason.islower() for reason in reasons)


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    for kind in _tree(AtprotoError):
        assert kind.__name__ in errors.__doc__


def test_the_place_is_part_of_the_text() -> None:
    assert str(MissingBlock("a record is missing", at="app.bsky.feed.post/a")) == (
        "a record is missing (at app.bsky.feed.post/a)"
    )
    assert str(MissingBlock("cut", at=12345)) == "cut (at byte 12,345)"
    assert str(MissingBlock("cut")) == "cut"


def test_errors_cross_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(MissingBlock("cut", at=7)))
    assert (type(error), str(error), error.at) == (MissingBlock, "cut (at byte 7)", 7)
    message = pickle.loads(pickle.dumps(InvalidMessage("odd", kind="#sync", seq=5, did="did:plc:a", rev="x", at="rev")))
    assert (message.kind, message.seq, message.did, message.rev, message.at) == ("#sync", 5, "did:plc:a", "x", "rev")
