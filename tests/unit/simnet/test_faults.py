from __future__ import annotations

import json
import zlib
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, permutations

from relay.simnet.answers import NEVER, Response
from relay.simnet.faults import (
    ANSWER_FAULTS,
    CAR_FAULTS,
    DOCUMENT_FAULTS,
    EVENT_FAULTS,
    LISTING_FAULTS,
    STREAM_FAULTS,
    SUBSCRIPTION_FAULTS,
    Fault,
    FaultKind,
    FaultPlan,
    Place,
    bad_answer,
    bad_manners,
)

_GET_REPO = Place(endpoint="getRepo", host=1, did="did:plc:a")


def _place(did: str, endpoint: str = "getRepo", host: int | None = 0) -> Place:
    return Place(endpoint=endpoint, host=host, did=did)


def test_every_kind_belongs_to_one_group() -> None:
    groups = (
        ANSWER_FAULTS,
        CAR_FAULTS,
        DOCUMENT_FAULTS,
        LISTING_FAULTS,
        EVENT_FAULTS,
        SUBSCRIPTION_FAULTS,
        STREAM_FAULTS,
    )
    assert sum(map(len, groups)) == len(FaultKind)
    assert frozenset().union(*groups) == frozenset(FaultKind)


def test_a_fault_strikes_only_where_it_is_declared() -> None:
    plan = FaultPlan([Fault(kind=FaultKind.RESET, endpoint="getRepo", host=1, did="did:plc:a")])
    assert plan.pick(ANSWER_FAULTS, _place("did:plc:a", host=0)) is None
    assert plan.pick(ANSWER_FAULTS, _place("did:plc:b", host=1)) is None
    assert plan.pick(ANSWER_FAULTS, _place("did:plc:a", "listRepos", 1)) is None
    assert plan.pick(CAR_FAULTS, _GET_REPO) is None
    assert plan.fired() == {"reset": 0}
    assert plan.pick(ANSWER_FAULTS, _GET_REPO) is not None
    assert plan.fired() == {"reset": 1}


def test_times_per_did_and_after_bound_the_firings() -> None:
    plan = FaultPlan([Fault(kind=FaultKind.STATUS, per_did=2, times=5, after=1)])
    fired = Counter(did for did in ("a", "b", "c") for _ in range(4) if plan.pick(ANSWER_FAULTS, _place(did)))
    assert fired == {"a": 2, "b": 2, "c": 1}
    assert plan.fired() == {"status": 5}


def test_the_first_declared_fault_strikes_and_the_next_when_it_is_spent() -> None:
    plan = FaultPlan([Fault(kind=FaultKind.TOO_MANY, times=1), Fault(kind=FaultKind.RESET)])
    picked = [plan.pick(ANSWER_FAULTS, _GET_REPO) for _ in range(3)]
    assert [fault and fault.kind for fault in picked] == [FaultKind.TOO_MANY, FaultKind.RESET, FaultKind.RESET]


def test_what_is_taken_back_did_not_fire() -> None:
    plan = FaultPlan([Fault(kind=FaultKind.MISSING_RECORD, times=1)])
    fault = plan.pick(CAR_FAULTS, _GET_REPO)
    assert fault is not None
    plan.take_back(fault, _GET_REPO)
    assert plan.fired() == {"missing_record": 0}
    assert plan.pick(CAR_FAULTS, _GET_REPO) is not None


@given(order=permutations([f"did:plc:{n}" for n in range(12)]), seed=integers(0, 1000), rate=floats(0.1, 0.9))
def test_who_is_struck_does_not_depend_on_the_order_of_asking(order: list[str], seed: int, rate: float) -> None:
    def struck(dids: list[str]) -> dict[str, list[bool]]:
        plan = FaultPlan([Fault(kind=FaultKind.CUT, rate=rate)], seed=seed)
        return {did: [plan.pick(ANSWER_FAULTS, _place(did)) is not None for _ in range(3)] for did in dids}

    assert struck(order) == struck(sorted(order))


def test_a_rate_is_a_share_of_the_requests() -> None:
    plan = FaultPlan([Fault(kind=FaultKind.CUT, rate=0.3)], seed=1)
    struck = sum(plan.pick(ANSWER_FAULTS, _place(f"did:plc:{n}")) is not None for n in range(2000))
    assert 500 < struck < 700


def test_faults_travel_as_json() -> None:
    fault = Fault(kind=FaultKind.HANG, endpoint="plc", rate=0.5, per_did=1, seconds=2.5)
    assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault
    with pytest.raises(ValueError, match="no speed"):
        Fault.from_json({"kind": "hang", "speed": 1})
    with pytest.raises(ValueError, match="nonsense"):
        Fault.from_json({"kind": "nonsense"})


def test_too_many_has_retry_after_or_is_a_bare_page() -> None:
    told = bad_answer(Fault(kind=FaultKind.TOO_MANY, seconds=5))
    bare = bad_answer(Fault(kind=FaultKind.TOO_MANY, text="html"))
    assert told is not None
    assert bare is not None
    assert (told.status, told.headers) == (429, (("Retry-After", "5"),))
    assert (bare.status, bare.headers, bare.content_type) == (429, (), "text/html")


def test_each_replacing_fault_has_an_answer_and_the_others_change_the_right_one() -> None:
    changing = {FaultKind.SLOW, FaultKind.CUT}
    for kind in ANSWER_FAULTS:
        assert (bad_answer(Fault(kind=kind)) is None) == (kind in changing), kind
    right = Response(body=bytes(1000))
    assert bad_manners(Fault(kind=FaultKind.CUT), right).cut_at == 500
    assert bad_manners(Fault(kind=FaultKind.CUT, bytes=5000), right).cut_at == 999
    assert bad_manners(Fault(kind=FaultKind.SLOW, bytes=100), right).bytes_per_s == 100
    assert bad_manners(Fault(kind=FaultKind.HANG, seconds=3), right).delay_s == 3
    assert bad_answer(Fault(kind=FaultKind.HANG, seconds=3)) is None
    forever = bad_answer(Fault(kind=FaultKind.HANG))
    assert forever is not None
    assert forever.delay_s == NEVER


def test_the_gzip_bomb_is_small_and_unpacks_to_its_size() -> None:
    bomb = bad_answer(Fault(kind=FaultKind.GZIP_BOMB, bytes=64 << 20))
    assert bomb is not None
    assert isinstance(bomb.body, bytes)
    assert len(bomb.body) < 100_000
    unpacked, rest = 0, bomb.body
    while rest:
        member = zlib.decompressobj(31)
        unpacked += len(member.decompress(rest))
        rest = member.unused_data
    assert unpacked == 64 << 20


def test_the_oversize_body_goes_on_to_its_size_in_pieces() -> None:
    oversize = bad_answer(Fault(kind=FaultKind.OVERSIZE, bytes=8 << 20))
    assert oversize is not None
    assert not isinstance(oversize.body, bytes)
    pieces = list(islice(oversize.body, 100))
    assert sum(map(len, pieces)) > 7 << 20
    assert max(map(len, pieces)) < 2 << 20
