"""Every message comes out of a pipe as it went in."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.backfill import messages as m

NUMBERS = st.integers(-(2**63), 2**63 - 1)
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: NUMBERS,
    str: st.text(),
    bool: st.booleans(),
    bytes: st.binary(),
    float: st.floats(allow_nan=False),
    type(None): st.none(),
    list[int]: st.lists(NUMBERS),
    list[str]: st.lists(st.text()),
    dict[str, int]: st.dictionaries(st.text(), NUMBERS),
    list[Any]: st.lists(NUMBERS | st.text() | st.none() | st.lists(st.text())),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    parts = getattr(hint, "__args__", ()) if hint not in OF_TYPE else ()
    return OF_TYPE[hint] if hint in OF_TYPE else st.one_of([OF_TYPE[part] for part in parts])


@pytest.mark.parametrize("kind", m._KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_message_comes_out_of_a_pipe_as_it_went_in(kind: type[Any], data: st.DataObject) -> None:
    sent = kind(*(data.draw(values(hint)) for hint in get_type_hints(kind).values()))
    wire = msgpack.unpackb(msgpack.packb(m.to_wire(sent), use_bin_type=True), raw=False, use_list=True)
    got = m.from_wire(wire)
    assert type(got) is kind
    assert got == sent


def test_every_kind_has_a_tag_of_its_own() -> None:
    assert len(set(m._KINDS)) == len(m._KINDS) == len(m._TAG)
