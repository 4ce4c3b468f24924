"""SIGKILL at random moments, each part of a backfill in turn; started again until it ends by itself, it has lost nothing.

The moments are spread over the records that the ingester holds, so that a fast run and a slow one are hit all along; some of a
supervisor come while it starts, where no record moves.
"""

from __future__ import annotations

import random

import pytest

from tests.faults.stage import (
    Expectation,
    Stage,
    ends_within,
    first_at_work,
    free_port,
    kill,
    lines_with,
    marks,
    moments,
)
from tests.support.processes import Program
from tests.support.waiting import NotInTime, wait_until

pytestmark = pytest.mark.faults

AT_WORK_SHARE = 0.75  # of the kills of a supervisor; the others come while it starts
STARTING_S = 1.5
BUSY_WITHIN_S = 1.0  # a child is waited for so long to be at work: most of their time they wait
PAUSE_S = 0.4  # between a number of records and the kill, at most


def least(kills: int) -> int:
    """How many kills have to hit something that runs: half of them; of a few one, since most marks may lie where a run is about to end."""
    return kills // 2 if kills > 10 else 1


def test_supervisor(expectation: Expectation, stage: Stage, rng: random.Random, kills: int) -> None:
    expectation.slow_down(0.4 if expectation.refused else 0.25)
    address = stage.watched_ingester()
    hits, progress = 0, []
    for mark in marks(rng, kills, expectation.records):
        program = stage.backfill(expectation, INGESTER_ADDRESSES=address)
        if rng.random() < AT_WORK_SHARE:
            program.wait_for_line("^metrics: ")
            ended = stage.ends_before(program, mark, rng.uniform(0.0, PAUSE_S))
        else:
            ended = ends_within(program, rng.uniform(0.05, STARTING_S))
        if ended:
            break
        program.kill()
        hits += 1
        progress.append(stage.stored_records())
    print(f"{hits} kills of a live supervisor; records stored at each: {progress} of {expectation.records}")
    assert hits >= least(kills)
    expectation.slow_down(0)
    stage.judge(expectation, stage.backfill(expectation, INGESTER_ADDRESSES=address))


def test_supervisor_with_its_own_ingester(
    small_world: Expectation, stage: Stage, rng: random.Random, kills: int
) -> None:
    small_world.slow_down(0.3)
    kills //= 2
    hits = 0
    for pause_s in moments(rng, kills, 1.2):
        program = stage.backfill(small_world)
        if rng.random() < AT_WORK_SHARE:
            program.wait_for_line("^metrics: ")
        if ends_within(program, pause_s):
            break
        program.kill()
        hits += 1
    assert hits >= least(kills)
    small_world.slow_down(0)
    stage.judge(small_world, stage.backfill(small_world))


@pytest.mark.parametrize("child", ["relay-worker", "relay-fetch"])
def test_child(child: str, expectation: Expectation, stage: Stage, rng: random.Random, kills: int) -> None:
    expectation.slow_down(0.5 if expectation.refused else 0.2)
    address = stage.watched_ingester()
    program = stage.backfill(expectation, INGESTER_ADDRESSES=address, RELAY_MAX_RETRIES="5")
    program.wait_for_line("^metrics: ")
    hits, progress = 0, []
    for mark in marks(rng, kills, expectation.records):
        if stage.ends_before(program, mark, rng.uniform(0.0, PAUSE_S)):
            break
        progress.append(stage.stored_records())
        hits += _kill_one(stage, program, child, rng)
    expectation.slow_down(0)
    stage.judge(expectation, program)
    lost = lines_with([program], "=worker_died" if child == "relay-worker" else "=fetcher_died")
    print(f"{hits} kills, {lost} repos hit; records stored at each: {progress} of {expectation.records}")
    assert hits >= least(kills)
    # A worker is at work for a millisecond at a time: of a few kills it may well be that each came late.
    if child == "relay-fetch" or kills > 10:
        assert lost > 0, "only children that did nothing were killed"
    # When everything is stored the run may be stopping its children already, and their end is no news.
    # The same of the last kill: between its mark and the kill the rest may have been stored.
    sure = sum(stored < expectation.records for stored in progress[:-1])
    assert min(sure, hits) <= lines_with([program], "child_died") <= hits, str(program)


def test_ingester(expectation: Expectation, stage: Stage, rng: random.Random, kills: int) -> None:
    expectation.slow_down(0.5 if expectation.refused else 0.2)
    port = free_port()
    ingester = stage.ingester(port)
    program = stage.backfill(expectation, INGESTER_ADDRESSES=f"127.0.0.1:{port}")
    program.wait_for_line("^metrics: ")
    hits, progress = 0, []
    for mark in marks(rng, kills, expectation.records):
        if stage.ends_before(program, mark, rng.uniform(0.0, PAUSE_S)):
            break
        ingester.kill()
        hits += 1
        progress.append(stage.stored_records())
        ingester = stage.ingester(port)
    print(f"{hits} kills; records stored at each: {progress} of {expectation.records}")
    expectation.slow_down(0)
    stage.judge(expectation, program)
    assert hits >= least(kills)
    assert any(0 < stored < expectation.records for stored in progress), progress


@pytest.mark.parametrize("victim", ["postmaster", "backend"])
def test_postgresql(victim: str, expectation: Expectation, stage: Stage, rng: random.Random, kills: int) -> None:
    expectation.slow_down(0.5 if expectation.refused else 0.2)
    address = stage.watched_ingester()
    program = stage.backfill(expectation, INGESTER_ADDRESSES=address)
    program.wait_for_line("^metrics: ")
    victims = stage.backends if victim == "backend" else stage.postmasters
    hits, progress = 0, []
    for mark in marks(rng, kills, expectation.records):
        if stage.ends_before(program, mark, rng.uniform(0.0, PAUSE_S)):
            break
        progress.append(stage.stored_records())
        wait_until(lambda: victims() or not program.is_running(), f"a {victim}")
        found = victims()
        hits += bool(found) and kill(rng.choice(found).pid)
    print(f"{hits} kills of a {victim}; records stored at each: {progress} of {expectation.records}")
    expectation.slow_down(0)
    stage.judge(expectation, program)
    assert hits >= least(kills)
    assert lines_with([program], "store_away") + lines_with([program], "waits_for_store") > 0, str(program)


def _kill_one(stage: Stage, program: Program, child: str, rng: random.Random) -> bool:
    """Kill one of the children, one that computes if there is any soon; False when the run ended before there was one."""
    try:
        wait_until(lambda: stage.named(child) or not program.is_running(), f"a {child}")
    except NotInTime as exc:
        raise NotInTime(f"{exc}: {program}") from None
    children = [info.pid for info in stage.named(child)]
    if not children:
        return False
    return kill(first_at_work(children, BUSY_WITHIN_S) or rng.choice(children))
