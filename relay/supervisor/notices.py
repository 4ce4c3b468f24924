"""What others changed beside us: repos in memory follow their rows, and operations that were refused are sent again."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from relay.observe.log import get_logger
from relay.repos import live_events as e
from relay.repos.keeper import Keeper
from relay.repos.tasks import StoreTasks
from relay.store import notices
from relay.store.notices import Kind, Notice
from relay.store.statements import Cursor

log = get_logger(__name__)

AT_A_TIME = 10
"""Notices in one look: of up to 5,000 DIDs each, so that the engine is not held up for more than some milliseconds."""


class Notices:
    """Lives in the engine's thread; `look` is to be called twice a second. `changed()` hears that claims and counts should look.

    A notice is taken away with the look after the one that took it: a commit that broke is asked again, and taken twice does no harm.
    """

    def __init__(
        self, keeper: Keeper, tasks: StoreTasks, changed: Callable[[], None], tell: Callable[[], None]
    ) -> None:
        self._keeper, self._tasks, self._changed, self._tell = keeper, tasks, changed, tell
        self._taken: set[int] = set()
        self._is_asking = False

    def look(self) -> None:
        if self._is_asking:
            return
        self._is_asking = True
        taken = sorted(self._taken)

        def ask(cursor: Cursor) -> list[Notice]:
            notices.delete(cursor, taken)
            return notices.waiting(cursor, AT_A_TIME)

        self._tasks.submit("notices", ask, self._found)

    def _found(self, found: list[Notice]) -> None:
        self._is_asking = False
        new = [notice for notice in found if notice.id not in self._taken]
        self._taken = {notice.id for notice in found}
        for notice in new:
            self._take(notice)
        if new:
            self._changed()
        if found:
            self.look()

    def _take(self, notice: Notice) -> None:
        busy = self._keeper.others_wrote(notice.dids)
        log.info("rows_changed_beside_us", what=notice.kind.value, repos=len(notice.dids), in_work=len(busy))
        match notice.kind:
            case Kind.ADDED:
                pass  # one that was removed and is in work goes when that has landed; till then nobody looks at its row
            case Kind.REMOVED:
                for resident in busy:
                    self._keeper.feed(resident, e.Removed())
            case Kind.RESYNC:
                # Statuses of repos that nobody works on are told at once, of inactive ones too; the rest is with the claims.
                self._tell()
                for resident in busy:
                    # One that is active was claimed after the change, or its row is marked for another fetch.
                    if resident.life.is_known and not resident.life.is_attended:
                        self._keeper.feed(resident, e.ResyncAsked())
            case _:
                assert_never(notice.kind)
