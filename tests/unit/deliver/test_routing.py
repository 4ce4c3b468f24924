from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.deliver.routing import Rendezvous

ADDRESSES = st.lists(st.from_regex(r"[a-z]{1,8}:[0-9]{2,4}", fullmatch=True), min_size=2, max_size=6, unique=True)
DIDS = [f"did:plc:{number:024d}" for number in range(200)]


@given(ADDRESSES)
def test_a_did_keeps_its_ingester_whatever_the_order_of_the_list(addresses: list[str]) -> None:
    before = Rendezvous(addresses)
    after = Rendezvous(list(reversed(addresses)))
    assert [before.address_of(did) for did in DIDS] == [after.address_of(did) for did in DIDS]


@given(ADDRESSES)
def test_without_an_ingester_only_its_own_dids_move(addresses: list[str]) -> None:
    before = Rendezvous(addresses)
    gone, *rest = addresses
    after = Rendezvous(rest)
    for did in DIDS:
        if before.address_of(did) != gone:
            assert after.address_of(did) == before.address_of(did)
        else:
            assert after.address_of(did) in rest


@given(ADDRESSES)
def test_a_new_ingester_takes_dids_and_moves_none_between_the_others(addresses: list[str]) -> None:
    before = Rendezvous(addresses[:-1])
    after = Rendezvous(addresses)
    for did in DIDS:
        assert after.address_of(did) in (before.address_of(did), addresses[-1])


def test_dids_spread_evenly() -> None:
    routes = Rendezvous(["a:1", "b:1", "c:1"])
    counts = Counter(routes.address_of(f"did:plc:{number}") for number in range(9000))
    assert all(2800 < count < 3200 for count in counts.values())


def test_the_hash_is_a_contract_and_does_not_change() -> None:
    # An ingester that keeps a shard of its own would get other DIDs: these figures are what earlier versions did.
    routes = Rendezvous(["ingester-0:50051", "ingester-1:50051", "ingester-2:50051"])
    assert [routes.address_of(f"did:plc:{number}")[9] for number in range(16)] == list("2010220222210022")


def test_no_ingester_or_one_listed_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="no ingester"):
        Rendezvous([])
    with pytest.raises(ValueError, match="twice: a:1, a:1"):
        Rendezvous(["a:1", "a:1"])
