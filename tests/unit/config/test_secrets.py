"""No password in anything that is printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.secrets import mask_dsn, scrub


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:hunter2@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgres://u@h/d", "postgres://u@h/d"),
        ("postgresql://h/d?user=u&password=hunter2&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://u:hunter2@x@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hunter2/x@h/d", "***"),
        ("host=h password=hunter2 dbname=d", "host=h password=*** dbname=d"),
        ("host=h password = 'hunter2 \\' x' dbname=d", "host=h password = *** dbname=d"),
        ("host=h sslpassword=hunter2", "host=h sslpassword=***"),
        ("hunter2", "***"),
        ("", ""),
    ],
)
def test_a_database_address_is_shown_without_its_password(dsn: str, shown: str) -> None:
    assert mask_dsn(dsn) == shown


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=3, max_size=30))
def test_no_password_is_shown_whatever_it_is_made_of(password: str) -> None:
    secret = f"Zq{password}qZ"
    assert secret not in mask_dsn(f"postgresql://user:{secret}@host/base")
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    assert quoted not in mask_dsn(f"host=h password='{quoted}' dbname=d")


def test_a_text_without_secrets_is_left_alone() -> None:
    text = "fetched https://pds.example:8443/xrpc/com.atproto.sync.getRepo?did=did:plc:abc from host=pds.example"
    assert scrub(text) == text


def test_secrets_inside_of_an_error_text_are_hidden() -> None:
    assert "hunter2" not in scrub(
        'connection to "postgresql://u:hunter2@h/d" failed: token=hunter2, Authorization: Bearer hunter2'
    )
