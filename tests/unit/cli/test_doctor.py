"""`doctor`: what each look at this machine finds, and that no check can hold up or bring down the others."""

from __future__ import annotations

import argparse
import json
import resource
import socket
import threading
from pathlib import Path

import pytest

from relay.cli import doctor
from relay.cli.doctor_machine import (
    Finding,
    Level,
    check_configuration,
    check_disk,
    check_files,
    check_memory,
    check_ports,
    memory_bytes,
    ok,
    problem,
)
from relay.cli.doctor_services import skew_finding
from relay.cli.exits import Exit
from relay.config.load import Loaded, load
from relay.config.schema import GIB, MIB


def loaded(tmp_path: Path, **environ: str) -> Loaded:
    env = {"HOME": "/nonexistent", "DATA_DIR": str(tmp_path), "HTTP_CONTACT": "ops@example.org", **environ}
    return load(None, env, usual_files=())


def levels(findings: list[Finding]) -> list[tuple[str, Level]]:
    return [(each.check, each.level) for each in findings]


def test_a_configuration_in_order_is_one_line_that_names_its_file(tmp_path: Path) -> None:
    (found,) = check_configuration(loaded(tmp_path))
    assert (found.level, found.text) == (Level.OK, "read from defaults, environment and flags alone")


def test_a_named_file_that_is_not_there_is_a_problem_with_its_key(tmp_path: Path) -> None:
    found = list(check_configuration(loaded(tmp_path, GRPC_TOKEN_FILE="/nonexistent/token")))
    assert found[0].level is Level.PROBLEM
    assert "grpc.token_file: /nonexistent/token: there is no such file" in found[0].text


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("HTTP_CONTACT", "", "http.contact"),
        ("ALLOW_PRIVATE_HOSTS", "true", "allow_private_hosts"),
        ("GRPC_HOST", "0.0.0.0", "plain text"),
        ("BACKFILLER_WORKER", "3", "BACKFILLER_WORKER"),
    ],
)
def test_what_an_operator_should_know_of_the_configuration_is_a_warning(
    tmp_path: Path, variable: str, value: str, word: str
) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 40)
    extra = {"GRPC_TOKEN_FILE": str(token)} if variable == "GRPC_HOST" else {}
    warnings = [
        each
        for each in check_configuration(loaded(tmp_path, **{variable: value}, **extra))
        if each.level is Level.WARNING
    ]
    assert [word in each.text for each in warnings] == [True]
    assert warnings[0].advice


def test_the_limit_of_open_files_is_compared_with_connections_and_downloads(tmp_path: Path) -> None:
    settings = loaded(tmp_path, PARALLEL_BACKFILLS="64", DATABASE_MAX_OPEN_CONNS="50").settings
    (few,) = check_files(settings, 300)
    assert few.level is Level.PROBLEM
    assert "LimitNOFILE=" in few.advice
    for enough in (65_536, resource.RLIM_INFINITY):
        (found,) = check_files(settings, enough)
        assert found.level is Level.OK


def test_memory_is_a_problem_when_too_little_and_a_warning_when_nothing_is_left(tmp_path: Path) -> None:
    settings = loaded(tmp_path, WORKERS="4", BACKFILLER_SLOTS="24").settings
    assert ("memory", Level.PROBLEM) in levels(list(check_memory(settings, 1 * GIB)))
    assert ("memory", Level.WARNING) in levels(list(check_memory(settings, 2 * GIB)))
    assert levels(list(check_memory(settings, 16 * GIB))) == [("shared memory", Level.OK), ("memory", Level.OK)]


def test_slots_that_take_half_of_the_memory_are_a_warning_of_their_own(tmp_path: Path) -> None:
    settings = loaded(tmp_path, BACKFILLER_SLOTS="1000", BACKFILLER_SLOT_BYTES=str(8 * MIB)).settings
    assert ("shared memory", Level.WARNING) in levels(list(check_memory(settings, 12 * GIB)))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 2000 * 1024), ("512000", 512_000), ("999999999999", 2000 * 1024), (None, 2000 * 1024)],
)
def test_the_limit_of_a_container_counts_where_it_is_lower(tmp_path: Path, limit: str | None, expected: int) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:        2000 kB\nMemFree: 5 kB\n")
    if limit is not None:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(limit + "\n")
    assert memory_bytes(tmp_path) == expected


@pytest.mark.parametrize(
    ("free", "level"), [(GIB // 2, Level.PROBLEM), (3 * GIB, Level.WARNING), (100 * GIB, Level.OK)]
)
def test_room_on_the_disk_is_compared_with_the_largest_repo(tmp_path: Path, free: int, level: Level) -> None:
    (found,) = check_disk(loaded(tmp_path).settings, free)
    assert found.level is level


def test_a_data_folder_that_is_not_there_yet_is_judged_by_where_it_will_be(tmp_path: Path) -> None:
    (found,) = check_disk(loaded(tmp_path / "new" / "deep").settings, 100 * GIB)
    assert found.level is Level.OK
    assert not (tmp_path / "new").exists()


def test_a_data_folder_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = check_disk(loaded(tmp_path / "file" / "below").settings, 100 * GIB)
    assert found.level is Level.PROBLEM


def test_a_port_is_free_taken_by_a_stranger_or_by_an_instance_of_ours(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        settings = loaded(tmp_path, METRICS_PORT=str(port), GRPC_PORT="0").settings
        assert levels(list(check_ports(settings))) == [("metrics port", Level.PROBLEM), ("grpc port", Level.OK)]
        ours = list(check_ports(settings, [f"127.0.0.1:{port}"]))
        assert [each.level for each in ours] == [Level.OK, Level.OK]
    assert [each.level for each in check_ports(settings)] == [Level.OK, Level.OK]


@pytest.mark.parametrize(
    ("skew", "level"),
    [(0.0, Level.OK), (-3.0, Level.OK), (20.0, Level.WARNING), (-20.0, Level.WARNING), (90.0, Level.PROBLEM), (-90.0, Level.PROBLEM)],
)  # fmt: skip
def test_a_clock_that_is_off_is_judged_by_how_far(skew: float, level: Level) -> None:
    before = 1_700_000_000.0
    assert skew_finding(before, before + 0.2, before + skew).level is level


def test_a_server_that_cuts_its_time_to_seconds_and_answers_slowly_is_not_off() -> None:
    assert skew_finding(100.9, 104.0, 100.0).text == "within 0 s of upstream's"


def test_checks_run_side_by_side_and_one_that_hangs_or_breaks_is_a_finding_of_its_own() -> None:
    release, meet = threading.Event(), threading.Barrier(2)

    def broken() -> list[Finding]:
        raise RuntimeError("no idea")

    def meets() -> list[Finding]:
        meet.wait(10)
        return [ok("meets", "met")]

    def hangs() -> list[Finding]:
        release.wait(60)
        return []

    try:
        found = doctor.side_by_side(
            [("hangs", hangs), ("broken", broken), ("one", meets), ("other", meets)],
            0.5,
            lambda name, text: [problem(name, text, "report it")],
        )
    finally:
        release.set()
    assert [answer[0].text for answer in found] == ["no answer within 0.5 s", "RuntimeError: no idea", "met", "met"]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("bad", [False, True])
def test_the_exit_code_and_the_output_say_whether_there_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool, bad: bool
) -> None:
    findings = [ok("disk", "much"), problem("plc", "away", "wait")] if bad else [ok("disk", "much")]
    monkeypatch.setattr(doctor, "examine", lambda _loaded: findings)
    code = doctor.run(argparse.Namespace(json=as_json), loaded(tmp_path))
    assert code == (Exit.CANNOT_GO_ON if bad else Exit.OK)
    out = capsys.readouterr().out
    if as_json:
        answer = json.loads(out)
        assert answer["ok"] is not bad
        assert answer["findings"][0] == {"check": "disk", "level": "ok", "text": "much", "advice": None}
    else:
        assert out.startswith("ok       disk")
        assert ("-> wait" in out) is bad
        assert out.endswith(f"{1 if bad else 0} problem{'' if bad else 's'}, 0 warnings\n")
