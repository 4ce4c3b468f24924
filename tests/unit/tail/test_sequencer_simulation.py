"""The sequencer in a world where everything happens late, twice, or in the middle of something else."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.unit.tail.sequencer_world import World

number = st.integers(0, 5)
KINDS = st.sampled_from(["commit"] * 6 + ["sync", "account", "identity"])
FATES = st.sampled_from(["good"] * 8 + ["invalid", "unprovable", "bad_frame", "internal", "kills", "future"])


class Sequencing(RuleBasedStateMachine):
    world: World

    @initialize(
        mode=st.sampled_from(["all", "all", "tracked", "collection"]),
        cursor=st.sampled_from([None, 100]),
        max_open=st.sampled_from([3, 20, 1000]),
        known=st.booleans(),
    )
    def begin(self, **how: Any) -> None:
        self.world = World(**how)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.settle()
                self.world.check_rest()
            finally:
                self.world.close()

    def did(self, number: int) -> str:
        return self.world.dids[number % len(self.world.dids)]

    @rule(
        who=number,
        kind=KINDS,
        fate=FATES,
        operations=st.integers(0, 3),
        active=st.booleans(),
        gap=st.sampled_from([0, 0, 0, 5]),
        collection=st.sampled_from(["com.sought.thing", "com.other.thing"]),
    )
    def emit(self, who: int, kind: str, fate: str, **more: Any) -> None:
        if kind in ("account", "identity") and fate in ("unprovable", "future"):
            fate = "invalid"
        if kind == "sync" and fate == "unprovable":
            fate = "good"
        self.world.emit(self.did(who), kind, fate=fate, **more)

    @rule(who=number, count=st.integers(1, 4))
    def burst(self, who: int, count: int) -> None:
        for _ in range(count):
            self.world.emit(self.did(who), "commit")

    @precondition(lambda self: self.world.pending)
    @rule(count=st.integers(1, 10))
    def batch(self, count: int) -> None:
        self.world.batch(count)

    @rule()
    def pump(self) -> None:
        self.world.pump()

    @precondition(lambda self: self.world.loads)
    @rule()
    def load(self) -> None:
        self.world.loaded()

    @rule(seat=st.integers(0, 1), most=st.integers(1, 8))
    def work(self, seat: int, most: int) -> None:
        self.world.work(seat, most)

    @rule(seat=st.integers(0, 1))
    def kill(self, seat: int) -> None:
        self.world.kill_worker(seat)

    @precondition(lambda self: any(not worker.is_alive for worker in self.world.workers))
    @rule()
    def start(self) -> None:
        for worker in self.world.workers:
            if not worker.is_alive:
                self.world.start_worker(worker.seat)

    @rule(who=number)
    def rotate(self, who: int) -> None:
        self.world.accounts[self.did(who)].key += 1

    @precondition(lambda self: self.world.resolves)
    @rule(works=st.booleans())
    def resolve(self, works: bool) -> None:
        self.world.resolved(works=works)

    @precondition(lambda self: self.world.lookups)
    @rule(works=st.booleans())
    def look_up(self, works: bool) -> None:
        self.world.looked_up(works=works)

    @precondition(lambda self: self.world.changes)
    @rule(count=st.integers(1, 5))
    def store(self, count: int) -> None:
        for _ in range(min(count, len(self.world.changes))):
            self.world.stored()

    @precondition(lambda self: self.world.lane)
    @rule(count=st.integers(1, 5))
    def acknowledge(self, count: int) -> None:
        for _ in range(min(count, len(self.world.lane))):
            self.world.acknowledged()

    @rule(who=number)
    def claim(self, who: int) -> None:
        self.world.claim(self.did(who))

    @precondition(lambda self: self.world.fetches)
    @rule()
    def fetched(self) -> None:
        self.world.fetched(next(iter(self.world.fetches)))

    @rule(who=number)
    def evict(self, who: int) -> None:
        self.world.evict(self.did(who))

    @rule(seconds=st.sampled_from([0.1, 1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule(is_blocked=st.booleans())
    def block(self, is_blocked: bool) -> None:
        self.world.is_blocked = is_blocked

    @rule(seq=st.integers(1, 130))
    def begin_afresh(self, seq: int) -> None:
        self.world.begin_era(seq)


TestSequencing = Sequencing.TestCase
TestSequencing.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
