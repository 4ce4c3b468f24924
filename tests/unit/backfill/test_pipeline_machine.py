"""The backfill under every interleaving that hypothesis finds: what goes in comes out, whatever fails in between."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from relay.model import RepoState
from tests.unit.backfill.rehearsal import Account, Rehearsal

SEATS = st.integers(0, 1)
HOSTS = ("https://one.example", "https://two.example")
DIDS = [f"did:plc:{letter * 24}" for letter in "abcdef"]
FETCH_OUTCOMES = st.sampled_from(["ok", "ok", "ok", "ok", "spool", "stale", "down", "limited", "garbage"])


class BackfillMachine(RuleBasedStateMachine):
    """Each rule is a step of one thread, process or stranger; at the end nothing fails any more, and everything must end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
        self.stage = Rehearsal(self.folder)

    @initialize(pieces=st.lists(st.integers(0, 6), min_size=len(DIDS), max_size=len(DIDS)), large=st.booleans())
    def some_accounts(self, pieces: list[int], large: bool) -> None:
        for number, (did, count) in enumerate(zip(DIDS, pieces, strict=True)):
            account = Account(did=did, host=HOSTS[number % 2], pieces=count, large=large and number == 0)
            if number < 3:
                self.stage.add(account)
            else:
                self.stage.add(account, state=RepoState.PENDING)

    # --- the relay's own threads and processes ------------------------------------------------------------------------------

    @rule()
    def pump(self) -> None:
        self.stage.pump()

    @rule(times=st.integers(1, 12), outcome=FETCH_OUTCOMES)
    def everybody_moves(self, times: int, outcome: str) -> None:
        """Without this hypothesis would rarely get a repo to its end."""
        stage = self.stage
        for _ in range(times):
            stage.ask_for_discovered()
            stage.ask_for_claims()
            stage.run_ask()
            stage.hear(stage.answers)
            stage.pump()
            for seat in (0, 1):
                stage.fetch(seat, 0, outcome)
                stage.hear_child("fetch", seat)
                stage.pump()
                stage.work(seat)
                stage.work(seat)
                stage.hear_child("worker", seat)
            stage.store()
            stage.hear_stored()
            stage.hear(stage.senders_said)

    @rule()
    def ask_the_database(self) -> None:
        for ask in (self.stage.ask_for_discovered, self.stage.ask_for_claims, self.stage.ask_for_checks):
            ask()
        self.stage.ask_for_retries()

    @rule()
    def database_answers(self) -> None:
        self.stage.run_ask()

    @rule()
    def answer_arrives(self) -> None:
        self.stage.hear(self.stage.answers)
        self.stage.pump()

    @rule(count=st.integers(1, 4))
    def checkpoint(self, count: int) -> None:
        self.stage.store(count)

    @rule()
    def stored_is_told(self) -> None:
        self.stage.hear_stored()
        self.stage.pump()

    @rule(seat=SEATS, pick=st.integers(0, 3), outcome=FETCH_OUTCOMES)
    def fetch_child_works(self, seat: int, pick: int, outcome: str) -> None:
        self.stage.fetch(seat, pick, outcome)

    @rule(seat=SEATS, steps=st.integers(1, 6))
    def worker_works(self, seat: int, steps: int) -> None:
        for _ in range(steps):
            self.stage.work(seat)

    @rule(role=st.sampled_from(["fetch", "worker"]), seat=SEATS, count=st.integers(1, 4))
    def engine_hears_a_child(self, role: str, seat: int, count: int) -> None:
        for _ in range(count):
            self.stage.hear_child(role, seat)
        self.stage.pump()

    @rule(role=st.sampled_from(["fetch", "worker"]), seat=SEATS)
    def child_dies(self, role: str, seat: int) -> None:
        self.stage.die(role, seat)

    @rule(role=st.sampled_from(["fetch", "worker"]), seat=SEATS)
    def child_is_replaced(self, role: str, seat: int) -> None:
        self.stage.restart(role, seat)

    @rule(count=st.integers(1, 4))
    def sender_writes(self, count: int) -> None:
        for _ in range(count):
            self.stage.send()

    @rule(count=st.integers(1, 4))
    def ingester_stores(self, count: int) -> None:
        for _ in range(count):
            self.stage.acknowledge()

    @rule(number=st.integers(0, 3))
    def ingester_refuses(self, number: int) -> None:
        self.stage.acknowledge(refuse=number)

    @rule(count=st.integers(1, 6))
    def engine_hears_the_senders(self, count: int) -> None:
        for _ in range(count):
            self.stage.hear(self.stage.senders_said)
        self.stage.pump()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 30.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.stage.clock.advance(seconds)
        self.stage.pump()

    # --- the network ----------------------------------------------------------------------------------------------------------

    @rule(did=st.sampled_from(DIDS))
    def writes_a_record(self, did: str) -> None:
        self.stage.accounts[did].version += 1

    @rule(did=st.sampled_from(DIDS))
    def rotates_its_key(self, did: str) -> None:
        account = self.stage.accounts[did]
        account.key = "zKey2" if account.key == "zKey1" else "zKey1"

    @rule(did=st.sampled_from(DIDS))
    def moves(self, did: str) -> None:
        account = self.stage.accounts[did]
        account.host = HOSTS[1]  # and never back: an answer from before it went would seem to be one from after it came
        self.stage.clock.advance(
            61.0
        )  # a document is looked up at most once a minute: younger than that it counts as true

    @rule(did=st.sampled_from(DIDS), status=st.sampled_from(["", "deactivated", "takendown"]))
    def changes_its_status(self, did: str, status: str) -> None:
        self.stage.accounts[did].status = status

    @rule(did=st.sampled_from(DIDS), with_rev=st.booleans())
    def is_listed(self, did: str, with_rev: bool) -> None:
        self.stage.listed(did, with_rev=with_rev)

    @rule(stopping=st.integers(0, 40))
    def stops(self, stopping: int) -> None:
        if stopping == 0:
            self.stage.stop()

    def teardown(self) -> None:
        try:
            self.stage.run_to_the_end()
        finally:
            self.stage.close()
            shutil.rmtree(self.folder)


TestBackfill = BackfillMachine.TestCase
TestBackfill.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
