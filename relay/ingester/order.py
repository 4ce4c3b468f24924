"""Does the relay keep the order that it promised? (pure; `--check-order`, for tests of a relay)

Judged within one stream: a new one may begin at any unacknowledged operation, so nothing is known of a DID before its first
operation on the stream. Commits are in the order of their revs, and so of their seqs; an ACCOUNT or IDENTITY has a time, which does not
fall. Between the two there is no order: a commit that waits for its repo's snapshot comes after an IDENTITY that was told at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from relay.pb import ingester_pb2 as pb

# A DID costs about 300 bytes; those that were silent longest are forgotten beyond this.
MAX_DIDS = 1_000_000

_RECORD_TYPES = (pb.CREATE, pb.UPDATE, pb.DELETE)
_SNAPSHOT_SOURCES = (pb.BACKFILL, pb.RESYNC)


@dataclass(slots=True)
class _Repo:
    rev: str = ""
    seq: int = 0
    status_time_us: int | None = None
    identity_time_us: int | None = None
    snapshot_rev: str | None = None  # of the snapshot that is running
    knows_snapshot: bool = False  # False: a snapshot may have begun before this stream


class OrderChecker:
    """Watches the operations of one stream; `violations` counts, `first` explains the first one."""

    def __init__(self, max_dids: int = MAX_DIDS) -> None:
        self.violations = 0
        self.first = ""
        self._max_dids = max_dids
        self._repos: OrderedDict[str, _Repo] = OrderedDict()

    def observe(self, operations: Iterable[pb.Operation | None]) -> None:
        for op in operations:
            if op is not None and (problem := self._look_at(op)):
                self.violations += 1
                self.first = self.first or f"{pb.OperationType.Name(op.type)} of {op.did}: {problem}"

    def _look_at(self, op: pb.Operation) -> str:
        repo = self._repos.get(op.did)
        if repo is None:
            repo = self._repos[op.did] = _Repo()
            if len(self._repos) > self._max_dids:
                self._repos.popitem(last=False)
        else:
            self._repos.move_to_end(op.did)
        return _time_problem(repo, op) or _rev_problem(repo, op)


def _time_problem(repo: _Repo, op: pb.Operation) -> str:
    if op.seq and op.type in _RECORD_TYPES:
        if op.seq < repo.seq:
            return f"seq {op.seq} after {repo.seq}"
        repo.seq = op.seq
    if op.type == pb.ACCOUNT:
        last = repo.status_time_us
        repo.status_time_us = op.time_us
        if not op.account.active:
            repo.snapshot_rev = None  # it ends a snapshot that runs
        if last is not None and op.time_us < last:
            return f"time_us {op.time_us} after {last}"
    if op.type == pb.IDENTITY:
        last = repo.identity_time_us
        repo.identity_time_us = op.time_us
        if last is not None and op.time_us < last:
            return f"time_us {op.time_us} after {last}"
    return ""


def _rev_problem(repo: _Repo, op: pb.Operation) -> str:
    kind = op.type
    if kind not in _RECORD_TYPES and kind not in (pb.REPO_BEGIN, pb.REPO_END):
        return ""
    last, repo.rev = repo.rev, max(repo.rev, op.rev)
    snapshot, knew = repo.snapshot_rev, repo.knows_snapshot
    if kind == pb.REPO_BEGIN:
        repo.snapshot_rev, repo.knows_snapshot = op.rev, True
    elif kind == pb.REPO_END:
        repo.snapshot_rev, repo.knows_snapshot = None, True
    elif op.source == pb.FIREHOSE:
        repo.knows_snapshot = True  # a live operation says that none is running
    if op.rev < last:
        return f"rev {op.rev} after {last}"
    if kind in _RECORD_TYPES and op.source == pb.FIREHOSE:
        return f"live operation inside of the snapshot {snapshot}" if snapshot is not None else ""
    if kind == pb.REPO_BEGIN or not knew:
        return ""
    if snapshot is None:
        return "outside of a snapshot" if kind == pb.REPO_END or op.source in _SNAPSHOT_SOURCES else ""
    return f"rev {op.rev} inside of the snapshot {snapshot}" if op.rev != snapshot else ""
