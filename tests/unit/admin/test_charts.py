"""What the page's charts are drawn from, and the drawing."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from relay.admin.charts import HEIGHT, WIDTH, bar, line_chart, states_chart
from relay.admin.history import COARSE, POINTS, STEP_S, History, Point
from relay.model import RepoState
from relay.observe import words
from relay.observe.status import FirehoseStatus, IngesterView, Phase, Rates, StatusSnapshot


def _snapshot(number: float | None) -> StatusSnapshot:
    return StatusSnapshot(
        instance="a",
        phase=Phase.RUNNING,
        repos={"synced": 3, "failed": 0},
        rates=Rates(repos_per_s=number),
        firehose=FirehoseStatus(lag_s=number),
        ingesters=(
            IngesterView(address="x", healthy=True, oldest_unacked_s=None),
            IngesterView(address="y", healthy=True, oldest_unacked_s=number),
        ),
    )


def _points(*values: float | None) -> list[Point]:
    return [
        Point(at=1000 + 5 * place, values={} if value is None else {"x": value}) for place, value in enumerate(values)
    ]


def test_both_rings_are_bounded_and_a_days_point_is_the_mean_of_its_minutes() -> None:
    history = History()
    for place in range(COARSE * (POINTS + 3)):
        history.add(place * STEP_S, _snapshot(float(place % COARSE)))
    assert len(history.recent()) == len(history.day()) == POINTS
    assert history.recent()[-1].values["repos"] == COARSE - 1
    assert history.day()[-1].values == {"repos": (COARSE - 1) / 2, "lag": (COARSE - 1) / 2, "unacked": (COARSE - 1) / 2}
    assert history.day()[-1].states == {"synced": 3}


def test_what_was_not_known_is_left_out_of_points_and_means() -> None:
    history = History()
    for place in range(COARSE):
        history.add(float(place), _snapshot(None if place else 8.0))
    assert "lag" not in history.recent()[-1].values
    assert history.recent()[-1].values["unacked"] == 0  # ingesters are there, and nothing waits
    assert history.day()[0].values["lag"] == 8.0


@given(st.lists(st.none() | st.floats(0, 1e12), max_size=60))
def test_a_line_stays_within_its_picture_whatever_the_values(values: list[float | None]) -> None:
    text = line_chart("<x>", _points(*values), "x", words.rate)
    assert "<x>" not in text
    for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", " ".join(re.findall(r'points="([^"]*)"', text))):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_a_line_says_its_newest_and_its_highest_value_and_is_not_drawn_over_a_hole() -> None:
    text = line_chart("Lag", _points(1.0, 9.0, 2.0), "x", words.duration)
    assert "<b>2.0s</b>" in text
    assert "max 9.0s" in text
    assert text.count("<polyline") == 1
    assert line_chart("Lag", _points(1, 9, *[None] * 8, 3, 4), "x", words.duration).count("<polyline") == 2
    assert "collecting" in line_chart("Lag", [], "x", words.duration)


def test_states_are_stacked_to_the_whole_and_few_that_need_somebody_are_seen() -> None:
    points = [Point(at=float(at), states={"synced": at, "pending": 10 - at}) for at in range(11)]
    text = states_chart(points)
    assert re.findall(r'class="s-(\w+)"', text) == ["synced", "pending"]
    assert f"0.0,{HEIGHT:.1f}" in text  # nothing synced at first
    assert f"{WIDTH:.1f},0.0" in text  # all at last
    drawn = bar({"synced": 50_000_000, "quarantined": 1})
    assert [float(each) for each in re.findall(r'width="([\d.]+)"', drawn)] == [1000.0, 2.0]
    assert bar({state.value: 0 for state in RepoState}) == ""
