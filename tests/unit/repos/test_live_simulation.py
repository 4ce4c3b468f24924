"""The live machine in a small world with crashes: whatever happened, at rest the ingester's rows are the world's."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.repos import live_world


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), steps=st.integers(10, 160))
def test_whatever_happens_nothing_is_lost_and_nothing_overtakes(seed: int, steps: int) -> None:
    live_world.run(seed, steps)


def test_the_simulation_reaches_what_it_is_for() -> None:
    names: set[str] = set()
    for seed in range(100):
        names |= {type(each).__name__ for each in live_world.run(seed, 120).trace}
    wanted = "Offer OfferAccount OfferIdentity Desync FetchAgain RefuseSnapshot SendSnapshot StopSnapshot Withdraw"
    assert set(wanted.split()) <= names
