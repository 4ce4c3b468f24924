"""Slots: pieces that do not overlap, and an account that notices a slot freed twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.ipc.arena import Arena, SlotAccount, SlotError


@given(slots=st.integers(1, 8), slot_bytes=st.integers(1, 5000))
def test_slots_do_not_overlap(slots: int, slot_bytes: int) -> None:
    arena = Arena("test", slots, slot_bytes)
    for slot in range(slots):
        arena.view(slot)[:] = bytes([slot]) * slot_bytes
    assert all(bytes(arena.view(slot)) == bytes([slot]) * slot_bytes for slot in range(slots))
    arena.close()


@pytest.mark.parametrize(("slot", "size"), [(-1, None), (2, None), (0, 11), (0, -1)])
def test_a_view_outside_its_slot_is_refused(slot: int, size: int | None) -> None:
    arena = Arena("test", 2, 10)
    with pytest.raises(SlotError):
        arena.view(slot, size)
    arena.close()


@pytest.mark.parametrize(("slots", "slot_bytes"), [(0, 1), (1, 0)])
def test_an_arena_without_room_is_refused(slots: int, slot_bytes: int) -> None:
    with pytest.raises(ValueError, match="arena test"):
        Arena("test", slots, slot_bytes)


def test_a_view_outlives_its_arena() -> None:
    arena = Arena("test", 1, 4)
    view = arena.view(0)
    view[:] = b"abcd"
    arena.close()
    assert bytes(view) == b"abcd"


def test_an_arena_has_no_name_in_the_file_system() -> None:
    before = len(os.listdir("/proc/self/fd"))
    arena = Arena("relay-test-arena", 1, 4)
    assert not any("relay-test-arena" in name for name in os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else True
    arena.close()
    assert len(os.listdir("/proc/self/fd")) == before


class AccountMachine(RuleBasedStateMachine):
    """The account against a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.account = SlotAccount(range(4, 8))
        self.held: dict[int, int] = {}

    @rule(holder=st.integers(1, 3))
    def lease(self, holder: int) -> None:
        slot = self.account.lease(holder)
        if slot is None:
            assert len(self.held) == 4
        else:
            assert slot not in self.held
            self.held[slot] = holder

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.account.free(slot)
        del self.held[slot]

    @rule(slot=st.integers(0, 10))
    def free_what_nobody_holds(self, slot: int) -> None:
        if slot not in self.held:
            with pytest.raises(SlotError):
                self.account.free(slot)

    @invariant()
    def adds_up(self) -> None:
        assert self.account.in_use == len(self.held)


TestAccount = AccountMachine.TestCase
