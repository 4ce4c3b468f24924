"""Each fuzz target for a bounded number of inputs, the same ones every time; `tests/fuzz/run.py` goes on from there."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, check_seeds

INPUTS = 400


def test_the_seeds_are_valid() -> None:
    check_seeds()


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_input_breaks_no_promise(name: str) -> None:
    target, rng = TARGETS[name], random.Random(f"{name}-1")
    for seed in target.seeds:
        target.fuzz_one(seed)
    for _ in range(INPUTS):
        data = mutate(rng.choice(target.seeds), rng)
        try:
            target.fuzz_one(data)
        except Exception as exc:
            pytest.fail(f"{name} is broken by {data.hex()}: {exc!r}")


@pytest.mark.parametrize("name", TARGETS)
def test_every_truncation_of_a_seed_breaks_no_promise(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        for end in range(0, len(seed), max(1, len(seed) // 500)):
            target.fuzz_one(seed[:end])
