"""DIDs that wait for their documents: each asked for once, at the directory's rate, and none forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.backfill.messages import Resolve, Resolved
from relay.backfill.resolving import ResolveQueue
from relay.net.bucket import TokenBucket

PLC = "did:plc:" + "a" * 24
WEB = "did:web:a.example"


class Children:
    def __init__(self) -> None:
        self.sent: list[Resolve] = []
        self.seat: int | None = 0

    def send(self, message: Resolve) -> int | None:
        if self.seat is not None:
            self.sent.append(message)
        return self.seat


def made(*, in_flight: int = 4, burst: float = 100.0) -> tuple[ResolveQueue, Children]:
    children = Children()
    return ResolveQueue(children.send, TokenBucket(rate_per_s=1.0, burst=burst, now=0.0), in_flight=in_flight), children


def answer(did: str, retry_after_s: float | None = None) -> Resolved:
    return Resolved(did, "z", "https://h", None, 0.0, None, None, None, 0.1, retry_after_s)


def test_a_did_is_asked_for_once_and_everybody_hears_the_answer() -> None:
    queue, children = made()
    heard: list[Resolved] = []
    queue.ask(PLC, force=False, then=heard.append)
    queue.ask(PLC, force=True, then=heard.append)
    queue.pump(0.0)
    assert children.sent == [Resolve(PLC, True)]
    queue.answered(answer(PLC), 0.0)
    assert heard == [answer(PLC)] * 2
    assert len(queue) == queue.in_flight == 0


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    queue, children = made()
    queue.answered(answer(PLC), 0.0)
    queue.ask(PLC, force=False, then=lambda _: None)
    queue.answered(answer(PLC), 0.0)  # it has not been asked for yet
    queue.pump(0.0)
    assert (len(children.sent), queue.in_flight) == (1, 1)


def test_the_directorys_retry_after_silences_it_and_nobody_else() -> None:
    queue, children = made()
    queue.ask(PLC, force=False, then=lambda _: None)
    queue.pump(0.0)
    queue.answered(answer(PLC, retry_after_s=30.0), 10.0)
    queue.ask(WEB, force=False, then=lambda _: None)
    queue.ask(PLC, force=False, then=lambda _: None)
    assert queue.pump(10.0) == 40.0
    assert [message.did for message in children.sent] == [PLC, WEB]
    assert queue.pump(40.0) is None
    assert [message.did for message in children.sent] == [PLC, WEB, PLC]


def test_somebodys_own_host_cannot_silence_the_directory() -> None:
    queue, children = made()
    queue.ask(WEB, force=False, then=lambda _: None)
    queue.pump(0.0)
    queue.answered(answer(WEB, retry_after_s=86_400.0), 0.0)
    queue.ask(PLC, force=False, then=lambda _: None)
    queue.pump(0.0)
    assert children.sent[-1].did == PLC


def test_the_rate_is_the_directorys() -> None:
    queue, children = made(burst=1.0)
    for number in range(3):
        queue.ask(f"{PLC[:-1]}{number + 2}", force=False, then=lambda _: None)
    assert queue.pump(0.0) == 1.0
    assert len(children.sent) == 1
    assert queue.pump(1.0) == 2.0
    assert len(children.sent) == 2


@given(data=st.data())
def test_every_question_is_answered_once_whatever_dies(data: st.DataObject) -> None:
    queue, children = made(in_flight=3)
    dids = [f"did:plc:{letter * 24}" for letter in "abcdefg"]
    heard: list[str] = []
    asked = data.draw(st.lists(st.sampled_from(dids), max_size=12))
    for did in asked:
        queue.ask(did, force=False, then=lambda got: heard.append(got.did))
    for _ in range(data.draw(st.integers(0, 20))):
        children.seat = data.draw(st.sampled_from([None, 0, 1]))
        queue.pump(0.0)
        assert queue.in_flight <= 3
        dies, answers = data.draw(st.tuples(st.booleans(), st.booleans()))
        if dies:
            queue.child_died(data.draw(st.sampled_from([0, 1])))
        elif children.sent and answers:
            queue.answered(answer(data.draw(st.sampled_from(children.sent)).did), 0.0)
    children.seat = 0
    while len(queue):
        queue.pump(0.0)
        for message in list(children.sent):
            queue.answered(answer(message.did), 0.0)
    assert sorted(heard) == sorted(asked)
    assert queue.in_flight == 0
