"""Table `identity`: DID documents as they were resolved last, and the lookups that failed since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from relay.model import Identity
from relay.store.statements import Cursor, load_statements
from relay.store.text import printable

_SQL = load_statements("identities")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFailure:
    """A lookup that gave nothing. `failed_at`: wall seconds."""

    did: str
    failed_at: float
    error: str


def load_many(cur: Cursor, dids: Sequence[str]) -> dict[str, Identity]:
    """Return what is known of `dids`, however old; those never resolved are missing."""
    cur.execute(_SQL["load_many"], {"dids": list(dids)})
    return {
        did: Identity(did=did, signing_key=signing_key, pds=pds, handle=handle, resolved_at=resolved_at)
        for did, signing_key, pds, handle, resolved_at in cur.fetchall()
    }


def load_failures(cur: Cursor, dids: Sequence[str]) -> dict[str, IdentityFailure]:
    """Return the lookups of `dids` that failed and were not followed by one that succeeded."""
    cur.execute(_SQL["load_failures"], {"dids": list(dids)})
    return {did: IdentityFailure(did=did, failed_at=at, error=error or "") for did, at, error in cur.fetchall()}


def upsert_many(cur: Cursor, identities: Sequence[Identity]) -> None:
    """Remember what was resolved; an older resolution never replaces a newer one. Of several of one DID the newest counts."""
    newest: dict[str, Identity] = {}
    for identity in identities:
        known = newest.get(identity.did)
        if known is None or identity.resolved_at >= known.resolved_at:
            newest[identity.did] = identity
    rows = [
        {
            "did": did,
            "signing_key": newest[did].signing_key,
            "pds": newest[did].pds,
            "handle": newest[did].handle,
            "resolved_at": newest[did].resolved_at,
        }
        for did in sorted(newest)
    ]
    if rows:
        cur.execute(_SQL["upsert_many"], {"rows": orjson.dumps(rows).decode()})


def mark_failed(cur: Cursor, failures: Sequence[IdentityFailure]) -> None:
    """Remember lookups that gave nothing; what was known before stays."""
    last = {failure.did: failure for failure in failures}
    rows = [
        {"did": did, "failed_at": last[did].failed_at, "error": printable(last[did].error, 500)} for did in sorted(last)
    ]
    if rows:
        cur.execute(_SQL["mark_failed"], {"rows": orjson.dumps(rows).decode()})
