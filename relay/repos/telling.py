"""What an account became, as the operation that tells the ingester."""

from __future__ import annotations

from relay.atproto.frames import SEQ_MAX
from relay.model import Source
from relay.pb.encode import encode_account, encode_identity
from relay.repos import live_events as e


def account_operation(did: str, telling: e.OfferAccount) -> bytes:
    """Return the ACCOUNT operation, encoded."""
    return encode_account(
        did=did,
        active=telling.active,
        status=telling.status,
        time_us=telling.time_us,
        source=source_of(telling),
        seq=telling.seq & SEQ_MAX,
    )


def identity_operation(did: str, telling: e.OfferIdentity) -> bytes:
    """Return the IDENTITY operation, encoded."""
    return encode_identity(
        did=did,
        handle=telling.handle,
        pds=telling.pds,
        time_us=telling.time_us,
        source=source_of(telling),
        seq=telling.seq & SEQ_MAX,
    )


def source_of(telling: e.OfferAccount | e.OfferIdentity) -> Source:
    """What was learnt elsewhere than on the stream, or is told again, has no seq."""
    return Source.FIREHOSE if telling.seq else Source.BACKFILL
