"""What to enumerate, and how it travels to the process that does it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.atproto.nsid_filter import NsidFilter
from relay.config.schema import Settings
from relay.model import RepoState
from relay.supervisor.books import missing_targets
from relay.supervisor.covering import filter_text, insufficient_for, parse_covers
from relay.supervisor.discovery import Sources, Targets
from relay.supervisor.service import _sources
from relay.supervisor.session import SERVICES, command_of, owner_text

NETWORK = Targets(everything=True)


def settings(mode: str = "all", host: str = "wss://relay.example", collections: tuple[str, ...] = ()) -> Settings:
    base = Settings()
    return replace(
        base,
        firehose=replace(base.firehose, relay_host=host),
        discovery=replace(base.discovery, mode=mode, collections=collections),
    )


@pytest.mark.parametrize(
    "targets",
    [
        NETWORK,
        Targets(collections=("app.bsky.feed.post", "app.bsky.feed.like")),
        Targets(hosts=("https://a.example", "https://b.example")),
    ],
    ids=["network", "collections", "hosts"],
)
def test_sources_come_out_of_the_database_as_they_went_in(targets: Targets) -> None:
    sources = targets.sources(settings())
    assert Sources.from_json(sources.to_json()) == sources


def test_only_a_whole_network_forgives_hosts_that_are_away() -> None:
    failed = [("https://pds.example", "away")]
    some = {RepoState.SYNCED: 3}
    assert NETWORK.sources(settings()).network == "https://relay.example"
    assert missing_targets(failed, upstream="https://relay.example", counts=some) is None
    assert "pds.example: away" in (missing_targets(failed, upstream="https://relay.example", counts={}) or "")
    assert Targets(hosts=("https://pds.example",)).sources(settings()).network is None
    assert "pds.example: away" in (missing_targets(failed, upstream=None, counts=some) or "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (settings(), Sources(origin="https://relay.example")),
        (settings("tracked"), None),
        (settings(host=""), None),
        (
            settings("collection", collections=("a.b.c",)),
            Sources(origin="https://relay.example", collections=("a.b.c",)),
        ),
        (settings("collection", host="", collections=("a.b.c",)), None),
        (settings("collection"), None),
    ],
    ids=["all", "tracked", "no firehose", "collection", "collection, nobody to ask", "no collection"],
)
def test_what_a_service_enumerates_follows_the_mode_of_discovery(given: Settings, expected: Sources | None) -> None:
    assert _sources(given) == expected


def test_another_collection_is_another_enumeration() -> None:
    one, two = (settings("collection", collections=each) for each in (("a.b.c",), ("a.b.c", "a.b.d")))
    assert _sources(one) != _sources(two)
    first, second = _sources(one), _sources(two)
    assert first is not None
    assert second is not None
    assert first.param != second.param


def test_a_filter_is_stored_as_it_is_read() -> None:
    for patterns in ((), ("app.bsky.",), ("app.bsky.", "com.example.thing")):
        assert parse_covers(filter_text(NsidFilter.parse(patterns))) == NsidFilter.parse(patterns)


def test_which_stored_filters_are_too_narrow() -> None:
    insufficient = insufficient_for(NsidFilter.parse(["app.bsky."]))
    assert sorted(insufficient(["", "app.bsky.", "app.", "app.bsky.feed.", None, "-"])) == ["-", "app.bsky.feed."]
    assert sorted(insufficient_for(NsidFilter(()))(["", "app.bsky."])) == ["app.bsky."]


def test_a_holder_says_which_command_it_is() -> None:
    for command in (*SERVICES, "backfill"):
        assert command_of(owner_text(command)) == command
    assert command_of(None) == ""
