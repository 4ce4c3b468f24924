from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.deliver.absence import FIRST_PROBATION_S, LONGEST_PROBATION_S, Absence, Departure, Step


def away(absence: Absence, now: float) -> bool:
    absence.look(now, is_healthy=False)
    return absence.may_go(now)


def there(absence: Absence, now: float) -> bool:
    absence.look(now, is_healthy=True)
    return absence.may_return(now)


def test_it_goes_after_the_time_and_comes_back_as_soon_as_it_is_healthy() -> None:
    absence = Absence(30.0)
    assert not away(absence, 100.0)
    assert not away(absence, 129.0)
    assert away(absence, 130.0)
    absence.gone(130.0, 7)
    assert not away(absence, 200.0), "gone already"
    assert not absence.may_return(200.0)
    assert there(absence, 201.0)
    absence.returned(7)
    assert not there(absence, 202.0)


def test_who_is_healthy_in_between_starts_over() -> None:
    absence = Absence(30.0)
    assert not away(absence, 0.0)
    assert not there(absence, 29.0)
    assert not away(absence, 31.0)
    assert not away(absence, 60.0)
    assert away(absence, 61.0)


@given(st.floats(0, 1e6))
def test_zero_is_never(later: float) -> None:
    absence = Absence(0.0)
    assert not away(absence, 0.0)
    assert not away(absence, later)


def relapse(absence: Absence, now: float, acknowledged: int) -> float:
    """Come back, go again; return how long it stays out at least, to the second."""
    absence.returned(acknowledged)
    absence.gone(now, acknowledged)
    waited = 0.0
    while not there(absence, now + waited):
        waited += 1.0
    return waited


def test_who_comes_back_and_acknowledges_nothing_stays_out_longer_each_time() -> None:
    absence = Absence(30.0)
    absence.gone(0.0, 7)
    assert there(absence, 1.0)
    found = [relapse(absence, 1000.0 * number, 7) for number in range(1, 8)]
    assert found == [
        FIRST_PROBATION_S,
        120.0,
        240.0,
        480.0,
        LONGEST_PROBATION_S,
        LONGEST_PROBATION_S,
        LONGEST_PROBATION_S,
    ]


def test_an_acknowledgement_after_it_came_back_ends_the_probation() -> None:
    absence = Absence(30.0)
    absence.gone(0.0, 7)
    assert relapse(absence, 1000.0, 7) == FIRST_PROBATION_S
    absence.returned(7)
    absence.gone(2000.0, 8)
    assert there(absence, 2001.0)


def test_who_joins_has_its_repos_as_soon_as_it_is_healthy() -> None:
    absence = Absence(30.0)
    absence.joins()
    assert not away(absence, 100.0)
    assert not absence.may_return(100.0)
    assert there(absence, 100.1)
    absence.returned(0)
    assert not away(absence, 101.0)
    assert away(absence, 131.0)


def looked(departure: Departure, now: float, *, healthy: bool = True, awaited: bool = True, other: bool = True) -> Step:
    return departure.look(now, is_healthy=healthy, is_awaited=awaited, is_another_there=other)


def test_who_is_removed_works_on_until_another_is_there_and_goes_when_its_batches_are_acknowledged() -> None:
    departure = Departure(60.0)
    assert looked(departure, 0.0, other=False) is Step.KEEP
    assert looked(departure, 9.0, other=False, healthy=False) is Step.KEEP, "nobody could take what it has"
    assert looked(departure, 10.0, awaited=False) is Step.AWAIT, "what is being written at this moment counts as well"
    assert looked(departure, 11.0) is Step.AWAIT
    assert looked(departure, 12.0, other=False) is Step.KEEP
    assert looked(departure, 13.0) is Step.AWAIT
    assert looked(departure, 14.0, awaited=False) is Step.GO


def test_who_is_removed_and_away_goes_at_once_and_who_is_slow_after_its_time() -> None:
    assert looked(Departure(60.0), 0.0, healthy=False) is Step.GO
    departure = Departure(60.0)
    assert looked(departure, 0.0) is Step.AWAIT
    assert looked(departure, 59.0) is Step.AWAIT
    assert looked(departure, 60.0) is Step.GO
