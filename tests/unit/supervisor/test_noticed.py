"""What the database says for eyes: asked now and then, one question at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.model import Incident
from relay.store.partitions import Partition
from relay.store.statements import Cursor
from relay.supervisor.noticed import EVERY_S, MOST_OUTSTANDING, Noticed


class _Questions:
    """Keeps what was asked, to be answered when the test wants."""

    def __init__(self) -> None:
        self.outstanding = 0
        self.asked: list[Callable[[Any], None]] = []

    def submit(self, name: str, ask: Callable[[Cursor], Any], then: Callable[[Any], None]) -> None:
        self.asked.append(then)


def _partition(cursor: int | None) -> Partition:
    return Partition(
        owner=None, epoch=1, lease_until=None, renewed_at=None, upstream="wss://x", cursor=cursor, cursor_time_us=None
    )


def test_it_asks_at_once_then_now_and_then_and_shows_the_newest_answer() -> None:
    questions = _Questions()
    noticed = Noticed(questions, lambda: 0.0)
    noticed.look(100.0)
    assert (noticed.incidents, noticed.cursor, noticed.upstream) == ((), None, "")
    incident = Incident(kind="hole", text="t", at=1.0)
    questions.asked[0](([incident], _partition(77)))
    assert (list(noticed.incidents), noticed.cursor, noticed.upstream) == ([incident], 77, "wss://x")
    noticed.look(100.0 + EVERY_S / 2)
    assert len(questions.asked) == 1
    noticed.look(100.0 + EVERY_S)
    questions.asked[1](([], _partition(None)))
    assert (list(noticed.incidents), noticed.cursor) == ([], None)


def test_one_question_is_out_at_a_time_and_none_behind_many_others() -> None:
    questions = _Questions()
    noticed = Noticed(questions, lambda: 0.0)
    questions.outstanding = MOST_OUTSTANDING
    noticed.look(100.0)
    assert not questions.asked
    questions.outstanding = 0
    for second in range(100):
        noticed.look(100.0 + second)  # no answer comes
    assert len(questions.asked) == 1
