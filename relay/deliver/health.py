"""Is an ingester there? (pure)"""

from __future__ import annotations

import enum

SETTLE_S = 2.0  # a stream that has lived this long with nothing to acknowledge clears earlier doubts


class Away(enum.StrEnum):
    """Why an ingester is not healthy: the word in status, logs and metrics."""

    STARTING = "starting"  # no attempt has ended yet
    UNREACHABLE = "unreachable"  # no connection, or no answer to HealthCheck
    CREDENTIALS = "credentials"  # the TLS files of ours cannot be read or used
    NOT_SERVING = "not_serving"  # it says so
    STREAM_BROKEN = "stream_broken"  # gRPC ended it with an error
    STREAM_CLOSED = "stream_closed"  # the ingester ended it
    ACK_TIMEOUT = "ack_timeout"  # batches in flight, and no acknowledgement for delivery.ack_timeout_sec
    RETRY = "retry"  # it answered RETRY
    PROTOCOL_ERROR = "protocol_error"  # an answer that cannot be right
    FAILED_OVER = (
        "failed_over"  # away for delivery.failover_after_sec: others have its DIDs, until it may have them back
    )
    LEAVING = "leaving"  # it is removed: nothing more is written to it, and what was written is awaited
    STOPPED = "stopped"  # we are stopping


class Health:
    """Away is: no stream, NOT_SERVING, or a stream that follows one which ended without a single acknowledgement, or for want of one.

    The last is what "nothing but RETRY" and "takes everything and acknowledges nothing" look like from here: a new stream of
    such an ingester proves nothing, an acknowledgement does, and so does a quiet life of SETTLE_S with nothing in flight.
    """

    def __init__(self) -> None:
        self._closed: Away | None = Away.STARTING
        self._doubt: Away | None = None
        self._opened_at = 0.0
        self._is_serving = True

    @property
    def reason(self) -> str:
        """Empty when healthy."""
        if self._closed is not None:
            return self._closed.value
        if self._doubt is not None:
            return self._doubt.value
        return "" if self._is_serving else Away.NOT_SERVING.value

    @property
    def is_healthy(self) -> bool:
        return self._closed is None and self._doubt is None and self._is_serving

    def opened(self, now: float) -> None:
        """A stream is open."""
        self._closed = None
        self._opened_at = now

    def closed(self, why: Away, *, progressed: bool) -> None:
        """The stream ended; `progressed`: it had acknowledged something."""
        self._closed = why
        self._doubt = why if why is Away.ACK_TIMEOUT or not progressed else None

    def absent(self, why: Away) -> None:
        """There was no stream to end: no connection could be made."""
        self._closed = why
        if why is Away.NOT_SERVING:
            self._is_serving = False

    def acknowledged(self) -> None:
        """A batch was acknowledged: whoever stores is there, whatever HealthCheck said before."""
        self._doubt = None
        self._is_serving = True

    def told(self, *, is_serving: bool) -> None:
        """HealthCheck was answered."""
        self._is_serving = is_serving

    def settle(self, now: float, *, in_flight: bool) -> None:
        """Call now and then."""
        if self._closed is None and self._doubt is not None and not in_flight and now - self._opened_at >= SETTLE_S:
            self._doubt = None
