"""The rules of an ingester once more, one operation after the other, in the plainest way: what the fast ones are compared with.

And histories: runs of operations as a network at its worst could deliver them (late, twice, interrupted, out of order).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from relay.pb import ingester_pb2 as pb

# did, collection, rkey -> cid, rev, time_us, JSON, DAG-CBOR
Rows = dict[tuple[str, str, str], tuple[str, str, int, str | None, bytes | None]]
# did -> rev, active, status, status_time_us, handle, pds, identity_time_us
Accounts = dict[str, tuple[str, bool, str, int | None, str, str, int | None]]


@dataclass
class NaiveAccount:
    rev: str = ""
    active: bool = True
    status: str = ""
    status_time_us: int | None = None
    handle: str = ""
    pds: str = ""
    identity_time_us: int | None = None


@dataclass
class NaiveIngester:
    """DESIGN's rules, read aloud."""

    rows: Rows = field(default_factory=dict)
    known: dict[str, NaiveAccount] = field(default_factory=dict)

    def apply(self, op: pb.Operation) -> None:
        if self.is_malformed(op):
            return
        account = self.known.setdefault(op.did, NaiveAccount())
        if op.type == pb.ACCOUNT:
            if account.status_time_us is None or op.time_us >= account.status_time_us:
                account.active, account.status = op.account.active, op.account.status
                account.status_time_us = op.time_us
                if op.account.status == "deleted" and not op.account.active:
                    self.rows = {key: row for key, row in self.rows.items() if key[0] != op.did}
            return
        if op.type == pb.IDENTITY:
            if account.identity_time_us is None or op.time_us >= account.identity_time_us:
                account.handle, account.pds = op.identity.handle, op.identity.pds
                account.identity_time_us = op.time_us
            return
        if op.rev < account.rev:
            return  # a late copy
        account.rev = op.rev
        if op.type == pb.REPO_BEGIN:
            if op.HasField("identity") and account.identity_time_us is None:
                account.handle, account.pds = op.identity.handle, op.identity.pds
            return
        if account.status == "deleted" and not account.active:
            return
        key = (op.did, op.collection, op.rkey)
        if op.type in (pb.CREATE, pb.UPDATE):
            self.rows[key] = (op.cid, op.rev, op.time_us, op.record_json or None, op.record_cbor or None)
        elif op.type == pb.DELETE:
            self.rows.pop(key, None)
        elif op.type == pb.REPO_END:
            for held in list(self.rows):
                if held[0] == op.did and self.rows[held][1] < op.rev and self.is_covered(op, held[1]):
                    del self.rows[held]

    @staticmethod
    def is_covered(op: pb.Operation, collection: str) -> bool:
        if not op.nsid_filter:
            return True
        for pattern in op.nsid_filter:
            prefix = pattern.rstrip("*")
            if pattern == collection or (prefix.endswith(".") and collection.startswith(prefix)):
                return True
        return False

    @staticmethod
    def is_malformed(op: pb.Operation) -> bool:
        if not op.did or op.type == pb.OPERATION_TYPE_UNSPECIFIED:
            return True
        if op.type in (pb.CREATE, pb.UPDATE, pb.DELETE) and not (op.rkey and op.collection and op.rev):
            return True
        return op.type in (pb.CREATE, pb.UPDATE) and not (op.record_json or op.record_cbor)

    def accounts(self) -> Accounts:
        return {
            did: (a.rev, a.active, a.status, a.status_time_us, a.handle, a.pds, a.identity_time_us)
            for did, a in self.known.items()
        }


DIDS = ("did:plc:aaa", "did:plc:bbb", "did:web:c.example")
# In the order of the tree, which is not that of (collection, rkey): "." is lower than "/".
PATHS = ("a.b.c.d/k1", "a.b.c/k1", "a.b.c/k2", "a.b.cc/k1", "a.x.y/k1", "b.b.c/k~9")
REVS = ("3ka", "3kb", "3kc", "3kd")
FILTERS = ((), ("a.b.",), ("a.b.*", "a.x.y"), ("a.b.c",), ("z.z.z",))

_dids = st.sampled_from(DIDS)
_revs = st.sampled_from(REVS)
_times = st.integers(1, 5)
_records = st.sampled_from(
    [
        pb.Operation(record_json='{"t":"\\u0000 \\\\ \\n é 🦋"}'),
        pb.Operation(record_json="{}"),
        pb.Operation(record_cbor=b"\xa0"),
    ]
)


@st.composite
def record_operations(draw: st.DrawFn) -> list[pb.Operation]:
    collection, _, rkey = draw(st.sampled_from(PATHS)).partition("/")
    kind = draw(st.sampled_from([pb.CREATE, pb.UPDATE, pb.DELETE]))
    op = pb.Operation(type=kind, did=draw(_dids), collection=collection, rkey=rkey, rev=draw(_revs), source=pb.FIREHOSE)
    if kind != pb.DELETE:
        op.cid, op.time_us = f"bafy{draw(st.integers(0, 99))}", draw(_times)
        op.MergeFrom(draw(_records))
    return [op]


@st.composite
def snapshots(draw: st.DrawFn) -> list[pb.Operation]:
    """A snapshot, whole or interrupted at either side, some of it perhaps twice."""
    did, rev, patterns = draw(_dids), draw(_revs), draw(st.sampled_from(FILTERS))
    run = [pb.Operation(type=pb.REPO_BEGIN, did=did, rev=rev, source=pb.BACKFILL, nsid_filter=patterns)]
    if draw(st.booleans()):
        run[0].identity.handle, run[0].identity.pds = f"h{draw(st.integers(0, 9))}.example", "https://pds.example"
    for path in sorted(draw(st.sets(st.sampled_from(PATHS)))):
        collection, _, rkey = path.partition("/")
        op = pb.Operation(type=pb.CREATE, did=did, collection=collection, rkey=rkey, rev=rev, source=pb.BACKFILL)
        op.cid, op.time_us = f"bafy{draw(st.integers(0, 99))}", draw(_times)
        op.MergeFrom(draw(_records))
        run.append(op)
    run.append(pb.Operation(type=pb.REPO_END, did=did, rev=rev, source=pb.BACKFILL, nsid_filter=patterns))
    if draw(st.booleans()):
        start = draw(st.integers(0, len(run) - 1))
        stop = draw(st.integers(start, len(run)))
        again = draw(st.integers(0, start))
        run = run[:stop] + run[again:] if draw(st.booleans()) else run[start:stop]
    return run


@st.composite
def account_operations(draw: st.DrawFn) -> list[pb.Operation]:
    active, status = draw(st.sampled_from([(True, ""), (False, "deleted"), (False, "takendown")]))
    op = pb.Operation(type=pb.ACCOUNT, did=draw(_dids), time_us=draw(_times))
    op.account.active, op.account.status = active, status
    return [op]


@st.composite
def identity_operations(draw: st.DrawFn) -> list[pb.Operation]:
    op = pb.Operation(type=pb.IDENTITY, did=draw(_dids), time_us=draw(_times))
    op.identity.handle, op.identity.pds = f"i{draw(st.integers(0, 9))}.example", "https://other.example"
    return [op]


def malformed_operations() -> st.SearchStrategy[list[pb.Operation]]:
    return st.sampled_from(
        [
            [pb.Operation(type=pb.CREATE, collection="a.b.c", rkey="k1", rev="3kd", cid="bafy", record_json="{}")],
            [pb.Operation(did=DIDS[0], collection="a.b.c", rkey="k1", rev="3kd")],
            [pb.Operation(type=pb.CREATE, did=DIDS[0], collection="a.b.c", rev="3kd", cid="bafy", record_json="{}")],
            [pb.Operation(type=pb.CREATE, did=DIDS[0], collection="a.b.c", rkey="k1", rev="3kd", cid="bafy")],
        ]
    )


def histories() -> st.SearchStrategy[list[pb.Operation]]:
    """Runs of up to about 60 operations of three DIDs."""
    part = st.one_of(
        snapshots(),
        record_operations(),
        snapshots(),
        account_operations(),
        identity_operations(),
        malformed_operations(),
    )
    return st.lists(part, max_size=14).map(lambda parts: [op for run in parts for op in run])


def groupings() -> st.SearchStrategy[list[int]]:
    """How a history is cut: sizes of batches, 0 meaning that a transaction ends here; used round and round."""
    return st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


def cut(history: list[pb.Operation], grouping: list[int]) -> list[list[list[pb.Operation]]]:
    """Return transactions of batches of operations."""
    groups: list[list[list[pb.Operation]]] = [[]]
    place = turn = 0
    while place < len(history):
        size = grouping[turn % len(grouping)]
        turn += 1
        if size == 0:
            groups.append([])
        else:
            groups[-1].append(history[place : place + size])
            place += size
    return groups
