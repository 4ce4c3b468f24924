"""The bounded map."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.identity.cache import LruCache


@given(st.integers(1, 8), st.lists(st.tuples(st.sampled_from("gpd"), st.integers(0, 12))))
def test_it_holds_the_most_recently_used_entries_and_no_more(size: int, steps: list[tuple[str, int]]) -> None:
    cache: LruCache[int, str] = LruCache(size)
    order: list[int] = []
    for what, key in steps:
        if what == "g":
            assert cache.get(key) == (f"v{key}" if key in order else None)
            if key in order:
                order.remove(key)
                order.append(key)
        elif what == "p":
            cache.put(key, f"v{key}")
            order = [*(each for each in order if each != key), key][-size:]
        else:
            cache.drop(key)
            order = [each for each in order if each != key]
        assert len(cache) == len(order)
        assert all(each in cache for each in order)


def test_a_cache_without_room_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="room"):
        LruCache(0)
