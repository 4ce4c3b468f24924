"""An ingester that misbehaves on purpose, the same way for the same seed: for testing your relay.

What it stores stays correct: only REJECT, RETRY, acknowledgements and streams go wrong.

    reject-rate=P        refuse each operation with this probability, always the same ones
    reject-match=REGEX   refuse those where it is found in "CREATE did collection/rkey"
    retry-for=SECONDS    answer RETRY, from the start
    retry-every=N        answer each N-th batch with RETRY
    ack-delay=SECONDS    hold each response back
    close-every=N        cut each stream at its N-th batch: stored, not acknowledged
    ack-twice=1          say each acknowledgement twice
    ack-stale=1          say an older acknowledgement again after a newer one
    never-ack=1          store, and say nothing
    not-serving=1        say NOT_SERVING in HealthCheck
    seed=N
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.ingester.errors import BadFault
from relay.pb import ingester_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """What goes wrong. Rates are 0 to 1, times seconds; 0 and None: never."""

    seed: int = 0
    reject_rate: float = 0.0
    reject_match: re.Pattern[str] | None = None
    retry_for_s: float = 0.0
    retry_every: int = 0
    ack_delay_s: float = 0.0
    close_every: int = 0
    ack_twice: bool = False
    ack_stale: bool = False
    never_ack: bool = False
    not_serving: bool = False

    @property
    def refuses(self) -> bool:
        return self.reject_rate > 0 or self.reject_match is not None

    def refuse(self, op: pb.Operation) -> str | None:
        """Return why the operation is refused, or None. Decided by what it says, so that a copy is refused again."""
        path = f"{op.collection}/{op.rkey}"
        kind = pb.OperationType.Name(op.type) if op.type in pb.OperationType.values() else str(op.type)
        if self.reject_match is not None and self.reject_match.search(f"{kind} {op.did} {path}"):
            return "fault: reject-match"
        if self.reject_rate > 0:
            told = f"{self.seed} {kind} {op.did} {path} {op.rev} {op.cid} {op.time_us}".encode()
            share = int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()) / 2**64
            if share < self.reject_rate:
                return "fault: reject-rate"
        return None


def parse_faults(specs: Sequence[str]) -> FaultPlan:
    """Return the plan of `name=value` texts. Raises BadFault."""
    values: dict[str, object] = {}
    for spec in specs:
        name, _, text = spec.partition("=")
        reader = _READERS.get(name)
        if reader is None:
            raise BadFault(f"--fault {spec}: no fault {name!r}; there are {', '.join(_READERS)}")
        field, read = reader
        try:
            values[field] = read(text)
        except (ValueError, re.error) as exc:
            raise BadFault(f"--fault {spec}: {exc}") from exc
    return FaultPlan(**values)  # type: ignore[arg-type]  # each reader returns the type of its field


def _read_rate(text: str) -> float:
    rate = float(text)
    if not 0 <= rate <= 1:
        raise ValueError("a rate is from 0 to 1")
    return rate


def _read_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 86_400:
        raise ValueError("seconds from 0 to 86400")
    return seconds


def _read_every(text: str) -> int:
    every = int(text)
    if every < 2:
        raise ValueError("a number from 2: with 1 nothing would ever get through")
    return every


def _read_switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


_READERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "seed": ("seed", int),
    "reject-rate": ("reject_rate", _read_rate),
    "reject-match": ("reject_match", re.compile),
    "retry-for": ("retry_for_s", _read_seconds),
    "retry-every": ("retry_every", _read_every),
    "ack-delay": ("ack_delay_s", _read_seconds),
    "close-every": ("close_every", _read_every),
    "ack-twice": ("ack_twice", _read_switch),
    "ack-stale": ("ack_stale", _read_switch),
    "never-ack": ("never_ack", _read_switch),
    "not-serving": ("not_serving", _read_switch),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent instead of one response: these, in order, and then the stream is cut or not."""

    responses: tuple[pb.OperationResponse, ...]
    cut: bool


class StreamFaults:
    """What the plan makes of the responses of one stream. Reproducible: seeded by plan and number of the stream."""

    def __init__(self, plan: FaultPlan, stream_number: int) -> None:
        self._plan = plan
        self._rng = random.Random(f"{plan.seed} {stream_number}")

    def answer(self, response: pb.OperationResponse) -> Answer:
        plan = self._plan
        cut = plan.close_every > 0 and response.batch_id >= plan.close_every
        if response.errors:
            return Answer(responses=() if plan.never_ack else (response,), cut=cut)
        if cut:
            # Acknowledge what came before, else nothing would ever get through; the rest is stored and stays untold.
            response = pb.OperationResponse(batch_id=plan.close_every - 1)
        if plan.never_ack:
            return Answer(responses=(), cut=cut)
        responses = [response]
        if plan.ack_twice:
            responses.append(response)
        if plan.ack_stale and response.batch_id > 1:
            responses.append(pb.OperationResponse(batch_id=self._rng.randrange(1, response.batch_id)))
        return Answer(responses=tuple(responses), cut=cut)
