"""What an ingester can do wrong.

DeliveryError
└── IngesterProtocolError    it broke the contract of ingester.v1: the stream is of no use any more
"""

from __future__ import annotations

from relay.errors import DeliveryError


class IngesterProtocolError(DeliveryError):
    """An answer that cannot be right: a batch never sent, an index outside of its batch, an acknowledgement that falls.

    Nothing of that answer takes effect; the stream is reset and everything unacknowledged is sent again.
    """

    reason = "protocol_error"
