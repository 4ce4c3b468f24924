"""A `backfill` beside a service: its targets go to the service through the database, and their progress is followed (DESIGN 7)."""

from __future__ import annotations

import os
import time

from relay import __version__
from relay.atproto.nsid_filter import NsidFilter
from relay.discovery.listing import NAMED_AT_A_TIME
from relay.discovery.sink import StoreSink
from relay.errors import ConfigError, StoreAway, StoreFenced
from relay.model import RepoState
from relay.observe.log import get_logger
from relay.observe.rates import EtaMeter, RateMeter
from relay.observe.status import Phase, Rates, StatusSnapshot, rfc3339
from relay.observe.status import Targets as TargetsView
from relay.repos.lifecycle import FINISHED
from relay.store import batches, partitions, repos
from relay.store.partitions import Holder
from relay.store.repos import Discovered
from relay.store.statements import Cursor
from relay.supervisor.books import Summary, missing_targets, read_result
from relay.supervisor.covering import filter_text, insufficient_for, parse_covers
from relay.supervisor.discovery import Targets
from relay.supervisor.session import SERVICES, Session, command_of

log = get_logger(__name__)

# Named DIDs go in for so long at a time: signals are looked at in between.
PUTTING_S = 0.4
FOLLOW_EVERY_S = 1.0
# Counting a batch of millions may take this share of the time.
SHARE = 0.05


class HandingOver:
    """`look(holder)` is called again and again while another instance holds the lease.

    Named DIDs are put in from here, with the epoch of the service, so that a file of millions needs no other way; everything else the
    service enumerates, with its own limits of hosts. If the service goes the lease is ours, and with it the same batch.
    """

    def __init__(self, session: Session, targets: Targets, wanted: NsidFilter, summary: Summary) -> None:
        self._session, self._targets, self._wanted, self._summary = session, targets, wanted, summary
        self._batch: int | None = None
        self._owner = ""
        self._checked_epoch: int | None = None
        self._holders_filter = NsidFilter(())
        self._put = 0  # named DIDs that are in
        self._is_handed_over = False
        self._began, self._began_at = 0.0, 0.0
        self._follow_at = 0.0
        self._repos_rate, self._eta = RateMeter(), EtaMeter()

    def look(self, holder: Holder) -> bool:
        """Go on; True: the service has finished our targets, and the summary says how. Raises ConfigError: its filter does not suffice."""
        if command_of(holder.owner) not in SERVICES or holder.is_expired:
            return False
        try:
            if holder.epoch != self._checked_epoch and not self._check(holder):
                return False
            if not self._is_handed_over:
                self._hand_over(holder)
            return self._is_handed_over and self._follow()
        except StoreFenced:
            return False  # the holder has changed: the next look sees the new one
        except StoreAway as exc:
            log.warning("store_away", reason=str(exc), waiting="hand over")
            return False

    def _check(self, holder: Holder) -> bool:
        """Is the service far enough to take something, and does it want what we want?"""
        with self._session.database.transaction("look at the service", epoch=holder.epoch) as cursor:
            in_force = partitions.read(cursor).filter
        if in_force is None:
            return False
        self._holders_filter = parse_covers(in_force)
        if not self._holders_filter.covers(self._wanted):
            outside = filter_text(self._wanted) or "all collections"
            raise ConfigError(
                f"{holder.owner} follows the stream for {in_force}, and its filter stands: {outside} goes beyond it. "
                "Give the service the wider filter (firehose.nsid_filter), or name collections that it has"
            )
        self._owner, self._checked_epoch = holder.owner or "", holder.epoch
        return True

    # --- handing over -------------------------------------------------------------------------------------------------------

    def _hand_over(self, holder: Holder) -> None:
        session, now = self._session, self._session.clock.now()
        named = self._targets.dids
        if self._batch is None:
            sources = self._targets.sources(session.settings)
            with session.database.transaction("hand over", epoch=holder.epoch) as cursor:
                batch, resumed = batches.open_batch(cursor, self._targets.spec(self._wanted), now)
                if named:
                    batches.take_back(cursor, batch)
                else:
                    batches.hand_over(cursor, batch, sources.to_json(), now)
            self._batch, self._is_handed_over = batch, not named
            self._began, self._began_at = time.monotonic(), now
            log.info("batch_handed_over", batch=batch, resumed=resumed, to=self._owner)
            session.reporter.waiting(f"handed over to {self._owner}: its progress is followed")
        if named and not self._is_handed_over and self._put_named(holder.epoch, self._batch):
            with session.database.transaction("hand over", epoch=holder.epoch) as cursor:
                batches.hand_over(cursor, self._batch, None, now)
            self._is_handed_over = True

    def _put_named(self, epoch: int, batch: int) -> bool:
        """Put named DIDs in for a moment; True: all of them are."""
        named = self._targets.dids
        sink = StoreSink(
            self._session.database,
            epoch=lambda: epoch,
            batch=batch,
            partitions=self._session.settings.relay.partitions,
            clock=self._session.clock,
            insufficient=insufficient_for(self._holders_filter),
        )
        until = time.monotonic() + PUTTING_S
        while self._put < len(named) and time.monotonic() < until:
            some = named[self._put : self._put + NAMED_AT_A_TIME]
            sink.take([Discovered(did=did) for did in some], named=True, listing=None)
            self._put += len(some)
        return self._put == len(named)

    # --- following ----------------------------------------------------------------------------------------------------------

    def _follow(self) -> bool:
        """Show how far the service is; True: it is through, and what came of it is in the summary."""
        began = time.monotonic()
        if began < self._follow_at or self._batch is None:
            return False
        with self._session.database.transaction("follow the batch") as cursor:
            batch = batches.get(cursor, self._batch)
            counts = repos.count_by_state(cursor, self._batch)
            if batch is not None and batch.finished_at is not None:
                self._sum_up(cursor, batch)
                return True
            whole = repos.totals(cursor, self._batch)
        now = time.monotonic()
        self._follow_at = now + max(FOLLOW_EVERY_S, (now - began) / SHARE)
        self._show(now, counts, whole, is_final=batch is not None and batch.enumerated_at is not None)
        return False

    def _sum_up(self, cursor: Cursor, batch: batches.Batch) -> None:
        summary = self._summary
        read_result(cursor, batch.id, summary)
        delivered = batches.delivered_since(cursor, batch.id, self._began_at)
        summary.repos_synced, summary.records, summary.bytes_fetched = (
            delivered.repos,
            delivered.records,
            delivered.bytes_fetched,
        )
        summary.took_s = time.monotonic() - self._began
        summary.failed_listings = [f"{host}: {why}" for host, why in batch.failed_listings]
        upstream = self._targets.sources(self._session.settings).network
        summary.why = missing_targets(batch.failed_listings, upstream=upstream, counts=summary.counts)

    def _show(self, now: float, counts: dict[RepoState, int], whole: tuple[int, int], *, is_final: bool) -> None:
        total, done = sum(counts.values()), sum(counts[state] for state in FINISHED)
        self._repos_rate.update(now, done)
        self._eta.update(now, done, total)
        settings = self._session.settings
        snapshot = StatusSnapshot(
            instance=settings.relay.name,
            phase=Phase.STANDBY,
            reason=f"handed over to {self._owner}",
            at=rfc3339(time.time()),
            version=__version__,
            command="backfill",
            pid=os.getpid(),
            uptime_s=now - self._began,
            repos={state.value: number for state, number in counts.items()},
            records_delivered=whole[0],
            bytes_fetched=whole[1],
            rates=Rates(repos_per_s=self._repos_rate.rate()),
            targets=TargetsView(
                total=total,
                done=done,
                synced=counts[RepoState.SYNCED],
                inactive=counts[RepoState.INACTIVE],
                quarantined=counts[RepoState.QUARANTINED],
                final=is_final,
                eta_s=self._eta.eta_s(),
            ),
        )
        self._session.reporter.show(snapshot)
