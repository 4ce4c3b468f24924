"""One stream of batches, as far as it can be known without gRPC: what may come next, what was stored, what is still to be said.

Shared by three threads: the stream's reader (takes batches in), the writer (stores them) and gRPC's own (takes responses out).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from relay.ingester.errors import BadBatch
from relay.ingester.operations import Refusal
from relay.pb import ingester_pb2 as pb


class Stream:
    """Responses come out in the order of the batches. Bounded: without errors only the newest acknowledgement waits.

    A response with errors waits for itself; there are never more of these than batches that the relay sent.
    """

    def __init__(self, number: int, peer: str = "") -> None:
        self.number = number
        self.peer = peer
        self._condition = threading.Condition()  # guards all below
        self._responses: deque[pb.OperationResponse] = deque()
        self._received = 0
        self._answered = 0
        self._reading = True
        self._broken = False
        self._ended = False

    def receive(self, batch_id: int) -> bool:
        """Count a batch in. False: this stream takes nothing more. Raises BadBatch unless it is the next one."""
        with self._condition:
            if not self._reading or self._broken:
                return False
            expected = self._received + 1
            if batch_id != expected:
                raise BadBatch(
                    f"batch_id {batch_id} is not the next one of this stream: expected {expected}"
                    " (1, 2, 3... from the start of each stream)"
                )
            self._received = batch_id
            return True

    def not_queued(self) -> None:
        """The batch received last will not be stored after all: the ingester stops. Nothing more is taken."""
        with self._condition:
            self._received -= 1
            self._reading = False
            self._condition.notify_all()

    @property
    def is_broken(self) -> bool:
        """Nothing more of this stream may be stored: it was answered with RETRY, or it is gone."""
        return self._broken

    def stored(self, batch_id: int, refusals: Sequence[Refusal] = ()) -> None:
        """Every batch up to and with this one is stored, but for the refused operations of this one."""
        response = pb.OperationResponse(batch_id=batch_id)
        for refusal in refusals:
            response.errors.add(index=refusal.index, code=pb.OperationError.REJECT, message=refusal.message)
        with self._condition:
            if self._broken:
                return
            self._answered = batch_id
            if not refusals and self._responses and not self._responses[-1].errors:
                self._responses[-1] = response
            else:
                self._responses.append(response)
            self._condition.notify_all()

    def retry(self, batch_id: int, message: str, index: int = 0) -> None:
        """Nothing of this batch is stored, and nothing more of this stream will be."""
        response = pb.OperationResponse(batch_id=batch_id)
        response.errors.add(index=index, code=pb.OperationError.RETRY, message=message)
        with self._condition:
            if not self._broken:
                self._broken = True
                self._responses.append(response)
                self._condition.notify_all()

    def read_to_end(self) -> None:
        """Nothing more is taken (the relay has written its last batch, or the ingester stops): ends when all are answered."""
        with self._condition:
            self._reading = False
            self._condition.notify_all()

    def end(self) -> None:
        """End now: the stream is gone, or the server stops. Nothing more of it is stored."""
        with self._condition:
            self._broken = True
            self._ended = True
            self._condition.notify_all()

    def wait_for_end(self, seconds: float) -> bool:
        """Wait, but no longer than the stream lives. True: it has ended."""
        with self._condition:
            return self._condition.wait_for(lambda: self._ended, seconds)

    def next_response(self) -> pb.OperationResponse | None:
        """Wait for the next response; None: the stream is over. Ended by `end`, by RETRY, or by the relay's last batch."""
        with self._condition:
            while not self._responses:
                if self._ended or self._broken:
                    return None
                if not self._reading and self._answered == self._received:
                    return None
                # Woken by every change above, and by gRPC's callback through `end` when the relay goes away.
                self._condition.wait()
            return self._responses.popleft()
