"""Several outboxes behind a router, against simulated ingesters with one database: any schedule of going, coming back, joining, leaving."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.deliver.gobackn import Batch
from relay.deliver.outbox import REJECT, RETRY, Complaint, Outbox, Outcome
from relay.deliver.router import Cargo, Router
from relay.deliver.segment import Refused, Segment
from relay.model import Lane
from tests.unit.deliver.making import keys_of, read, segment_of

ADDRESSES = ("a:1", "b:1", "c:1")
ALL = (*ADDRESSES, "d:1")
Op = tuple[str, int]


class Stream:
    """What came over one stream; it is stored in order, and also when the relay thinks the stream dead."""

    def __init__(self) -> None:
        self.inbox: deque[tuple[int, list[Op]]] = deque()
        self.newest: dict[str, int] = {}
        self.last = 0
        self.stored = 0

    def receive(self, message: bytes) -> None:
        number, operations = read(message)
        assert number == self.last + 1, "batches of a stream are numbered 1, 2, 3..."
        self.last = number
        for did, key in operations:
            assert key > self.newest.get(did, -1), "one DID's operations are in order within a stream"
            self.newest[did] = key
        self.inbox.append((number, operations))


class World:
    """Router, outboxes, ingesters, the database that they share, and the books of the owner."""

    def __init__(self, rejects: frozenset[int] = frozenset(), retries: frozenset[int] = frozenset()) -> None:
        self.router = Router(ADDRESSES)
        self.boxes = {address: make_box(address) for address in ALL}
        self.streams: dict[str, list[Stream]] = {address: [Stream()] for address in ALL}
        self.untold: dict[str, deque[Outcome]] = {address: deque() for address in ALL}
        self.rejects, self.retries = rejects - retries, retries
        self.database: list[Op] = []
        self.offered: list[Segment] = []
        self.withdrawn: list[Segment] = []
        self.acknowledged: list[Segment] = []
        self.refused: list[Refused] = []
        self.copied: list[int] = []
        self.next_key = 0
        self.now = 0.0

    # The owner

    def offer(self, did: str, count: int, lane: Lane) -> None:
        place = len(self.offered)
        keys = range(self.next_key, self.next_key + count)
        self.next_key += count
        segment = segment_of(did, keys, lane=lane, copied=lambda: self.copied.append(place))
        assert self.boxes[self.router.sends(segment)].offer(segment, self.now)
        self.offered.append(segment)

    def withdraw(self, did: str, lane: Lane) -> None:
        gone = self.boxes[self.router.address_of(did)].lanes.discard(did, lane)
        self.router.settled(gone)
        self.withdrawn += gone

    def tell(self, address: str) -> None:
        """The sender's thread tells what it has found out; until then its owner, and the router, do not know."""
        while self.untold[address]:
            outcome = self.untold[address].popleft()
            for copied in outcome.copied:
                copied()
            self.refused += outcome.refused
            self.router.settled(outcome.acknowledged)
            known = set(self.database) | {self.op_of(refused) for refused in self.refused}
            for segment in outcome.acknowledged:
                assert segment not in self.acknowledged, "a segment is acknowledged once"
                assert {(segment.did, key) for key in keys_of(segment)} <= known, "acknowledged is stored, or refused"
                self.acknowledged.append(segment)

    def op_of(self, refused: Refused) -> Op:
        return refused.segment.did, keys_of(refused.segment)[refused.index]

    # Senders and ingesters

    def open(self, address: str) -> None:
        if not self.boxes[address].is_open:
            self.streams[address].append(Stream())
            self.boxes[address].stream_opened()

    def write(self, address: str) -> bool:
        outcome = self.boxes[address].next_message(self.now)
        self.untold[address].append(outcome)
        if outcome.message is not None:
            self.streams[address][-1].receive(outcome.message)
        return outcome.message is not None

    def store(self, address: str, stream: Stream, *, answers: bool) -> None:
        """Store the next batch of a stream, and answer if that is wanted, or needed: another answer then speaks for both."""
        if not stream.inbox:
            return
        number, operations = stream.inbox.popleft()
        bad = [Complaint(at, RETRY, "later") for at, (_, key) in enumerate(operations) if key in self.retries][:1]
        if bad:
            stream.inbox.clear()
        else:
            bad = [Complaint(at, REJECT, "no") for at, (_, key) in enumerate(operations) if key in self.rejects]
            self.database += [operation for operation in operations if operation[1] not in self.rejects]
            stream.stored = number
        if (answers or bad) and stream is self.streams[address][-1] and self.boxes[address].is_open:
            self.untold[address].append(self.boxes[address].answer(number, bad, self.now))

    def store_late(self, address: str) -> None:
        """A batch of a stream that the relay has given up."""
        is_open = self.boxes[address].is_open
        late = [
            each for each in self.streams[address] if each.inbox and not (is_open and each is self.streams[address][-1])
        ]
        if late:
            self.store(address, late[0], answers=False)

    def fail_over(self, address: str) -> None:
        router = self.router
        if router.failed_over >= set(router.addresses) - {address} or address in router.failed_over:
            return
        self.move(address, router.fail_over)

    def join(self, address: str) -> None:
        """A new one, of which only late batches of an earlier life may be under way. It has its repos when it is taken back."""
        assert self.boxes[address].is_idle
        homes = {did: self.router.address_of(did) for did in map("did:plc:{}".format, range(300))}
        self.boxes[address] = make_box(address)
        self.router.join(address)
        for each in self.router.addresses:
            self.router.keep(each, self.boxes[each].segments())
        assert {did: self.router.address_of(did) for did in homes} == homes, "nothing moves before it is there"

    def leave(self, address: str) -> None:
        homes = {did: self.router.address_of(did) for did in map("did:plc:{}".format, range(300))}
        are_all_away = self.router.failed_over >= set(self.router.addresses) - {address}
        self.move(address, self.router.leave)
        assert address not in self.router.addresses
        for did, home in homes.items():
            if home != address and not are_all_away:
                assert self.router.address_of(did) == home, "only its own repos move"

    def move(self, address: str, route: Callable[[str, list[Batch], list[Segment]], dict[str, Cargo]]) -> None:
        box = self.boxes[address]
        if box.is_open:
            box.stream_lost()
        before = self.held(address)
        cargos = route(address, *box.surrender())
        assert address not in cargos
        assert box.is_idle
        for target, cargo in cargos.items():
            self.boxes[target].adopt(cargo.batches, cargo.segments)
        after: dict[str, list[int]] = defaultdict(list)
        for cargo in cargos.values():
            for did, keys in operations_of(cargo.batches, cargo.segments).items():
                assert did not in after, "a DID is moved to one ingester"
                after[did] = keys
        assert after == before, "everything that was unacknowledged moves, and each DID's in order"

    def held(self, address: str) -> dict[str, list[int]]:
        box = self.boxes[address]
        live, backfill = box.lanes._live, box.lanes._backfill
        return operations_of(box.in_flight.batches, [*live, *backfill])

    # What must hold

    def check_now(self) -> None:
        holders: dict[str, str] = {}
        for address in ALL:
            held = self.held(address)
            assert not (held and address in self.router.failed_over), "one that is failed over has nothing"
            assert not (held and address not in self.router.addresses), "nor has one that left"
            for did, keys in held.items():
                assert keys == sorted(keys), "in order"
                assert holders.setdefault(did, address) == address, f"{did} is at two ingesters"
                assert self.router.address_of(did) == address, "newer operations follow the older ones"

    def finish(self) -> None:
        for _ in range(500):
            for address in ALL:
                self.tell(address)
            if all(box.is_idle for box in self.boxes.values()):
                return
            self.now += 1
            for address in ALL:
                self.open(address)
                while self.write(address):
                    pass
                self.tell(address)
                self.store(address, self.streams[address][-1], answers=True)
                stream, box = self.streams[address][-1], self.boxes[address]
                if box.is_open and not stream.inbox and box.in_flight.written and stream.stored:
                    self.untold[address].append(box.answer(stream.stored, [], self.now))
            held = {key for address in ALL for keys in self.held(address).values() for key in keys}
            if self.retries & held:
                # Other repos, as there always are, whose operations pass: without them no operation is to blame for a RETRY.
                self.next_key = max(self.next_key, 100)
                for number in range(8):
                    self.offer(f"did:plc:other{number}", 1, Lane.LIVE)
        raise AssertionError("does not come to an end")

    def check(self) -> None:
        self.check_now()
        withdrawn = set(map(id, self.withdrawn))
        assert sorted(map(id, self.acknowledged)) == sorted(
            id(each) for each in self.offered if id(each) not in withdrawn
        )
        assert len(self.copied) == len(set(self.copied)) == len(self.acknowledged)
        dead = [self.op_of(refused)[1] for refused in self.refused]
        assert len(set(dead)) == len(dead), "a dead letter is told once"
        expected: dict[str, list[int]] = defaultdict(list)
        for segment in self.offered:
            if id(segment) not in withdrawn:
                expected[segment.did] += [key for key in keys_of(segment) if key not in dead]
        for did, keys in expected.items():
            first_seen = list(dict.fromkeys(key for name, key in self.database if name == did))
            assert first_seen == keys, "each DID's operations are first stored in the order of offer"
        assert self.router.pinned_dids == 0, "nobody is kept away from home for nothing"
        assert not any(box.lanes.adopted_operations for box in self.boxes.values())
        for address in self.router.failed_over:
            self.router.take_back(address)
        assert all(self.router.address_of(did) == Router(self.router.addresses).address_of(did) for did in expected)


def make_box(address: str) -> Outbox:
    return Outbox(
        address,
        batch_bytes=300,
        max_message_bytes=10_000,
        most_batches=4,
        queue_operations=100_000,
        backfill_share=0.2,
        max_retries=2,
        repo_operations=1000,
    )


def operations_of(batches: list, segments: list[Segment]) -> dict[str, list[int]]:  # type: ignore[type-arg]
    """Return the keys of each DID, in order."""
    found: dict[str, list[int]] = defaultdict(list)
    for batch in batches:
        for did, key in read(batch.message(1))[1]:
            found[did].append(key)
    for segment in segments:
        found[segment.did] += keys_of(segment)
    return found


DIDS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), DIDS, st.integers(1, 5)),
        st.tuples(st.just("withdraw"), DIDS, st.just(0)),
        st.tuples(
            st.sampled_from(
                ["write", "answer", "store", "tell", "break", "open", "late", "fail over", "take back", "join", "leave"]
            ),
            st.integers(0, 3),
            st.just(0),
        ),
    ),
    max_size=120,
)


def lane_of(number: int) -> Lane:
    return Lane.LIVE if number % 2 else Lane.BACKFILL


def play(world: World, steps: list[tuple[str, int, int]]) -> None:
    for step, number, count in steps:
        address = ALL[number % 4]
        stream = world.streams[address][-1]
        match step:
            case "offer":
                world.offer(f"did:plc:{number}", count, lane_of(number))
            case "withdraw":
                world.withdraw(f"did:plc:{number}", lane_of(number))
            case "write":
                world.now += 1
                world.write(address)
            case "answer" | "store":
                world.store(address, stream, answers=step == "answer")
            case "tell":
                world.tell(address)
            case "break":
                world.boxes[address].stream_lost()
            case "open":
                world.open(address)
            case "late":
                world.store_late(address)
            case "fail over" if address in world.router.addresses:
                world.fail_over(address)
            case "take back" if address in world.router.failed_over:
                world.router.take_back(address)
            case "join" if away := [each for each in ALL if each not in world.router.addresses]:
                world.join(away[0])
                if number % 2:
                    world.router.take_back(away[0])
            case "leave" if address in world.router.addresses and len(world.router.addresses) > 1:
                world.leave(address)
        world.check_now()


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(STEPS, st.frozensets(st.integers(0, 60), max_size=3), st.frozensets(st.integers(0, 60), max_size=2))
def test_whoever_goes_and_comes_back_nothing_is_lost_or_overtaken_and_no_repo_is_at_two_ingesters(
    steps: list[tuple[str, int, int]], rejects: frozenset[int], retries: frozenset[int]
) -> None:
    world = World(rejects, retries)
    play(world, steps)
    world.finish()
    world.check()


def test_whoever_joins_gets_its_own_repos_and_no_others_and_each_when_nothing_of_it_is_under_way() -> None:
    world = World()
    after = Router(ALL)
    dids = [f"did:plc:{number}" for number in range(300)]
    before = {did: world.router.address_of(did) for did in dids}
    (busy,) = [did for did in dids if after.address_of(did) == "d:1"][:1]
    world.offer(busy, 2, Lane.LIVE)
    world.join("d:1")
    world.router.take_back("d:1")
    moved = {did for did in dids if world.router.address_of(did) != before[did]}
    assert moved == {did for did in dids if after.address_of(did) == "d:1"} - {busy}
    world.offer(busy, 1, Lane.LIVE)
    assert world.held(before[busy]) == {busy: [0, 1, 2]}
    world.finish()
    assert world.router.address_of(busy) == "d:1"
    world.check()


def test_whoever_leaves_gives_its_repos_to_one_that_was_away_when_nobody_else_is_left() -> None:
    router = Router(ADDRESSES)
    router.fail_over("a:1", [], [])
    router.fail_over("b:1", [], [])
    router.leave("c:1", [], [])
    assert {router.address_of(f"did:plc:{number}") for number in range(99)} == {"a:1", "b:1"}
    router.leave("a:1", [], [])
    with pytest.raises(ValueError, match="no ingester"):
        router.leave("b:1", [], [])
    with pytest.raises(ValueError, match="twice"):
        router.join("b:1")
    assert router.address_of("did:plc:any") == "b:1"


def dids_of(address: str, count: int) -> list[str]:
    router = Router(ADDRESSES)
    return [did for number in range(300) if router.address_of(did := f"did:plc:{number}") == address][:count]


def test_only_the_repos_of_the_one_that_is_away_move_and_they_spread_over_the_others() -> None:
    router = Router(ADDRESSES)
    dids = [f"did:plc:{number}" for number in range(300)]
    homes = {did: router.address_of(did) for did in dids}
    router.fail_over("b:1", [], [])
    moved = {did: router.address_of(did) for did in dids if router.address_of(did) != homes[did]}
    assert set(moved) == {did for did in dids if homes[did] == "b:1"}
    assert set(moved.values()) == {"a:1", "c:1"}
    router.take_back("b:1")
    assert {did: router.address_of(did) for did in dids} == homes


def test_the_last_one_keeps_its_repos() -> None:
    router = Router(ADDRESSES)
    router.fail_over("b:1", [], [])
    router.fail_over("a:1", [], [])
    with pytest.raises(ValueError, match="no ingester"):
        router.fail_over("c:1", [], [])
    assert router.failed_over == {"a:1", "b:1"}


def test_a_repo_goes_home_only_when_the_other_has_acknowledged_what_it_holds() -> None:
    world = World()
    (did,) = dids_of("b:1", 1)
    world.offer(did, 2, Lane.LIVE)
    world.fail_over("b:1")
    other = next(address for address in ADDRESSES if world.held(address))
    world.router.take_back("b:1")
    world.offer(did, 1, Lane.LIVE)
    assert world.held(other) == {did: [0, 1, 2]}
    world.open(other)
    world.now += 1
    world.write(other)
    world.store(other, world.streams[other][-1], answers=True)
    world.offer(did, 1, Lane.LIVE)
    assert world.held(other) == {did: [3]}, "acknowledged, and its owner does not know yet"
    world.withdraw(did, Lane.LIVE)
    world.tell(other)
    world.offer(did, 1, Lane.LIVE)
    assert world.held("b:1") == {did: [4]}


def test_what_was_under_way_is_sent_before_what_waited_and_both_before_what_is_new() -> None:
    world = World()
    first, second = dids_of("b:1", 2)
    for _ in range(4):
        world.offer(first, 3, Lane.LIVE)
        world.offer(second, 3, Lane.BACKFILL)
    world.open("b:1")
    for _ in range(2):
        world.now += 1
        world.write("b:1")
    world.fail_over("b:1")
    world.offer(first, 3, Lane.LIVE)
    world.check_now()
    world.finish()
    world.check()
    for address in ADDRESSES:
        assert all(keys == sorted(keys) for keys in world.held(address).values())


def burdened(box: Outbox) -> bool:
    return box.is_burdened


def test_what_is_adopted_takes_no_room_from_the_ingesters_own_repos() -> None:
    box = make_box("a:1")
    box.lanes.limit_operations = 10
    box.adopt([], [segment_of("did:plc:moved", range(40), lane=lane) for lane in (Lane.LIVE, Lane.BACKFILL)])
    assert burdened(box)
    for lane in (Lane.LIVE, Lane.BACKFILL):
        assert box.lanes.has_room(lane)
        assert box.lanes.is_relieved(lane)
    box.offer(segment_of("did:plc:own", range(100, 110), lane=Lane.LIVE), 0.0)
    assert not box.lanes.has_room(Lane.LIVE)
    box.stream_opened()
    while box.next_message(9.0).message is not None:
        box.answer(box.in_flight.next_number - 1, [], 9.0)
    assert box.is_idle
    assert not burdened(box)
    assert box.lanes.adopted_operations == 0
