"""One DID document, fetched and read."""

from __future__ import annotations

from collections.abc import Callable

from relay.atproto.did_doc import parse_did_document
from relay.atproto.errors import AtprotoError
from relay.model import Identity
from relay.net.errors import BadDocument
from relay.runtime.clock import Clock


class DocumentLookup:
    """Callable as the resolver wants it: `lookup(did) -> Identity`, through `fetch(did) -> raw document`."""

    def __init__(self, fetch: Callable[[str], bytes], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock

    def __call__(self, did: str) -> Identity:
        """Return the identity as of now; key, PDS and handle may each be missing, which is the caller's to judge.

        Raises what `fetch` raises, and BadDocument for one that is not this DID's document.
        """
        body = self._fetch(did)
        try:
            document = parse_did_document(body, did)
        except AtprotoError as exc:
            raise BadDocument(f"{did}: {exc}", did=did) from exc
        return Identity(
            did=did,
            signing_key=document.signing_key,
            pds=document.pds,
            handle=document.handle,
            resolved_at=self._clock.now(),
        )
