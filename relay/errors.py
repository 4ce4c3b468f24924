"""What can go wrong outside the protocol itself, as one tree.

RelayError (.reason, .blame)
├── ConfigError        the operator's configuration or command line
├── StoreError         PostgreSQL: away, refused, full; StoreFenced: another instance holds the lease
├── IdentityError      a DID document cannot be had, or is of no use
├── FetchError         a host did not give us a repo (or a listing)
├── StreamError        the firehose
└── DeliveryError      an ingester

`reason` is a short word from a closed set: metric label, `reason` in `status` and in the repo's row. `blame` decides the
retry. Errors of the protocol's own (bad CAR, bad signature) are `relay.atproto.errors.AtprotoError`: they have a `reason` too.
"""

from __future__ import annotations

import enum


class Blame(enum.StrEnum):
    """Who pays for a failure: only REPO costs the repo an attempt; OPERATOR quarantines at once."""

    REPO = "repo"
    HOST = "host"
    INGESTER = "ingester"
    US = "us"
    OPERATOR = "operator"


class RelayError(Exception):
    """Base of everything that this program raises on purpose outside `relay.atproto`."""

    reason: str = "error"
    blame: Blame = Blame.US


class ConfigError(RelayError):
    """A mistake in the configuration or on the command line; the message names key, value and place."""

    reason, blame = "config", Blame.OPERATOR


class StoreError(RelayError):
    """PostgreSQL cannot do what we asked."""

    reason = "store"


class StoreAway(StoreError):
    """The database does not answer (restart, network, crash): waiting and trying again helps."""

    reason = "store_away"


class StoreFenced(StoreError):
    """Another instance holds the lease now: this one must write nothing more."""

    reason = "fenced"


class IdentityError(RelayError):
    """A DID could not be resolved, or its document has no usable key or PDS."""

    reason, blame = "identity", Blame.REPO


class FetchError(RelayError):
    """A host did not give us what we asked for."""

    reason, blame = "fetch", Blame.HOST


class StreamError(RelayError):
    """The firehose connection cannot go on."""

    reason, blame = "stream", Blame.HOST


class DeliveryError(RelayError):
    """An ingester did not take what we sent."""

    reason, blame = "delivery", Blame.INGESTER
