from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.deliver.absence import FIRST_PROBATION_S, LONGEST_PROBATION_S, Absence


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
