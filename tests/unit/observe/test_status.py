"""The status snapshot: `status --json` is a contract."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Incident, RepoState
from relay.observe.status import IncidentView, IngesterView, Phase, StatusSnapshot, rfc3339

CONTRACT = {
    "instance", "phase", "repos", "records_delivered", "bytes_fetched", "rates", "firehose", "ingesters", "incidents",
}  # fmt: skip


def _any_of(declared: Any) -> st.SearchStrategy[Any]:
    """Build a strategy for one of the types that snapshots are made of."""
    origin = typing.get_origin(declared)
    if origin in (types.UnionType, typing.Union):
        inner = next(each for each in typing.get_args(declared) if each is not type(None))
        return st.none() | _any_of(inner)
    if origin is tuple:
        return st.lists(_any_of(typing.get_args(declared)[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=5), st.integers(0, 2**53), max_size=3)
    if dataclasses.is_dataclass(declared):
        hints = typing.get_type_hints(declared)
        return st.fixed_dictionaries({name: _any_of(hint) for name, hint in hints.items()}).map(
            lambda values: typing.cast(Any, declared)(**values)
        )
    if declared is Phase:
        return st.sampled_from(list(Phase))
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(st.characters(codec="utf-8"), max_size=8),
        int: st.integers(0, 2**53),
        float: st.floats(0, 1e12),
        bool: st.booleans(),
    }
    return plain[declared]


@given(_any_of(StatusSnapshot))
def test_a_snapshot_survives_json(snapshot: StatusSnapshot) -> None:
    read = StatusSnapshot.from_json(snapshot.to_json())
    assert read == dataclasses.replace(snapshot, repos=snapshot.state_counts())


def test_the_keys_of_the_contract_are_always_there_and_null_when_not_known() -> None:
    values = json.loads(StatusSnapshot(instance="a", phase=Phase.STARTING).to_json())
    assert set(values) >= CONTRACT
    assert set(values["repos"]) == {state.value for state in RepoState}
    assert values["records_delivered"] is None
    assert values["bytes_fetched"] is None
    assert values["rates"] == {"repos_per_s": None, "records_per_s": None, "bytes_per_s": None}
    firehose = values["firehose"]
    assert {name: firehose[name] for name in ("seq", "cursor", "lag_s", "connected")} == {
        "seq": None, "cursor": None, "lag_s": None, "connected": False,
    }  # fmt: skip
    assert values["ingesters"] == []
    assert values["incidents"] == []


def test_ingesters_and_incidents_have_the_keys_of_the_contract() -> None:
    snapshot = StatusSnapshot(
        instance="a",
        phase=Phase.RUNNING,
        ingesters=(IngesterView(address="h:1", healthy=True),),
        incidents=(IncidentView.of(Incident(kind="hole", text="t", at=0.25)),),
    )
    values = json.loads(snapshot.to_json())
    assert set(values["ingesters"][0]) >= {
        "address", "healthy", "in_flight_batches", "queued_operations", "oldest_unacked_s",
    }  # fmt: skip
    assert values["incidents"] == [{"at": "1970-01-01T00:00:00.250Z", "kind": "hole", "text": "t", "closed_at": None}]


def test_the_phases_of_the_contract() -> None:
    assert [phase.value for phase in Phase] == [
        "starting", "running", "waiting", "paused", "draining", "standby", "stopped",
    ]  # fmt: skip


def test_another_version_may_know_more_or_fewer_keys() -> None:
    values = json.loads(StatusSnapshot(instance="a", phase=Phase.RUNNING).to_json())
    values["from_the_future"] = 1
    values["firehose"]["also_new"] = "x"
    del values["workers"]
    assert StatusSnapshot.from_json(json.dumps(values).encode()) == StatusSnapshot(
        instance="a", phase=Phase.RUNNING, repos={state.value: 0 for state in RepoState}
    )


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '{"instance": "a"}', '{"instance": 1, "phase": "running"}', '{"instance": "a", "phase": "?"}',
        '{"instance": "a", "phase": "running", "workers": {}}', '{"instance": "a", "phase": "running", "repos": {"a": "b"}}',
        '{"instance": "a", "phase": "running", "ingesters": [{"address": "x"}]}', '{"instance": "a", "phase": ["running"]}',
    ],
)  # fmt: skip
def test_what_is_no_snapshot_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        StatusSnapshot.from_json(text.encode())


def test_times_are_rfc_3339_in_utc() -> None:
    assert rfc3339(1_700_000_000.0) == "2023-11-14T22:13:20.000Z"
