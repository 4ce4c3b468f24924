"""What can go wrong in an ingester.

IngesterError
├── BadSinkUrl      the operator's `--sink` makes no sense
├── BadFault        the operator's `--fault` makes no sense
├── ListenFailed    the address is taken, or not ours
├── BadBatch        a message that is no batch: the stream is aborted
├── SinkAway        the sink cannot store now (away, full, locked): RETRY, and try again later
└── SinkFailed      the sink will not work without somebody's help (wrong schema, no permission)

A malformed operation is no exception: it is a `Refusal`, answered with REJECT.
"""

from __future__ import annotations


class IngesterError(Exception):
    """Base of everything that the ingester raises on purpose; the message is for the operator."""


class BadSinkUrl(IngesterError):
    """`--sink` names no known kind of sink, or an option that it does not have."""


class BadFault(IngesterError):
    """`--fault` cannot be understood."""


class ListenFailed(IngesterError):
    """Nothing can listen on the address."""


class BadBatch(IngesterError):
    """The bytes are no OperationRequest, or its batch_id is not the next one of the stream."""


class SinkAway(IngesterError):
    """Nothing of the batches was stored (or it is not known): the relay shall send them again."""


class SinkFailed(IngesterError):
    """The sink cannot be used as it is."""
