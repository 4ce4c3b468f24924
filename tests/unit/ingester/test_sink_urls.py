"""`--sink`: what is understood, and what a mistake is told."""

from __future__ import annotations

import pytest

from relay.ingester.errors import BadSinkUrl
from relay.ingester.sinks.base import SinkUrl
from relay.ingester.sinks.choose import make_sink


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/x.db", "/var/lib/x.db"),
        ("sqlite:////var/lib/x.db", "/var/lib/x.db"),
        ("sqlite:x.db", "x.db"),
        ("sqlite:///with%20space.db", "/with space.db"),
        ("jsonl:some/folder?rotate_mb=3", "some/folder"),
        ("jsonl:/abs", "/abs"),
    ],
)
def test_paths(url: str, path: str) -> None:
    assert SinkUrl(url).path == path


@pytest.mark.parametrize(
    "url", ["postgresql://u@h/d", "postgres:///d", "sqlite:x.db", "jsonl:d", "null:", "null:?count=1"]
)
def test_every_kind_of_sink_is_made_without_touching_anything(url: str) -> None:
    make_sink(url).close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is no sink"),
        ("/var/x.db", "is no sink"),
        ("mysql://x", "no sink 'mysql'"),
        ("sqlite://x.db", "sqlite:///absolute/path or sqlite:relative/path"),
        ("sqlite:", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("jsonl:", "names no folder"),
        ("null:?cuont=1", "no option cuont"),
        ("jsonl:d?rotate_mb=0", "no number from 1"),
        ("jsonl:d?rotate_mb", "options are written"),
        ("sqlite:x.db?mode=ro", "no option mode"),
    ],
)
def test_a_mistake_is_told(url: str, message: str) -> None:
    with pytest.raises(BadSinkUrl, match=message):
        make_sink(url)


def test_a_password_in_a_url_that_is_not_understood_stays_secret() -> None:
    with pytest.raises(BadSinkUrl) as caught:
        make_sink("postgre-sql://me:hunter2@host/db")
    assert "hunter2" not in str(caught.value)
