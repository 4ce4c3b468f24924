"""What the pipeline gets to work on: discovered repos to resolve, due repos of hosts that have room, checks, statuses to tell.

Lives in the engine's thread; asks the database through `StoreTasks`, one question of a kind at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from relay.backfill.pipeline import RESOLVES_IN_FLIGHT, Pipeline
from relay.backfill.plan import wanted_claims
from relay.model import Identity, RepoState
from relay.net.gate import HostGate
from relay.observe.log import get_logger
from relay.repos.keeper import Keeper
from relay.repos.tasks import Ask
from relay.runtime.clock import Clock
from relay.runtime.crashpoint import CrashPoint, crash_point
from relay.store import identities, repos
from relay.store.repos import RepoRow
from relay.store.statements import Cursor

log = get_logger(__name__)

DUE_HOSTS_EVERY_S = 1.0
DUE_HOSTS_LIMIT = 5000
LOOK_EVERY_S = 0.25
RETRIES_EVERY_S = 0.5
CHECKS_EVERY_S = 1.0
RETRIES_AT_A_TIME = 5000
CHECKS_AT_A_TIME = 200
TELLS_AT_A_TIME = 500
# A claim whose commit broke with its connection may have taken place: nobody knows of its repos, which nobody can claim again.
ORPHANS_EVERY_S = 30.0
ORPHANS_AT_A_TIME = 2000
# Repos that wait for an ingester to hear that they are inactive hold nothing but memory: this bounds it (about 2 KB each).
MOST_IN_WORK = 20_000


class Tasks(Protocol):
    def submit(self, name: str, ask: Ask, then: Callable[[Any], None]) -> None: ...


class Scheduler:
    """`room`: repos claimed and not yet downloading, at most; `per_host`: of them of one host.

    `batch`: claims of a backfill that follows no stream still take every due repo: those that are left over from an earlier
    one are as welcome. `give_up_silent_s`: in a batch, how long a host may be silent before its repos are quarantined.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        keeper: Keeper,
        hosts: HostGate,
        tasks: Tasks,
        clock: Clock,
        room: int,
        per_host: int,
        give_up_silent_s: float | None,
        rng: random.Random | None = None,
    ) -> None:
        self._pipeline, self._keeper, self._hosts, self._tasks, self._clock = pipeline, keeper, hosts, tasks, clock
        self._room, self._per_host, self._give_up_silent_s = room, per_host, give_up_silent_s
        self._rng = rng or random.Random()
        self._due_hosts: list[str] = []
        self._due_hosts_at = 0.0
        self._asked: set[str] = set()
        self._next: dict[str, float] = {}
        self._checked_up_to = ""
        self._active_up_to = ""
        self._told_up_to: str | None = None  # None: there is nothing to tell again
        self.paused = False

    @property
    def is_claiming(self) -> bool:
        """Is a claim on its way, whose repos nobody has seen yet?"""
        return "claim" in self._asked

    @property
    def is_asking(self) -> bool:
        """Is an answer outstanding that may bring work?"""
        return bool(self._asked)

    def tick(self) -> None:
        """Ask for whatever there is room for; to be called often."""
        if self.paused:
            return
        now = self._clock.monotonic()
        self._tell_more()
        self._claim(now)
        self._look_for_discovered(now)
        self._every("retries", RETRIES_EVERY_S, now, self._requeue_due)
        self._every("checks", CHECKS_EVERY_S, now, self._look_for_checks)
        self._every("orphans", ORPHANS_EVERY_S, now, self._look_for_orphans)

    def something_changed(self) -> None:
        """New repos, or repos that became due: look again without waiting."""
        self._due_hosts_at = 0.0
        self._next.pop("discovered", None)

    # --- claims -----------------------------------------------------------------------------------------------------------

    def _claim(self, now: float) -> None:
        room = self._room - self._pipeline.downloads.queued - self._pipeline.resolves_of_claimed
        if room < max(1, self._room // 4) or self._pipeline.in_work >= MOST_IN_WORK:
            return
        # The list goes stale by our own claims; asking again is cheap when it has run empty.
        if not self._due_hosts or now - self._due_hosts_at > DUE_HOSTS_EVERY_S:
            if now - self._due_hosts_at > (LOOK_EVERY_S / 5 if self._due_hosts_at else 0):
                self._ask("due_hosts", lambda cur: repos.due_hosts(cur, self._clock.now(), DUE_HOSTS_LIMIT), self._due)
            if not self._due_hosts:
                return
        if "claim" in self._asked:
            return
        wants = wanted_claims(
            self._due_hosts,
            room=room,
            per_host=self._per_host,
            queued_of=self._pipeline.downloads.queued_of,
            is_ready=lambda host: self._hosts.ready_in_s(host) <= LOOK_EVERY_S,
        )
        if wants:
            wanted = dict(wants)
            self._ask(
                "claim", lambda cur: _claim(cur, wants, self._clock.now()), lambda got: self._claimed(wanted, got)
            )

    def _due(self, hosts: list[str]) -> None:
        # In the same order each time, the first ones would have the first claim for ever.
        self._rng.shuffle(hosts)
        self._due_hosts = hosts
        self._due_hosts_at = self._clock.monotonic()
        if self._give_up_silent_s is not None:
            for host in hosts:
                if self._hosts.silent_s(host) > self._give_up_silent_s:
                    self._give_up_host(host)

    def _claimed(self, wanted: dict[str, int], got: tuple[list[RepoRow], dict[str, Identity]]) -> None:
        rows, known = got
        found: dict[str, int] = {}
        for row in rows:
            found[row.host or ""] = found.get(row.host or "", 0) + 1
        empty = {host for host, count in wanted.items() if found.get(host, 0) < count}
        if empty:
            self._due_hosts = [host for host in self._due_hosts if host not in empty]
        if rows:
            crash_point(CrashPoint.CLAIM_STORED)
            self._pipeline.claimed(rows, known)

    def _give_up_host(self, host: str) -> None:
        """A batch ends: the repos of a host that answers nobody are quarantined together, not one after the other."""

        def done(moved: int) -> None:
            if moved:
                log.warning("host_given_up", host=host, repos=moved, reason="host_down")
                self._keeper.moved({(RepoState.PENDING, RepoState.QUARANTINED): moved}, of_batch=True)

        self._pipeline.give_up_host(host)
        self._ask(f"give_up {host}", lambda cur: repos.give_up_host(cur, host, self._clock.now()), done)

    # --- discovered, retries, checks ----------------------------------------------------------------------------------------

    def _look_for_discovered(self, now: float) -> None:
        backlog = len(self._pipeline.resolves)
        if backlog >= RESOLVES_IN_FLIGHT * 2 or now < self._next.get("discovered", 0.0):
            return
        limit = RESOLVES_IN_FLIGHT * 4 + backlog
        if self._pipeline.in_work >= MOST_IN_WORK:
            return

        def found(rows: list[RepoRow]) -> None:
            new = [row for row in rows if not self._keeper.is_busy(row.did)]
            # Those that are in work are discovered in the database until they are stored.
            if not new:
                self._next["discovered"] = self._clock.monotonic() + LOOK_EVERY_S
            self._pipeline.discovered(new)

        self._ask_rows("discovered", lambda cur: repos.unresolved(cur, self._clock.now(), limit), found)

    def _requeue_due(self) -> None:
        def done(moved: repos.Transitions) -> None:
            if moved:
                self._keeper.moved(moved, of_batch=True)
                self.something_changed()

        self._ask("retries", lambda cur: repos.requeue_due(cur, self._clock.now(), RETRIES_AT_A_TIME), done)

    def _look_for_checks(self) -> None:
        after = self._checked_up_to

        def found(rows: list[RepoRow]) -> None:
            # Hosts that are not ready are passed over: the next round, from the beginning, finds their repos again.
            self._checked_up_to = rows[-1].did if len(rows) == CHECKS_AT_A_TIME else ""
            if self._checked_up_to:
                self._next.pop("checks", None)

        self._ask_rows(
            "checks", lambda cur: repos.checks_due(cur, CHECKS_AT_A_TIME, after=after), self._pipeline.check, found
        )

    def _look_for_orphans(self) -> None:
        """Questions are asked one after the other, so the claims that this one sees are answered by the time of its answer."""
        after = self._active_up_to

        def found(dids: list[str]) -> None:
            self._active_up_to = dids[-1] if len(dids) == ORPHANS_AT_A_TIME else ""
            orphans = self._pipeline.unattended(dids)
            if orphans:
                log.warning("forgotten_claims_released", repos=len(orphans), first=orphans[0])
                self._ask("release", lambda cur: repos.release_active(cur, orphans), released)

        def released(moved: repos.Transitions) -> None:
            self._keeper.moved(moved, of_batch=True)
            self.something_changed()

        self._ask("orphans", lambda cur: repos.list_active(cur, ORPHANS_AT_A_TIME, after=after), found)

    def look_for_tells(self) -> None:
        """At start: statuses that were stored and never acknowledged are told again."""

        self._told_up_to = ""

    def _tell_more(self) -> None:
        after = self._told_up_to
        if after is None or self._pipeline.in_work >= MOST_IN_WORK:
            return

        def note(rows: list[RepoRow]) -> None:
            self._told_up_to = rows[-1].did if rows else None

        self._ask_rows(
            "tells", lambda cur: repos.tells_due(cur, TELLS_AT_A_TIME, after=after), self._pipeline.tell_again, note
        )

    # --- small --------------------------------------------------------------------------------------------------------------

    def _ask(self, name: str, ask: Ask, then: Callable[[Any], None]) -> None:
        if name in self._asked:
            return
        self._asked.add(name)

        def answered(result: Any) -> None:
            self._asked.discard(name)
            then(result)

        self._tasks.submit(name, ask, answered)

    def _ask_rows(
        self,
        name: str,
        ask: Callable[[Cursor], list[RepoRow]],
        then: Callable[[list[RepoRow]], None],
        note: Callable[[list[RepoRow]], None] | None = None,
    ) -> None:
        """Ask for rows as they are stored, which is not always as we know them: `then` gets those that are not older than that.

        `note` gets them all.
        """
        if name in self._asked:
            return
        look = self._keeper.begin_look()

        def answered(rows: list[RepoRow]) -> None:
            if note is not None:
                note(rows)
            then(self._keeper.end_look(look, rows))

        self._ask(name, ask, answered)

    def _every(self, name: str, interval_s: float, now: float, do: Callable[[], None]) -> None:
        if now >= self._next.get(name, 0.0):
            self._next[name] = now + interval_s
            do()


def _claim(cursor: Cursor, wants: list[tuple[str, int]], now: float) -> tuple[list[RepoRow], dict[str, Identity]]:
    rows = repos.claim(cursor, wants, now)
    return rows, identities.load_many(cursor, [row.did for row in rows])
