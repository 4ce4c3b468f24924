"""Which hosts to claim of: spread, bounded, and nothing of hosts that are not ready."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.backfill.plan import wanted_claims

QUEUED = st.dictionaries(st.sampled_from([f"h{n}" for n in range(12)]), st.integers(0, 9), max_size=12)


@given(
    queued=QUEUED,
    room=st.integers(0, 60),
    per_host=st.integers(1, 8),
    ready=st.sets(st.sampled_from([f"h{n}" for n in range(12)])),
)
def test_claims_are_bounded_spread_and_use_the_room(
    queued: dict[str, int], room: int, per_host: int, ready: set[str]
) -> None:
    wants = wanted_claims(
        queued, room=room, per_host=per_host, queued_of=lambda host: queued[host], is_ready=lambda host: host in ready
    )
    free = {host: per_host - count for host, count in queued.items() if host in ready and count < per_host}
    claimed = dict(wants)
    assert len(claimed) == len(wants)
    assert all(0 < count <= free[host] for host, count in wants)
    assert sum(claimed.values()) == min(room, sum(free.values()))
    if len(free) <= room:
        assert set(claimed) == set(free), "every ready host gets one before any gets a second"
    else:
        assert all(count == 1 for count in claimed.values())


def test_a_host_of_a_million_accounts_does_not_take_all_the_room() -> None:
    wants = dict(wanted_claims(["big", "small"], room=10, per_host=100, queued_of=lambda _: 0, is_ready=lambda _: True))
    assert wants == {"big": 5, "small": 5}
