"""The DIDs that the operator names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.discovery.targets import load_dids_file, parse_dids
from relay.errors import ConfigError

A = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
B = "did:plc:44ybard66vv44zksje25o7dz"
WEB = "did:web:alice.example.com"


def file(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "dids.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_blank_lines_comments_and_duplicates_are_skipped(tmp_path: Path) -> None:
    text = f"# people\n\n{A}\n   \n  {B}   # a friend\n{A}\r\n\t{WEB}\n#{B}\n"
    assert load_dids_file(file(tmp_path, text)) == [A, B, WEB]


def test_a_byte_order_mark_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    assert load_dids_file(file(tmp_path, b"\xef\xbb\xbf" + A.encode() + b"\r\n" + B.encode())) == [A, B]


def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path) -> None:
    path = file(tmp_path, f"{A}\n\nalice.example.com\n{B}\n")
    with pytest.raises(ConfigError) as caught:
        load_dids_file(path)
    assert str(caught.value) == f"{path}:3: not a did:plc or did:web: 'alice.example.com'"


def test_all_bad_lines_are_reported_at_once(tmp_path: Path) -> None:
    path = file(tmp_path, f"{A} {B}\n{B}\ndid:plc:SHORT\n{A}x\ndid:key:z6\n".encode() + b"\xff\xfe\n")
    with pytest.raises(ConfigError) as caught:
        load_dids_file(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{number}" for number in (1, 3, 4, 5, 6)]


def test_very_many_bad_lines_are_counted_and_not_all_shown(tmp_path: Path) -> None:
    path = file(tmp_path, "x" * 500 + "\n" + "bad\n" * 999)
    with pytest.raises(ConfigError) as caught:
        load_dids_file(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 980 more"
    assert max(map(len, lines)) < 300


@pytest.mark.parametrize("content", ["", "# nothing\n\n"])
def test_a_file_without_a_did_is_a_mistake(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match="names no DID"):
        load_dids_file(file(tmp_path, content))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.txt: cannot be read: No such file"):
        load_dids_file(tmp_path / "nowhere.txt")
    with pytest.raises(ConfigError, match="directory"):
        load_dids_file(tmp_path)


def test_named_dids_are_checked_all_at_once_and_without_duplicates() -> None:
    assert parse_dids([A, f" {WEB} ", A]) == [A, WEB]
    with pytest.raises(ConfigError) as caught:
        parse_dids(["x", A, "did:plc:y"])
    assert str(caught.value).splitlines() == [
        "--did: not a did:plc or did:web: 'x'",
        "--did: not a did:plc or did:web: 'did:plc:y'",
    ]


@given(st.lists(st.sampled_from([A, B, WEB, "", "# c", f"{A} # x"]), min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_any_mixture_of_good_lines_gives_each_did_once_in_order(lines: list[str], end: str) -> None:
    import tempfile

    expected = list(dict.fromkeys(line.split(" ")[0] for line in lines if line.startswith("did:")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d"
        path.write_text(end.join(lines), newline="")
        if expected:
            assert load_dids_file(path) == expected
        else:
            with pytest.raises(ConfigError):
                load_dids_file(path)
