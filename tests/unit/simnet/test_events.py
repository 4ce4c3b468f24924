"""The log against a naive one."""

from __future__ import annotations

from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from, tuples

from relay.simnet.events import Event, EventLog

_FIRST = 100
_steps = lists(
    tuples(sampled_from(("append", "skip", "lose", "purge", "renumber")), integers(0, 9)), min_size=1, max_size=60
)


def _log(window: int = 20) -> EventLog:
    return EventLog(first_seq=_FIRST, window=window)


def _append(log: EventLog, did: str) -> Event:
    return log.append("identity", did, {"did": did}, 0)


@given(_steps, integers(1, 12))
def test_a_log_holds_what_a_naive_one_holds(steps: list[tuple[str, int]], window: int) -> None:
    log, plain, following, lost = _log(window), [], _FIRST, 0
    for step, number in steps:
        match step:
            case "append":
                event = _append(log, f"did:plc:{number % 3}")
                assert event.seq == following
                plain.append(event)
                following += 1
            case "skip":
                assert log.skip() == following
                following += 1
            case "purge":
                did = f"did:plc:{number % 3}"
                assert log.purge(did) == sum(event.did == did for event in plain)
                plain = [event for event in plain if event.did != did]
            case "renumber":
                following += 1000 * number
                log.renumber(following)
                plain, lost = [], following - 1
            case _:
                assert log.lose(number) == max(0, len(plain) - number)
        keep = number if step == "lose" else window
        for gone in plain[: max(0, len(plain) - keep)]:
            lost = gone.seq
        plain = plain[max(0, len(plain) - keep) :]
        assert log.newest_seq == following - 1
        assert log.oldest_seq == (plain[0].seq if plain else None)
        assert log.lost_seq == lost
        for seq in (0, following - 5, following - 1, following + 5):
            assert log.after(seq, limit=4) == [event for event in plain if event.seq > seq][:4]
            assert log.until(seq, 3) == [event for event in plain if event.seq <= seq][-3:]


def test_a_full_log_keeps_its_window_only() -> None:
    log = _log(window=50)
    for _ in range(5000):
        _append(log, "did:plc:a")
    assert [event.seq for event in log.after(0, limit=100)] == list(range(_FIRST + 4950, _FIRST + 5000))
    assert len(log._events) < 1200


def test_listeners_hear_of_each_event_and_of_nothing_else() -> None:
    log, heard = _log(), []
    log.listeners.append(lambda: heard.append(log.newest_seq))
    _append(log, "did:plc:a")
    log.skip()
    log.lose()
    _append(log, "did:plc:a")
    assert heard == [_FIRST, _FIRST + 2]
