from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto import cbor
from relay.atproto.cbor import Link, Value
from relay.atproto.cid import DAG_CBOR_PREFIX, RAW_PREFIX
from relay.atproto.commit import Commit, parse_commit
from relay.atproto.errors import AtprotoError, InvalidCbor, InvalidCommit, LimitExceeded, OldCommitVersion
from relay.atproto.syntax import Did, Rev, int_to_tid
from tests.unit.atproto.values import cbor2_encode, damaged

DATA = DAG_CBOR_PREFIX + bytes(range(32))
DIDS = st.sampled_from([1, 10, 16, 17, 18, 200, 248, 249, 250, 2000]).map(lambda size: "did:web:" + "a" * size)
FIELDS: dict[str, Value] = {
    "did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz",
    "rev": "3jzfcijpj2z2a",
    "sig": bytes(64),
    "data": Link(DATA),
    "prev": None,
    "version": 3,
}


@given(
    DIDS,
    st.integers(0, 2**63 - 1).map(int_to_tid),
    st.binary(min_size=64, max_size=64),
    st.one_of(st.none(), st.just(Link(DATA))),
)
def test_what_was_signed_is_the_commit_without_its_signature(did: str, rev: str, sig: bytes, prev: Link | None) -> None:
    fields: dict[str, Value] = {"did": did, "rev": rev, "sig": sig, "data": Link(DATA), "prev": prev, "version": 3}
    unsigned = {key: value for key, value in fields.items() if key != "sig"}
    assert parse_commit(cbor2_encode(fields)) == Commit(
        did=Did(did),
        rev=Rev(Did(rev)),
        data=DATA,
        prev=None if prev is None else prev.cid,
        sig=sig,
        unsigned=cbor2_encode(unsigned),
    )


def test_any_buffer_is_read() -> None:
    block = cbor.encode(FIELDS)
    assert parse_commit(memoryview(block)) == parse_commit(block)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("did", "alice.example.com"),
        ("did", b"did:plc:ewvi7nxzyoun6zhxrhs64oiz"),
        ("rev", "3jzfcijpj2z2"),
        ("rev", None),
        ("sig", bytes(63)),
        ("sig", bytes(65)),
        ("sig", "a" * 64),
        ("sig", None),
        ("data", None),
        ("data", DATA),
        ("data", Link(RAW_PREFIX + bytes(32))),
        ("prev", DATA),
        ("prev", False),
        ("version", 4),
        ("version", 0),
        ("version", True),
        ("version", "3"),
    ],
)
def test_a_field_of_a_wrong_kind_is_refused(field: str, value: Value) -> None:
    with pytest.raises(InvalidCommit):
        parse_commit(cbor.encode({**FIELDS, field: value}))


@pytest.mark.parametrize("field", FIELDS)
def test_each_of_the_six_keys_is_needed(field: str) -> None:
    with pytest.raises(InvalidCommit):
        parse_commit(cbor.encode({key: value for key, value in FIELDS.items() if key != field}))


@pytest.mark.parametrize("field", ["a", "zzzz", "zzzzzzzzz", "$type"])
def test_no_seventh_key_is_allowed(field: str) -> None:
    with pytest.raises(InvalidCommit, match="keys"):
        parse_commit(cbor.encode({**FIELDS, field: 1}))


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_version_has_a_reason_of_its_own_also_without_rev(version: int) -> None:
    old = {key: value for key, value in FIELDS.items() if key != "rev"}
    for fields in (FIELDS, old):
        with pytest.raises(OldCommitVersion) as caught:
            parse_commit(cbor.encode({**fields, "version": version}))
        assert caught.value.reason == "old_commit_version"


def test_a_commit_that_is_not_canonical_is_refused_with_the_place() -> None:
    block = cbor.encode(FIELDS)
    assert block[-1:] == b"\x03"
    with pytest.raises(InvalidCbor) as caught:
        parse_commit(block[:-1] + b"\x18\x03")
    assert caught.value.at == len(block) - 1
    with pytest.raises(InvalidCbor, match="behind"):
        parse_commit(block + b"\0")
    with pytest.raises(InvalidCommit):
        parse_commit(b"\x80")
    with pytest.raises(LimitExceeded):
        parse_commit(bytes(5000))


@given(damaged(st.just(cbor.encode(FIELDS))))
def test_a_damaged_commit_is_another_valid_one_or_a_typed_error(block: bytes) -> None:
    try:
        commit = parse_commit(block)
    except AtprotoError:
        return
    fields = cbor.decode(block)
    assert isinstance(fields, dict)
    del fields["sig"]
    assert commit.unsigned == cbor.encode(fields)
