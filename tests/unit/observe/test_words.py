"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.observe import words


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.count(1234567), "1,234,567"), (words.count(None), "-"),
        (words.short_count(0), "0"), (words.short_count(999), "999"), (words.short_count(999.6), "1.00k"),
        (words.short_count(12_345), "12.3k"), (words.short_count(999_960), "1.00M"), (words.short_count(4_560_000), "4.56M"),
        (words.size(0), "0 B"), (words.size(1023), "1023 B"), (words.size(1536), "1.50 KiB"), (words.size(5 * 2**30), "5.00 GiB"),
        (words.rate(None), "-"), (words.rate(0), "0/s"), (words.rate(0.25), "0.25/s"), (words.rate(4560), "4.56k/s"),
        (words.duration(None), "-"), (words.duration(0.84), "0.8s"), (words.duration(42), "42s"), (words.duration(59.7), "1m00s"),
        (words.duration(185), "3m05s"), (words.duration(7800), "2h10m"), (words.duration(356_400), "4d03h"),
        (words.percent(0, 10), "0%"), (words.percent(10, 10), "100%"), (words.percent(99_999, 100_000), "99.9%"),
        (words.percent(1, 100_000), "0.1%"), (words.percent(12, 10), "100%"), (words.percent(1, 0), "-"), (words.percent(None, 5), "-"),
    ],
)  # fmt: skip
def test_a_number_reads_as(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.floats(0, 1e15))
def test_short_forms_stay_short(value: float) -> None:
    assert len(words.short_count(value)) <= 6
    assert len(words.size(value)) <= 9
    assert len(words.duration(value)) <= 6 or value > 86_400 * 99
