"""One lease over all partitions: a session lock for a quick take-over, an epoch so that a late writer changes nothing.

    session lock    taken by the holder's own connection: gone at once when the process or its machine's connection ends
    lease_until     renewed every few seconds: a holder that is only silent (stopped, unplugged) has its session ended after it
    epoch           counted up by each take-over: a fenced transaction checks it, and holds off a take-over until it has ended

A holder whose session broke (a restart of PostgreSQL) reconnects, and goes on with its epoch if nobody took over meanwhile.
All times are the server's: clocks of different machines are never compared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from relay.errors import StoreAway, StoreError, StoreFenced
from relay.observe.log import get_logger
from relay.runtime.service import ServiceThread
from relay.store import partitions
from relay.store.partitions import Holder
from relay.store.pool import Database, Session

log = get_logger(__name__)

LEASE_S = 10.0
"""How long a lease lasts after its last renewal. With POLL_S and RENEWAL_S it keeps a take-over from a silent holder under 15 s."""
RENEWAL_S = 3.0
POLL_S = 0.5
TAKE_PATIENCE_MS = 1000


class Lease:
    """The right to work. `acquire` waits for it, a thread keeps it, `release` gives it up.

    `owner` is shown to those who wait. `on_lost(StoreFenced)` is called once, in the keeping thread, when another instance has taken
    over: nothing of ours can be stored any more. `on_away(text | None)`: the lease cannot be renewed, and why; None: it can again.
    """

    def __init__(
        self,
        database: Database,
        owner: str,
        *,
        on_lost: Callable[[StoreFenced], None],
        on_away: Callable[[str | None], None] | None = None,
        lease_s: float = LEASE_S,
        renewal_s: float = RENEWAL_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._database, self._owner = database, owner
        self._on_lost, self._on_away = on_lost, on_away
        self._lease_s, self._renewal_s, self._poll_s = lease_s, renewal_s, poll_s
        self._session: Session | None = None
        self._locked_by: int | None = None  # the server's process of the session that has (or had) the lock
        self._epoch: int | None = None
        self._lost: StoreFenced | None = None
        self._keeper: _Keeper | None = None

    @property
    def epoch(self) -> int:
        """The epoch to give to fenced transactions. Raises StoreFenced when the lease is lost, StoreError when it was never had."""
        if self._lost is not None:
            raise self._lost
        if self._epoch is None:
            raise StoreError("the lease has not been acquired")
        return self._epoch

    @property
    def is_held(self) -> bool:
        """Whether nobody else is known to have it. (Only a fenced transaction is proof.)"""
        return self._epoch is not None and self._lost is None

    def acquire(self, stop: threading.Event, waiting: Callable[[Holder | None, str | None], None]) -> bool:
        """Wait until the lease is ours; False: `stop` was set first.

        `waiting(holder, None)` is called while another instance has it, `waiting(None, text)` while the database is away: about twice
        a second each, so the callee decides what to say, and how often.
        """
        while not stop.is_set():
            holder: Holder | None = None
            trouble: str | None = None
            try:
                holder = self._try_to_take()
            except StoreAway as exc:
                self._drop_session()
                trouble = str(exc)
            if self._epoch is not None:
                self._keeper = _Keeper(self)
                self._keeper.start()
                return True
            waiting(holder, trouble)
            stop.wait(self._poll_s)
        self._drop_session()
        return False

    def release(self, deadline: float) -> bool:
        """Give the lease up, at once for those who wait; False: the keeping thread still ran at `deadline` (monotonic seconds)."""
        ended = True
        if self._keeper is not None:
            self._keeper.request_stop()
            ended = self._keeper.join(deadline)
        if ended and self._session is not None and self._epoch is not None and self._lost is None:
            try:
                with self._session.transaction("give up the lease") as cur:
                    partitions.give_up(cur, self._epoch)
            except StoreError as exc:  # it ends with the session, which we close, or by itself
                log.warning("lease_not_given_up", reason=str(exc))
        if ended:
            self._drop_session()
            self._epoch = None
        return ended

    # --- taking ---------------------------------------------------------------------------------------------------------

    def _try_to_take(self) -> Holder | None:
        """Take the lease (sets `_epoch`), or return who has it."""
        session = self._connected()
        with session.transaction("look at the lease") as cur:
            locked = partitions.try_lock(cur)
            holder = partitions.holder(cur)
        if not locked:
            if holder.is_expired:
                with session.transaction("end a silent holder") as cur:
                    ended = partitions.end_holder(cur)
                log.warning(
                    "lease_holder_silent", owner=holder.owner, silent_s=round(holder.silent_s, 1), sessions=ended
                )
            return holder
        if holder.owner is not None and not holder.is_expired and holder.restarted_since:
            # PostgreSQL restarted, and every session ended with it: the holder may live, and has its first claim until the lease ends.
            with session.transaction("leave the lease to its holder") as cur:
                partitions.unlock(cur)
            return holder
        self._epoch = self._take(session)
        self._locked_by = session.backend_pid
        log.info("lease_taken", owner=self._owner, epoch=self._epoch, before=holder.owner)
        return None

    def _take(self, session: Session) -> int:
        """Count the epoch up. Fenced transactions of the old one are waited for a second, then their sessions are ended."""
        while True:
            try:
                with session.transaction("take the lease") as cur:
                    partitions.limit_waiting(cur, TAKE_PATIENCE_MS)
                    return partitions.take(cur, self._owner, self._lease_s)
            except StoreAway:
                if session.is_broken:
                    raise
                with session.transaction("end transactions of the old epoch") as cur:
                    ended = partitions.end_fenced_transactions(cur)
                log.warning("fenced_transactions_ended", sessions=ended)

    # --- keeping --------------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        """Prolong the lease, reconnecting if need be. Raises StoreFenced when it is lost, StoreAway when to try again."""
        assert self._epoch is not None
        fresh = self._session is None
        session = self._connected()
        with session.transaction("renew the lease") as cur:
            locked = not fresh or partitions.try_lock(cur)
            if locked and not partitions.renew(cur, self._epoch, self._lease_s):
                raise StoreFenced(f"another instance has taken over the lease (epoch {self._epoch} was ours)")
            holder = partitions.holder(cur)
            if not locked and holder.epoch == self._epoch:
                partitions.end_holder(cur, self._locked_by)
        if locked:
            self._locked_by = session.backend_pid
            return
        # Somebody has the lock: one that takes over, or our own old session, whose end the server had not noticed.
        if holder.epoch != self._epoch:
            raise StoreFenced(f"{holder.owner} has taken over the lease (epoch {holder.epoch}, ours was {self._epoch})")
        self._drop_session()
        raise StoreAway("the lease's lock is held by another session")

    def _keep(self, stopping: threading.Event) -> None:
        away = False
        while not stopping.wait(self._poll_s if away else self._renewal_s):
            try:
                self._renew()
            except StoreFenced as exc:
                self._lost = exc
                self._drop_session()
                log.error("lease_lost", owner=self._owner, reason=str(exc))
                self._on_lost(exc)
                return
            except StoreAway as exc:
                if self._session is not None and self._session.is_broken:
                    self._drop_session()
                if not away:
                    log.warning("lease_not_renewed", reason=str(exc))
                    self._tell_away(str(exc))
                away = True
            else:
                if away:
                    log.info("lease_renewed", epoch=self._epoch)
                    self._tell_away(None)
                away = False

    def _tell_away(self, text: str | None) -> None:
        if self._on_away is not None:
            self._on_away(text)

    def _connected(self) -> Session:
        if self._session is None or self._session.is_broken:
            self._session = self._database.session("lease")
        return self._session

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


class _Keeper(ServiceThread):
    """Renews until it is stopped. If it dies of a bug, the lease counts as lost: it would run out anyway."""

    def __init__(self, lease: Lease) -> None:
        super().__init__("lease", self._died)
        self._lease = lease

    def run(self) -> None:
        self._lease._keep(self.stopping)

    def _died(self, name: str, exc: BaseException) -> None:
        lost = StoreFenced(f"the thread that keeps the lease died: {exc}")
        self._lease._lost = lost
        self._lease._on_lost(lost)
