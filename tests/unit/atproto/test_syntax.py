from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.atproto.errors import InvalidSyntax
from relay.atproto.syntax import (
    AtUri,
    Nsid,
    Tid,
    fold_nsid,
    int_to_tid,
    is_did,
    is_handle,
    is_nsid,
    is_resolvable_did,
    is_rkey,
    is_tid,
    is_usable_handle,
    make_tid,
    parse_at_uri,
    parse_datetime,
    parse_did,
    parse_handle,
    parse_nsid,
    parse_path,
    parse_rkey,
    parse_tid,
    tid_time_us,
    tid_to_int,
)

NUMBERS = st.integers(0, 2**63 - 1)


@given(NUMBERS)
def test_tid_and_number_are_the_same_thing(number: int) -> None:
    tid = int_to_tid(number)
    assert is_tid(tid)
    assert tid_to_int(tid) == number


@given(NUMBERS, NUMBERS)
def test_tids_sort_as_their_numbers(a: int, b: int) -> None:
    assert (int_to_tid(a) < int_to_tid(b)) == (a < b)


def test_tid_vectors_of_the_specification() -> None:
    assert tid_to_int(parse_tid("3jzfcijpj2z2a")) == 1728652679052295174
    assert tid_time_us(Tid("3jzfcijpj2z2a")) == 1_688_137_381_887_007
    assert make_tid(1_700_000_000_000_000, 5) == "3ke6kg3wk2227"
    assert int_to_tid(0) == "2222222222222"
    assert int_to_tid(2**63 - 1) == "bzzzzzzzzzzzz"


@pytest.mark.parametrize("number", [-1, 2**63])
def test_no_tid_beyond_63_bits(number: int) -> None:
    with pytest.raises(InvalidSyntax):
        int_to_tid(number)


@pytest.mark.parametrize(("time_us", "clock_id"), [(-1, 0), (2**53, 0), (0, -1), (0, 1024)])
def test_no_tid_of_a_time_or_clock_out_of_range(time_us: int, clock_id: int) -> None:
    with pytest.raises(InvalidSyntax):
        make_tid(time_us, clock_id)


@pytest.mark.parametrize(
    ("is_it", "text"),
    [
        (is_did, "did:plc:ewvi7nxzyoun6zhxrhs64oiz"),
        (is_handle, "jay.bsky.social"),
        (is_nsid, "app.bsky.feed.post"),
        (is_rkey, "3jzfcijpj2z2a"),
        (is_tid, "3jzfcijpj2z2a"),
    ],
)
def test_a_final_newline_is_not_swallowed(is_it: object, text: str) -> None:
    assert callable(is_it)
    assert is_it(text)
    assert not is_it(text + "\n")
    assert not is_it("\n" + text)


@pytest.mark.parametrize("junk", [None, 1, b"did:plc:a", ["a"], {}])
def test_nothing_but_text_is_an_identifier(junk: object) -> None:
    assert not any(is_it(junk) for is_it in (is_did, is_handle, is_nsid, is_rkey, is_tid, is_resolvable_did))


def test_digits_of_other_scripts_are_no_digits() -> None:
    assert not is_nsid("app.bsky.f٣ed")
    assert not is_rkey("a٣")
    with pytest.raises(InvalidSyntax):
        parse_datetime("1985-04-1٢T23:20:50Z")


def test_lengths_end_where_the_specification_says() -> None:
    assert is_did("did:web:" + "a" * 2040)
    assert not is_did("did:web:" + "a" * 2041)
    assert is_rkey("a" * 512)
    assert not is_rkey("a" * 513)
    label = "a" * 63
    assert is_nsid(".".join([label] * 4) + "." + "a" * 61)  # 317
    assert not is_nsid(".".join([label] * 4) + "." + "a" * 62)


def test_which_dids_accounts_can_have() -> None:
    for did in (
        "did:plc:ewvi7nxzyoun6zhxrhs64oiz",
        "did:web:example.com",
        "did:web:a.b.example.com",
        "did:web:localhost%3A8080",
    ):
        assert is_resolvable_did(did)
    for did in (
        "did:plc:ewvi7nxzyoun6zhxrhs64oi",
        "did:plc:ewvi7nxzyoun6zhxrhs64oi1",
        "did:plc:EWVI7nxzyoun6zhxrhs64oiz",
        "did:web:example.com:path",
        "did:web:example.com%3A8080",
        "did:web:localhost",
        "did:web:192.168.0.1",
        "did:web:example..com",
        "did:key:zQ3shXjHeiBuRCKmM36cuYnm7YEMzhGnCmCyW92sRJ9pribSF",
    ):
        assert not is_resolvable_did(did)


def test_handles_are_folded_and_reserved_domains_are_known() -> None:
    assert parse_handle("Jay.BSKY.social") == "jay.bsky.social"
    assert is_usable_handle("jay.bsky.social")
    assert is_usable_handle("jay.test")
    for handle in ("handle.invalid", "a.LOCAL", "x.onion", "not a handle"):
        assert not is_usable_handle(handle)


def test_the_authority_of_an_nsid_folds_and_its_name_does_not() -> None:
    assert fold_nsid(Nsid("Com.Example.fooBar")) == "com.example.fooBar"


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse_did, "did:plc:"), (parse_handle, "a"), (parse_nsid, "a.b"), (parse_rkey, ".."), (parse_tid, "x" * 5000)],
)
def test_a_refusal_shows_the_text_but_not_all_of_a_long_one(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(InvalidSyntax) as caught:
        parse(text)
    assert text[:20] in str(caught.value)
    assert len(str(caught.value)) < 150


def test_paths_have_two_parts() -> None:
    assert parse_path("app.bsky.feed.post/3k:._~-") == ("app.bsky.feed.post", "3k:._~-")
    for path in (
        "",
        "/",
        "app.bsky.feed.post",
        "app.bsky.feed.post/",
        "/a",
        "app.bsky.feed.post/a/b",
        "a.b/c",
        "a.b.c/..",
    ):
        with pytest.raises(InvalidSyntax):
            parse_path(path)


def test_at_uri_parts() -> None:
    assert parse_at_uri("at://did:plc:asdf123/com.example.post/a") == AtUri(
        authority="did:plc:asdf123", collection=Nsid("com.example.post"), rkey=parse_rkey("a")
    )
    assert parse_at_uri("at://jay.bsky.social") == AtUri(authority="jay.bsky.social")


@given(
    st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30)),
    st.integers(-23 * 60, 23 * 60),
)
def test_datetimes_agree_with_the_standard_library(moment: dt.datetime, offset_min: int) -> None:
    zone = dt.timezone(dt.timedelta(minutes=offset_min))
    text = moment.replace(tzinfo=zone).isoformat(timespec="microseconds")
    want = (moment - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1) - offset_min * 60_000_000
    assert parse_datetime(text) == want


def test_datetime_edges() -> None:
    assert parse_datetime("1970-01-01T00:00:00Z") == 0
    assert parse_datetime("1970-01-01T00:00:00.1234569Z") == 123456
    assert parse_datetime("0000-12-31T00:00:00Z") == parse_datetime("0001-01-01T00:00:00Z") - 86_400_000_000
    for text in (
        "0000-01-01T00:00:00+00:01",
        "2023-02-29T00:00:00Z",
        "2024-01-01T24:00:00Z",
        "2024-01-01T00:00:60Z",
        "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:00." + "0" * 21 + "Z",
        "2024-01-01T00:00:00-00:00",
    ):
        with pytest.raises(InvalidSyntax):
            parse_datetime(text)


@given(st.text(max_size=40))
def test_any_text_is_accepted_or_refused_with_the_typed_error(text: str) -> None:
    for parse in (parse_did, parse_handle, parse_nsid, parse_rkey, parse_tid, parse_path, parse_at_uri, parse_datetime):
        try:
            parse(text)
        except InvalidSyntax:
            continue
