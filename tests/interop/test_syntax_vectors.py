"""atproto-interop-tests/syntax: every valid text is taken, every invalid one is refused.

Not read here: language tags. They stand inside records only, and the relay does not look at those.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from relay.atproto import syntax
from tests.support.data import data_lines, needs_data

pytestmark = needs_data

FOLDER = "bluesky-social/atproto-interop-tests/syntax/"
GRAMMARS: dict[str, Callable[[object], bool]] = {
    "atidentifier": syntax.is_at_identifier,
    "aturi": syntax.is_at_uri,
    "cid": syntax.is_cid_string,
    "datetime": syntax.is_datetime,
    "did": syntax.is_did,
    "handle": syntax.is_handle,
    "nsid": syntax.is_nsid,
    "recordkey": syntax.is_rkey,
    "tid": syntax.is_tid,
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_valid_texts_are_taken(name: str) -> None:
    texts = data_lines(f"{FOLDER}{name}_syntax_valid.txt")
    assert texts
    assert [text for text in texts if not GRAMMARS[name](text)] == []


@pytest.mark.parametrize("name", GRAMMARS)
def test_invalid_texts_are_refused(name: str) -> None:
    texts = data_lines(f"{FOLDER}{name}_syntax_invalid.txt")
    assert texts
    assert [text for text in texts if GRAMMARS[name](text)] == []


def test_datetimes_that_look_right_but_name_no_time_are_refused() -> None:
    texts = data_lines(f"{FOLDER}datetime_parse_invalid.txt")
    assert texts
    assert [text for text in texts if syntax.is_datetime(text)] == []
