"""Log lines: one event each, secrets masked, repeats limited, foreign text harmless."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.observe.log import LEVELS, configure, get_logger
from relay.observe.repeats import Repeats

log = get_logger("relay.test")


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    """Leave the logging of the test session as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)
    logging.getLogger("relay").setLevel(logging.NOTSET)


def _lines(log_format: str, work: Callable[[], None], level: str = "info") -> list[str]:
    out = io.StringIO()
    configure(level, log_format, out)
    work()
    return out.getvalue().splitlines()


def test_a_text_line_has_time_level_event_and_fields() -> None:
    (line,) = _lines(
        "text", lambda: log.info("repo_synced", did="did:plc:abc", records=1204, took_s=0.8300001, new=True, rev=None)
    )
    assert re.fullmatch(
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ info    repo_synced did=did:plc:abc records=1204 took_s=0.83 new=true rev=null",
        line,
    )


def test_a_json_line_has_the_same_with_their_types() -> None:
    (line,) = _lines("json", lambda: log.warning("host_down", host="h", wait_s=1.5, tries=3, parts=["a", "b"]))
    values = json.loads(line)
    assert re.fullmatch(r"20\d\d-.*Z", values.pop("at"))
    assert values == {
        "level": "warning",
        "event": "host_down",
        "host": "h",
        "wait_s": 1.5,
        "tries": 3,
        "parts": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"), ("", '""'), ("two words", '"two words"'), ('a "b"', '"a \\"b\\""'), ("a=b", '"a=b"'),
        ("line\nbreak", '"line\\nbreak"'), ("\x1b[31mred", '"\\u001b[31mred"'), ("é", '"é"'), ("\u202e", '"\\u202e"'),
        (b"\x01\xff", "01ff"), (["a", "b c"], '"a,b c"'), (1e-9, "1e-09"), (2**80, str(2**80)), (float("nan"), "nan"),
        ("\ud800", "\\ud800"), ("x" * 3000, "x" * 2000 + "..."),
    ],
)  # fmt: skip
def test_a_value_is_quoted_when_it_could_be_misread(value: object, shown: str) -> None:
    (line,) = _lines("text", lambda: log.info("e", value=value))
    assert line.partition(" value=")[2] == shown


@given(st.text(), st.sampled_from(["text", "json"]))
def test_no_text_makes_a_second_line_or_moves_the_cursor(text: str, log_format: str) -> None:
    lines = _lines(log_format, lambda: log.info("e", value=text, error=f"failed: {text}"))
    assert len(lines) == 1
    assert lines[0].isprintable()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_passwords_are_masked_wherever_they_stand(log_format: str) -> None:
    def work() -> None:
        log.info("e", dsn="postgresql://u:hunter2@h/d", token="hunter2", error="x password=hunter2 y")
        try:
            raise ValueError("postgresql://u:hunter2@h/d is down")
        except ValueError:
            log.error("e", exc_info=True)

    text = "\n".join(_lines(log_format, work))
    assert "hunter2" not in text
    assert "u:***@h/d" in text


def _fail(message: str) -> None:
    try:
        raise ValueError(message)
    except ValueError as exc:
        log.error("thread_died", error=str(exc), exc_info=True)


def test_a_traceback_is_indented_in_text_and_a_field_in_json() -> None:
    first, *rest = _lines("text", lambda: _fail("two\nlines"))
    assert " thread_died " in first
    assert rest
    assert all(line.startswith("    ") for line in rest)
    (line,) = _lines("json", lambda: _fail("two\nlines"))
    assert "Traceback" in json.loads(line)["traceback"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_hides_what_is_below_it(level: str) -> None:
    def work() -> None:
        log.debug("debug")
        log.info("info")
        log.warning("warning")
        log.error("error")

    names = list(LEVELS)
    assert [line.split()[2] for line in _lines("text", work, level)] == names[names.index(level) :]


def test_other_libraries_speak_from_warning_on() -> None:
    def work() -> None:
        logging.getLogger("urllib3").info("chatter")
        logging.getLogger("urllib3").warning("pool is %s", "full")

    assert [line.split(" ", 1)[1] for line in _lines("text", work)] == [
        'warning log logger=urllib3 message="pool is full"'
    ]
    assert len(_lines("text", work, "debug")) == 2


def test_configuring_again_replaces_the_first_stream() -> None:
    first = io.StringIO()
    configure("info", "text", first)
    lines = _lines("text", lambda: log.info("e"))
    assert (len(lines), first.getvalue()) == (1, "")


def test_fields_of_a_child_stand_in_every_line() -> None:
    out = io.StringIO()
    configure("info", "text", out, fields={"process": "worker/1"})
    log.info("e", n=1)
    assert out.getvalue().endswith(" e process=worker/1 n=1\n")


def test_repeats_of_one_source_are_counted_and_other_sources_pass() -> None:
    now = [0.0]
    out = io.StringIO()
    configure("info", "text", out, repeats=Repeats(burst=2, window_s=10), monotonic=lambda: now[0])
    for number in range(5):
        log.warning("host_down", host="a", did=f"did:plc:{number}")
    log.warning("host_down", host="b")
    now[0] = 10.0
    log.warning("host_down", host="a", did="did:plc:9")
    events = [line.split(" ", 2)[2].strip() for line in out.getvalue().splitlines()]
    assert events == [
        "host_down host=a did=did:plc:0",
        "host_down host=a did=did:plc:1",
        "host_down host=b",
        "host_down host=a did=did:plc:9 suppressed=3",
    ]


def test_what_was_suppressed_is_told_even_if_the_event_never_comes_again() -> None:
    now = [0.0]
    out = io.StringIO()
    configure("info", "text", out, repeats=Repeats(burst=1, window_s=10), monotonic=lambda: now[0])
    for _ in range(4):
        log.info("e", host="a")
    now[0] = 25.0
    log.info("other")
    assert 'repeats_suppressed of="e a" suppressed=3' in out.getvalue()


def test_what_was_suppressed_is_told_at_the_end() -> None:
    out = io.StringIO()
    configure("info", "text", out, repeats=Repeats(burst=1))
    for _ in range(4):
        log.info("e")
    configure("info", "text", io.StringIO())
    assert "repeats_suppressed of=e suppressed=3" in out.getvalue()


def test_nothing_is_suppressed_at_debug() -> None:
    def work() -> None:
        for _ in range(100):
            log.debug("decision")

    assert len(_lines("text", work, "debug")) == 100


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 30)), max_size=200),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_every_line_is_either_let_through_or_told_as_suppressed(
    steps: list[tuple[str, float]], burst: int, most_keys: int
) -> None:
    repeats = Repeats(burst=burst, window_s=10, most_keys=most_keys)
    now, passed, told = 0.0, 0, 0
    for key, wait in steps:
        now += wait
        told += sum(count for _, count in repeats.sweep(now))
        passes, suppressed = repeats.admit((key,), now)
        passed += passes
        told += suppressed
        assert len(repeats._windows) <= most_keys
    told += sum(count for _, count in repeats.sweep(float("inf")))
    assert passed + told == len(steps)


def test_a_line_is_written_with_one_call() -> None:
    """Lines of several processes that share stderr do not mix."""
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    configure("info", "text", Stream())
    log.info("e", text="x" * 100)
    assert len(writes) == 1
    assert writes[0].endswith("\n")


def test_a_stream_that_fails_does_not_take_the_caller_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging, "raiseExceptions", True)
    configure("info", "text", Full())
    log.info("e")
    assert "No space left on device" in capsys.readouterr().err
    assert sys.stderr is not None
