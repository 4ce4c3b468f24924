"""What the ingesters are told of an account, and what is still to be asked about it (pure; DESIGN 3)."""

from __future__ import annotations

from dataclasses import replace

from relay.model import AccountStatus
from relay.repos import live_events as e
from relay.repos.facts import Check, Facts, TellIdentity
from relay.repos.live_draft import Draft
from relay.repos.live_flow import Flow


class Standing:
    """Status, identity and checks of one DID.

    Invariants: a status and an identity are stored before they are told, the times told rise whatever other machines' clocks
    say, and what was not acknowledged is told again after a start; a mark for a check is stored until its own answer came.
    """

    def __init__(self, flow: Flow, facts: Facts, draft: Draft) -> None:
        self._flow, self._change, self._effects = flow, draft.change, draft.effects
        self.told, self.tell = facts.told, facts.tell
        self.told_identity_us, self.tell_identity = facts.told_identity_us, facts.tell_identity
        self.check_due = facts.check_due
        self.check_mark = 0  # counts the marks for a check
        self.is_resolving = False
        self._waits_for_identity = False  # an `#identity` is told when the document was read
        self._identity_version = 0

    def begin(self) -> None:
        """Take up what a loaded row has left to do."""
        if self.tell is not None and (self.told is None or self.tell.time_us > self.told.time_us):
            self.tell_status_again()
        if self.tell_identity is not None and self.tell_identity.time_us > (self.told_identity_us or 0):
            self._waits_for_identity = True
            self.resolve()
        if self.check_due is not None:
            self.mark_check(self.check_due)

    # --- status -------------------------------------------------------------------------------------------------------

    def say(self, active: bool, status: str, time_us: int, seq: int) -> None:
        """Have a status told, in its turn."""
        last = max(self.tell.time_us if self.tell else -1, self.told.time_us if self.told else -1)
        self.tell = AccountStatus(active=active, status=status, time_us=max(time_us, last + 1))
        self._queue_status(self.tell, seq=seq, version=self._change(is_urgent=True))

    def say_if_new(self, active: bool, status: str, time_us: int) -> None:
        """Never told counts as active."""
        said = (self.tell.active, self.tell.status) if self.tell is not None else (True, "")
        if said != (active, status):
            self.say(active, status, time_us, 0)

    def tell_status_again(self) -> None:
        """The stored one, unchanged: nobody has acknowledged it."""
        if self.tell is not None:
            self._queue_status(self.tell, seq=0, version=0)

    def say_all_again(self) -> None:
        """Status and identity, with new times: for an ingester that has lost them."""
        if self.tell is not None:
            self.say(self.tell.active, self.tell.status, self.tell.time_us, 0)
        if self.tell_identity is not None and not self._waits_for_identity:
            self.tell_identity = replace(self.tell_identity, time_us=self.tell_identity.time_us + 1)
            self._queue_identity(self._change(is_urgent=True))

    def _queue_status(self, tell: AccountStatus, *, seq: int, version: int) -> None:
        token = self._flow.token()
        self._flow.tell(
            e.OfferAccount(active=tell.active, status=tell.status, time_us=tell.time_us, seq=seq, token=token),
            version=version,
        )

    # --- identity -----------------------------------------------------------------------------------------------------

    def identity_seen(self, event: e.IdentitySeen) -> None:
        """The document says what is true; it is told when that was read. The frame waits for neither."""
        last = self.tell_identity
        time_us = max(event.time_us, (last.time_us if last else -1) + 1)
        handle = event.handle or (last.handle if last else None)
        self.tell_identity = TellIdentity(handle=handle, pds=last.pds if last else None, time_us=time_us)
        self._waits_for_identity = True
        self._identity_version = self._change()
        # Asked again although an answer may be on its way: that one may be from before the change.
        self.resolve()

    def resolve(self) -> None:
        self.is_resolving = True
        self._effects.append(e.ResolveIdentity())

    def identity_learnt(self, event: e.IdentityLearnt) -> None:
        self.is_resolving = False
        last = self.tell_identity
        if last is not None and self._waits_for_identity:
            self.tell_identity = replace(last, handle=event.handle, pds=event.pds)
        elif last is not None and (last.handle, last.pds) != (event.handle, event.pds):
            time_us = max(event.time_us, last.time_us + 1)
            self.tell_identity = TellIdentity(handle=event.handle, pds=event.pds, time_us=time_us)
        else:
            return
        self._queue_identity(self._change(is_urgent=True))

    def identity_failed(self) -> None:
        """The directory is silent: what is known is told."""
        self.is_resolving = False
        if self._waits_for_identity:
            self._queue_identity(self._identity_version)

    def _queue_identity(self, version: int) -> None:
        self._waits_for_identity = False
        tell, token = self.tell_identity, self._flow.token()
        assert tell is not None
        self._flow.tell(
            e.OfferIdentity(handle=tell.handle, pds=tell.pds, time_us=tell.time_us, seq=0, token=token), version=version
        )

    def was_told(self, telling: e.OfferAccount | e.OfferIdentity) -> None:
        """An ingester has it."""
        if isinstance(telling, e.OfferAccount):
            self.told = AccountStatus(active=telling.active, status=telling.status, time_us=telling.time_us)
        else:
            self.told_identity_us = telling.time_us
        self._change()

    # --- checks -------------------------------------------------------------------------------------------------------

    def mark_check(self, what: Check) -> None:
        """A mark is stored, so a crash does not forget it. A status check looks at the rev too, so it stands for both."""
        what = "status" if self.check_due == "status" else what
        self.check_mark += 1
        if self.check_due != what:
            self.check_due = what
            self._change()
        self._effects.append(e.CheckDue(what=what, mark=self.check_mark))

    def check_answered(self, mark: int) -> None:
        """An answer to an older mark may be from before what set the newest one."""
        if mark == self.check_mark and self.check_due is not None:
            self.check_due = None
            self._change()
