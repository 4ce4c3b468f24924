"""The table at the end of `make bench` is read from what the benchmarks print."""

from __future__ import annotations

import importlib.util

import pytest

from tests.bench.__main__ import FIGURES, Figure, commands, number, row, table, verdict

OUTPUTS = {
    "worker": (
        "\nmix: 400 repos, 183,080 records, 63.1 MB\n"
        "               ns/record   records/s    MB/s  repos/s   ratio   at a reference of 450 ns\n"
        "  reference          430   2,325,581     802    5,081    1.00\n"
        "  raw              3,100     322,581     111      705    7.21     308,209 records/s: must (250,000 / 330,000)\n"
        "  JSON             4,400     227,273      78      497   10.23     217,174 records/s: must (170,000 / 230,000)\n"
        "  filter 9 %       1,300     769,231     265    1,681    3.02     735,042 records/s: must (500,000 / 800,000)\n"
        "\nr1k: 1 repos, 1,000 records, 0.3 MB\n"
        "  raw              9,999           1     111      705    9.99\n"
        "  dag-cbor  345 MB, 1,000,000 operations: 4.1 s, of it 3.0 s to verify (CPU 4.0 s), 243,000 records/s; peak RSS 650 MB\n"
        "  json      345 MB, 1,000,000 operations: 6.1 s, of it 3.0 s to verify (CPU 6.0 s), 163,000 records/s; peak RSS 700 MB\n"
    ),
    "end-to-end": (
        "reference loop: 2,600,000 sha256 of 231 bytes a second on one core\n"
        "null, raw              210k records/s   85.7 MiB/s     570 repos/s  in 2.6s, steady 260,000 records/s; CPU us/record: fetch 2.28; memory 1,245 MB (f)\n"
        "null, JSON            31.8k records/s    11.8 MiB/s      74 repos/s  in 4.0s, steady 35,800 records/s; CPU us/record: fetch 2; memory 246 MB (f)\n"
        "PostgreSQL, JSON       ????\n"
    ),
    "live-end-to-end": (
        "reference loop: 2,900,000 sha256 of 231 bytes a second on one core\n"
        "alone: live lane: p50 17.6 ms, p99 36.9 ms, p99.9 48.7 ms of 2,050 operations, 0 above 250 ms\n"
        "beside a backfill, second 1: live lane: p50 23.6 ms, p99 94.3 ms, p99.9 99.4 ms of 1,931 operations, 0 above 250 ms\n"
        "beside a backfill: live lane: p50 19.9 ms, p99 90.1 ms, p99.9 99.0 ms of 30,532 operations, 0 above 250 ms\n"
        "beside a backfill: 1,951 events/s; CPU us/event: supervisor 240 (engine 125)\n"
        "backlog: 40,000 events in 6.6 s, 6,086 events/s; busiest verify, 80% of a core; of its own core: supervisor 10,050 events/s 291 x reference, verify worker 7,648 events/s 382 x reference\n"
    ),
    "slow-ingester": "the others kept                93.1% of what they had\n",
    "peers": "atmst: store and walk            hashes, layers  r10k      65,145 records/s, verify_repo is 4.4 times as fast\n",
}  # fmt: skip


def _figure(name: str) -> Figure:
    (found,) = [figure for figure in FIGURES if figure.name == name]
    return found


@pytest.mark.parametrize(
    ("name", "value", "ratio", "reached"),
    [
        ("worker stage, raw DAG-CBOR, one core", 322_581, 7.21, "must"),
        ("worker stage, filter that keeps 9 %", 769_231, 3.02, "must"),
        ("one repo of 1,000,000 records, peak", 700, None, "goal"),
        ("end to end, null sink, raw DAG-CBOR", 260_000, 10.0, "must"),
        ("end to end, null sink, JSON", 35_800, 2_600_000 / 35_800, "BELOW"),
        ("against atmst, which checks less, one core", 4.4, None, "must"),
        ("live lane beside a backfill, p99", 90.1, None, "must"),
        ("backlog of frames, everything on this machine", 6086, 2_900_000 / 6086, ""),
        ("supervisor, backlog, one core", 10_050, 291.0, ""),
        ("memory of all processes, null sink, raw", 1245, None, "BELOW"),
        ("one of three at a tenth: the others keep", 93.1, None, "must"),
    ],
)
def test_a_figure_is_read_and_judged(name: str, value: float, ratio: float | None, reached: str) -> None:
    figure = _figure(name)
    assert row(figure, OUTPUTS[figure.part]) == (value, ratio)
    assert verdict(figure, value) == reached


def test_a_figure_that_is_not_found_any_more_is_told() -> None:
    lines, lost = table(OUTPUTS, quick=False)
    assert lost == ["end to end, PostgreSQL sink, JSON"]
    assert len(lines) == 1 + sum(figure.part in OUTPUTS for figure in FIGURES) - len(lost)


def test_numbers_are_read_as_they_are_printed() -> None:
    assert [number(text) for text in ("12.5k", "1.04M", "1,234", "0.50", "7")] == [12_500, 1_040_000, 1234, 0.5, 7]


@pytest.mark.parametrize("quick", [True, False])
def test_every_part_is_a_module_of_the_folder(quick: bool) -> None:
    for part, words in commands(quick=quick).items():
        assert importlib.util.find_spec(f"tests.bench.{words[0]}") is not None, part
