"""An ingester that stands before another one: passes everything on, and judges the order of every operation that it sees.

Written from the contract alone, so it is no judge in its own cause: `relay.ingester` behind it stores, this one remembers. Order is
judged within one stream; nothing is known of a DID before its first operation on the stream.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from relay.pb import ingester_pb2 as pb

_SERVICE = "ingester.v1.IngesterService"
_THREADS = 24
_REMEMBERED = 200  # operations of a DID
_SHOWN = 12  # ... before a violation
_RECORDS = (pb.CREATE, pb.UPDATE, pb.DELETE)
_WHEN_AWAY_MS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One operation as it passed."""

    stream: int
    type: int
    source: int
    rev: str
    seq: int
    time_us: int
    path: str

    def __str__(self) -> str:
        name, source = pb.OperationType.Name(self.type), pb.Source.Name(self.source)
        return f"#{self.stream} {name:10} {source:8} rev {self.rev or '-':13} seq {self.seq:<7} time {self.time_us} {self.path}"


@dataclass(slots=True)
class _Repo:
    """What one stream told of a DID so far."""

    rev: str = ""
    seq: int = 0
    is_live: bool = False  # the operation that set `rev` came from the stream
    told: dict[int, int] | None = None  # type (ACCOUNT, IDENTITY) -> time_us
    running: str | None = None  # rev of the snapshot that has begun
    created: int = 0  # ... and its CREATEs
    has_begun: bool = False  # a REPO_BEGIN was seen, so `created` is all of them
    may_run: bool = True  # a snapshot may have begun before this stream


class StreamJudge:
    """Watches the operations of one stream (pure). `watch` returns what is wrong with an operation, or an empty text."""

    def __init__(self) -> None:
        self._repos: defaultdict[str, _Repo] = defaultdict(_Repo)

    def watch(self, op: pb.Operation) -> str:
        repo = self._repos[op.did]
        if op.type in (pb.ACCOUNT, pb.IDENTITY):
            return self._notice(repo, op)
        problem = self._revs(repo, op)
        if op.type == pb.REPO_BEGIN:
            problem = problem or _unlike_snapshot(op)
            repo.running, repo.created, repo.has_begun, repo.may_run = op.rev, 0, True, False
        elif op.type == pb.REPO_END:
            problem = problem or self._end(repo, op)
            repo.running, repo.may_run = None, False
        elif op.source == pb.FIREHOSE:
            if repo.running is not None:
                problem = problem or f"a live operation inside of the snapshot {repo.running}"
            repo.may_run = False
        else:
            problem = problem or _of_snapshot(repo, op)
            repo.created += 1
        repo.rev, repo.is_live = max(repo.rev, op.rev), op.source == pb.FIREHOSE
        return problem

    @staticmethod
    def _notice(repo: _Repo, op: pb.Operation) -> str:
        """ACCOUNT and IDENTITY: times do not fall. An ACCOUNT that is not active ends the snapshot that runs."""
        if repo.told is None:
            repo.told = {}
        last, repo.told[op.type] = repo.told.get(op.type), op.time_us
        if op.type == pb.ACCOUNT and not op.account.active:
            repo.running = None
        return f"time {op.time_us} after {last}" if last is not None and op.time_us < last else ""

    @staticmethod
    def _revs(repo: _Repo, op: pb.Operation) -> str:
        if not op.rev:
            return "no rev"
        if op.rev < repo.rev:
            return f"rev {op.rev} after {repo.rev}"
        if op.source == pb.FIREHOSE and op.type in _RECORDS:
            last, repo.seq = repo.seq, op.seq
            if not op.seq:
                return "a live operation without a seq"
            if last and op.seq < last:
                return f"seq {op.seq} after {last}"
            if op.seq != last and repo.rev == op.rev:
                return f"rev {op.rev} is told a second time, as seq {op.seq}"
        return ""

    @staticmethod
    def _end(repo: _Repo, op: pb.Operation) -> str:
        if problem := _of_snapshot(repo, op):
            return problem
        if repo.has_begun and op.record_count != repo.created:
            return f"REPO_END tells of {op.record_count} records, and {repo.created} came"
        return ""


def _unlike_snapshot(op: pb.Operation) -> str:
    return "" if op.source in (pb.BACKFILL, pb.RESYNC) else "a snapshot that begins as a live operation"


def _of_snapshot(repo: _Repo, op: pb.Operation) -> str:
    """Judge what belongs between a REPO_BEGIN and its REPO_END, or is that."""
    if problem := _unlike_snapshot(op):
        return problem
    if op.type not in (pb.CREATE, pb.REPO_END):
        return "a snapshot creates, and nothing else"
    if op.seq:
        return f"a seq ({op.seq}) in a snapshot"
    if repo.running is None:
        return "" if repo.may_run else "outside of a snapshot"
    return "" if op.rev == repo.running else f"inside of the snapshot {repo.running}"


class Ledger:
    """What was seen at least once, by all witnesses that share it; what is seen another time is `again`. About 100 bytes each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._seen: set[int] = set()
        self.again = 0

    def note(self, op: pb.Operation) -> None:
        of_notice = (op.time_us, op.account.status) if op.type in (pb.ACCOUNT, pb.IDENTITY) else ()
        key = hash((op.type, op.did, op.collection, op.rkey, op.rev, op.cid, *of_notice))
        with self._lock:
            if key in self._seen:
                self.again += 1
            self._seen.add(key)

    @property
    def operations(self) -> int:
        """How many different ones."""
        with self._lock:
            return len(self._seen)


class Witness:
    """A gRPC server before the ingester at `target`. A context manager. While the ingester is away, so is this one.

    `violations` are all of them, in words; `history` tells what came of one DID; `counts` counts operations by type and source.
    """

    def __init__(self, target: str, ledger: Ledger | None = None) -> None:
        self.ledger = ledger or Ledger()
        self.violations: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.streams = 0
        self._lock = threading.Lock()  # guards all of the above and below
        self._history: defaultdict[str, deque[Seen]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._target = target
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="witness")
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", _WHEN_AWAY_MS),
            ("grpc.min_reconnect_backoff_ms", _WHEN_AWAY_MS),
            ("grpc.max_reconnect_backoff_ms", _WHEN_AWAY_MS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
            ("grpc.http2.max_ping_strikes", 0),
        ]
        # Bytes pass as they are: without serializers, which the stubs ask for.
        channel: Any = grpc.insecure_channel(target, options=options)
        self._channel = channel
        self._stream = channel.stream_stream(f"/{_SERVICE}/StreamOperations")
        self._health = channel.unary_unary(f"/{_SERVICE}/HealthCheck")
        handlers = {
            "StreamOperations": grpc.stream_stream_rpc_method_handler(self._pass_stream),
            "HealthCheck": grpc.unary_unary_rpc_method_handler(self._pass_health),
        }
        self._server = grpc.server(
            self._pool, handlers=[grpc.method_handlers_generic_handler(_SERVICE, handlers)], options=options
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Witness:
        self._server.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.stop(0.5).wait()
        self._channel.close()
        self._pool.shutdown(wait=True)

    def history(self, did: str) -> list[str]:
        """Return the last operations of a DID, oldest first, over all streams."""
        with self._lock:
            return [str(seen) for seen in self._history.get(did, ())]

    def operations(self) -> int:
        with self._lock:
            return sum(self.counts.values())

    def figures(self) -> str:
        """Say what was seen, in words; for one that shares its ledger with nobody."""
        return f"{self.ledger.operations:,} delivered, {self.ledger.again:,} redelivered, {len(self.violations)} misordered"

    def assert_in_order(self) -> None:
        with self._lock:
            assert not self.violations, "\n".join([f"{len(self.violations)} violations", *self.violations[:10]])

    # In gRPC's threads

    def _pass_stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        with self._lock:
            self.streams += 1
            number = self.streams
        judge = StreamJudge()
        call: Any = self._stream(self._watched(requests, judge, number), metadata=_metadata(context))
        if not context.add_callback(call.cancel):
            call.cancel()
        try:
            yield from call
        except grpc.RpcError as exc:
            context.abort(_code(exc), f"the ingester: {exc}")

    def _watched(self, requests: Iterator[bytes], judge: StreamJudge, number: int) -> Iterator[bytes]:
        # Ends as an iterator does when the relay's side breaks: gRPC asks for no more then.
        with contextlib.suppress(grpc.RpcError):
            for data in requests:
                self._watch(pb.OperationRequest.FromString(data), judge, number)
                yield data

    def _watch(self, request: pb.OperationRequest, judge: StreamJudge, number: int) -> None:
        with self._lock:
            for op in request.operations:
                seen = Seen(
                    stream=number,
                    type=op.type,
                    source=op.source,
                    rev=op.rev,
                    seq=op.seq,
                    time_us=op.time_us,
                    path=f"{op.collection}/{op.rkey}" if op.collection else op.account.status,
                )
                past = self._history[op.did]
                past.append(seen)
                self.counts[pb.OperationType.Name(op.type), pb.Source.Name(op.source)] += 1
                self.ledger.note(op)
                if problem := judge.watch(op):
                    lines = [f"  {each}" for each in list(past)[-_SHOWN:]]
                    self.violations.append("\n".join([f"{op.did}: {problem}", *lines]))

    def _pass_health(self, request: bytes, context: Any) -> bytes:
        try:
            answer: bytes = self._health(request, timeout=2.0)
        except grpc.RpcError as exc:
            context.abort(_code(exc), f"the ingester: {exc}")
        return answer


def _metadata(context: Any) -> tuple[tuple[str, Any], ...]:
    mine = ("user-agent", "te", "content-type")
    return tuple((key, value) for key, value in context.invocation_metadata() if key not in mine and key[0] != ":")


def _code(exc: grpc.RpcError) -> grpc.StatusCode:
    code: Any = getattr(exc, "code", None)
    found = code() if code is not None else None
    return (
        found if isinstance(found, grpc.StatusCode) and found is not grpc.StatusCode.OK else grpc.StatusCode.UNAVAILABLE
    )
