"""Every benchmark one after the other, and at the end one table beside the targets.

    python -m tests.bench [--quick] [--only PART...]        or: make bench ARGS=--quick

Parts: worker (with a profile of where its time goes, and the one repo of a million records), live (frames of the firehose in the
verify worker), peers (other libraries on the same CARs), end-to-end, live-end-to-end, ingester, deliver, slow-ingester. Each is a module of its own that can be
run alone; here their output is passed on as it comes, and read. Nothing is asserted on time. The exit code is 1 when a part
failed, or when a figure cannot be found in its output any more.

Targets are records/s of the two-core machine on which they were set. Machines differ: the column *ratio* is the time of a
record over that of the reference loop (`hashlib.sha256` over the same blocks, one core) in the same run, and can be compared.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

PARTS = ("worker", "live", "peers", "end-to-end", "live-end-to-end", "ingester", "deliver", "slow-ingester")
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A row of the table: where it is found (`pattern` has a group `value` and perhaps `ratio`), and what it should be.

    `is_rate`: more is better, and the ratio follows from the reference loop where the output has none. `long`: not with --quick.
    """

    part: str
    name: str
    pattern: str
    unit: str
    must: float | None = None
    goal: float | None = None
    is_rate: bool = True
    long: bool = False


def _worker(name: str, label: str, must: float, goal: float) -> Figure:
    pattern = rf"^mix: .*?^  {re.escape(label)} +[\d,]+ +(?P<value>[\d,]+) +\d+ +[\d,]+ +(?P<ratio>[\d.]+)"
    return Figure(part="worker", name=f"worker stage, {name}", pattern=pattern, unit="records/s", must=must, goal=goal)


def _end_to_end(name: str, label: str, must: float, goal: float) -> Figure:
    pattern = rf"^{re.escape(label)} .* steady (?P<value>[\d,]+) records/s"
    return Figure(
        part="end-to-end", name=f"end to end, {name}", pattern=pattern, unit="records/s", must=must, goal=goal
    )


def _ingester(name: str, label: str) -> Figure:
    pattern = rf"^{label} +new +(?P<value>[\d,]+) records/s.*ratio (?P<ratio>[\d.]+)"
    return Figure(part="ingester", name=f"reference ingester over gRPC, {name}", pattern=pattern, unit="records/s")


FIGURES = (
    _worker("raw DAG-CBOR, one core", "raw", 250e3, 330e3),
    _worker("JSON, one core", "JSON", 170e3, 230e3),
    _worker("filter that keeps 9 %", "filter 9 %", 500e3, 800e3),
    Figure(
        part="worker",
        name="one repo of 1,000,000 records, peak",
        pattern=r"^  json +.*peak RSS (?P<value>\d+) MB",
        unit="MB",
        must=1500,
        goal=800,
        is_rate=False,
        long=True,
    ),
    _end_to_end("null sink, raw DAG-CBOR", "null, raw", 200e3, 300e3),
    _end_to_end("null sink, JSON", "null, JSON", 130e3, 190e3),
    _end_to_end("PostgreSQL sink, JSON", "PostgreSQL, JSON", 25e3, 60e3),
    Figure(
        part="end-to-end",
        name="memory of all processes, null sink, raw",
        pattern=r"^null, raw .*; memory (?P<value>[\d,]+) MB",
        unit="MB",
        must=1000,
        goal=600,
        is_rate=False,
    ),
    _ingester("null sink", "null"),
    _ingester("SQLite sink", "sqlite"),
    _ingester("PostgreSQL sink", "postgresql"),
    Figure(
        part="peers",
        name="against atmst, which checks less, one core",
        pattern=r"^atmst: .* r10k .* is (?P<value>[\d.]+) times as fast",
        unit="times",
        must=4,
        goal=5,
    ),
    Figure(
        part="live",
        name="live, full check, JSON, one core",
        pattern=r"^  all, JSON .*?(?P<value>[\d,]+) events/s +(?P<ratio>[\d.]+) x reference",
        unit="events/s",
        must=5e3,
        goal=8e3,
    ),
    Figure(
        part="live-end-to-end",
        name="live lane beside a backfill, p99",
        pattern=r"^beside a backfill: live lane: .*p99 (?P<value>[\d,.]+) ms",
        unit="ms",
        must=200,
        goal=50,
        is_rate=False,
    ),
    Figure(
        part="live-end-to-end",
        name="backlog of frames, everything on this machine",
        pattern=r"^backlog: .* s, (?P<value>[\d,]+) events/s; busiest",
        unit="events/s",
    ),
    Figure(
        part="live-end-to-end",
        name="supervisor, backlog, one core",
        pattern=r"^backlog: .*supervisor (?P<value>[\d,]+) events/s (?P<ratio>[\d.]+) x reference",
        unit="events/s",
    ),
    Figure(
        part="deliver",
        name="delivery, 75 KB segments, full speed",
        pattern=r"^full speed, 75 KB segments .*?(?P<value>[\d,]+) operations/s",
        unit="records/s",
    ),
    Figure(
        part="slow-ingester",
        name="one of three at a tenth: the others keep",
        pattern=r"^the others kept +(?P<value>[\d.]+)% of what they had",
        unit="%",
        must=90,
        goal=95,
    ),
)


def commands(*, quick: bool) -> dict[str, list[str]]:
    """Return the module and arguments of each part."""
    return {
        "worker": ["worker_stage", "--quick"] if quick else ["worker_stage", "--million"],
        "live": ["live", "--quick"] if quick else ["live"],
        "peers": ["peers"],
        "end-to-end": ["end_to_end", "--quick"] if quick else ["end_to_end"],
        "live-end-to-end": ["live_end_to_end", "--quick"] if quick else ["live_end_to_end"],
        "ingester": [
            "ingester_bench", "--grpc", "--records", "20000" if quick else "200000", "null", "sqlite", "postgresql",
        ],
        "deliver": ["deliver_bench", "--seconds", "1" if quick else "5"],
        "slow-ingester": ["slow_ingester", "--seconds", "6" if quick else "14"],
    }  # fmt: skip


def number(text: str) -> float:
    """Return the number of a text such as 12.5k or 1,234."""
    scale = text[-1] if text[-1] in _SCALE else ""
    return float(text.removesuffix(scale).replace(",", "")) * _SCALE[scale]


def reference_of(output: str) -> float | None:
    """Return what the reference loop of this output did, blocks/s."""
    found = re.search(r"^reference loop: ([\d,]+) sha256", output, re.MULTILINE)
    return None if found is None else number(found[1])


def row(figure: Figure, output: str) -> tuple[float, float | None] | None:
    """Return (value, ratio to the reference loop) of a figure, or None when the output does not have it."""
    found = re.search(figure.pattern, output, re.MULTILINE | re.DOTALL if figure.part == "worker" else re.MULTILINE)
    if found is None:
        return None
    value = number(found["value"])
    ratio = number(found["ratio"]) if "ratio" in found.re.groupindex else None
    reference = reference_of(output)
    if ratio is None and reference is not None and figure.is_rate:
        ratio = reference / value
    return value, ratio


def verdict(figure: Figure, value: float) -> str:
    """Return which target a value reaches."""
    if figure.must is None or figure.goal is None:
        return ""
    sign = 1 if figure.is_rate else -1
    if sign * value >= sign * figure.goal:
        return "goal"
    return "must" if sign * value >= sign * figure.must else "BELOW"


def table(outputs: dict[str, str], *, quick: bool) -> tuple[list[str], list[str]]:
    """Return the lines of the table, and the names of figures that were not found although their part ran."""
    lines = [f"{'':<44}{'figure':>20}{'must':>10}{'goal':>10}{'ratio':>8}"]
    lost = []
    for figure in FIGURES:
        if figure.part not in outputs or (figure.long and quick):
            continue
        found = row(figure, outputs[figure.part])
        if found is None:
            lost.append(figure.name)
            continue
        value, ratio = found
        form = ",.1f" if value < 100 else ",.0f"
        lines.append(
            f"{figure.name:<44}{value:>10{form}} {figure.unit:<9}{_optional(figure.must, ',.0f'):>10}"
            f"{_optional(figure.goal, ',.0f'):>10}{_optional(ratio, '.2f'):>8}  {'' if quick else verdict(figure, value)}".rstrip()
        )
    return lines, lost


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def run(words: Sequence[str]) -> tuple[int, str]:
    """Run a module of this folder, pass its output on, and return its exit code and output."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.bench.{words[0]}", *words[1:]], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
        return process.wait(), "".join(lines)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Figures beside a reference loop.")
    parser.add_argument("--quick", action="store_true", help="smaller sets and fewer rounds: some two minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=(), help="some parts only")
    options = parser.parse_args(arguments)
    outputs: dict[str, str] = {}
    failed = []
    for part, words in commands(quick=options.quick).items():
        if part not in (options.only or PARTS):
            continue
        if part == "peers" and options.quick and not options.only:
            print("\n=== peers: skipped with --quick (they are installed from PyPI at their first run)", flush=True)
            continue
        print(f"\n=== {part}: python -m tests.bench.{' '.join(words)}", flush=True)
        began = time.monotonic()
        code, output = run(words)
        print(f"=== {part}: {time.monotonic() - began:.0f} s", flush=True)
        if "peers: skipped" not in output:
            outputs[part] = output
        if code != 0:
            failed.append(f"{part}: exit code {code}")
    lines, lost = table(outputs, quick=options.quick)
    print("\n=== all of it" + (" (--quick: smaller sets and lower figures, so no verdicts)" if options.quick else ""))
    print("\n".join(lines))
    print(
        "ratio: time of a record over that of the reference loop in the same run. Targets are of one two-core machine, test servers\n"
        "on the same cores. Not part of the table: other peers, and latencies of other shares; they have their lines above."
    )
    failed += [f"{name}: not found in the output" for name in lost]
    for text in failed:
        print(f"failed: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
