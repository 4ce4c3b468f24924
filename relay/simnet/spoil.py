"""How a CAR is made wrong in just one way: each returns what a lying or broken PDS would send instead of the repo."""

from __future__ import annotations

from collections.abc import Iterator

from relay.simnet.block import cid_of, encode, link, tid, tid_time_us, write_car
from relay.simnet.faults import Fault, FaultKind
from relay.simnet.keys import raised_s
from relay.simnet.repo import Repo
from relay.simnet.tree import build_tree
from relay.simnet.views import Hosted, Network
from relay.simnet.world import Account, World


def spoiled_car(fault: Fault, account: Hosted, network: Network) -> bytes | None:
    """Return the wrong CAR, or None when this repo cannot go wrong in this way (no record to leave out)."""
    match fault.kind:
        case FaultKind.CUT_AT_BLOCK:
            return _cut_at_block(account.car(), fault.bytes)
        case FaultKind.OTHER_CAR:
            return _other_car(account, network)
        case _ if isinstance(account, Account) and isinstance(network, World):
            return _spoiled_repo(fault.kind, account, network)
        case _:
            return None


def _spoiled_repo(kind: FaultKind, account: Account, world: World) -> bytes | None:
    repo = account.repo
    match kind:
        case FaultKind.WRONG_DID:
            stranger = next((other.did for other in world.everyone() if other.did != repo.did), None)
            if stranger is None:
                return None
            return _with_commit(repo, *repo.signed_commit(did=stranger, data=repo.data, rev=repo.rev))
        case FaultKind.STALE_CAR:
            return stale_car(repo)
        case FaultKind.HIGH_S:
            return _with_signature(repo, high=True)
        case FaultKind.BAD_SIGNATURE:
            return _with_signature(repo, high=False)
        case FaultKind.MISSING_RECORD:
            return _without(repo, _any_record(repo))
        case FaultKind.MISSING_NODE:
            inner = [cid for cid in repo.tree.nodes if cid != repo.data]
            return _without(repo, inner[len(inner) // 2] if inner else repo.data)
        case FaultKind.MISSING_COMMIT:
            return _without(repo, repo.commit_cid)
        case FaultKind.CORRUPT_BLOCK:
            return _with_flipped_bit(repo, _any_record(repo))
        case _:
            return None


def stale_car(repo: Repo) -> bytes | None:
    """Return an export of the repo as it was before its last record: a lower rev, well signed."""
    if not repo.records:
        return None
    records = dict(repo.records)
    records.popitem()
    tree = build_tree({path: record.cid for path, record in records.items()})
    rev = tid(tid_time_us(repo.rev) - 1_000_000, 0)
    cid, block = repo.signed_commit(did=repo.did, data=tree.root, rev=rev)
    blocks = {cid: block, **tree.nodes, **{record.cid: record.block for record in records.values()}}
    return write_car(cid, blocks.items())


def sections(car: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of every section of a CAR after its header, for CARs that we know to be whole."""
    at = _skip_varint(car, 0)
    while at < len(car):
        end = _skip_varint(car, at)
        yield at, end
        at = end


def _skip_varint(data: bytes, at: int) -> int:
    """Return where the item ends whose length stands at `at`."""
    size = shift = 0
    while True:
        byte = data[at]
        at += 1
        size |= (byte & 127) << shift
        if byte < 128:
            return at + size
        shift += 7


def _cut_at_block(car: bytes, keep: int) -> bytes | None:
    """Keep the first `keep` blocks; 0: all but the last."""
    ends = [end for _, end in sections(car)]
    if not ends:
        return None
    return car[: ends[keep - 1] if 0 < keep < len(ends) else ends[-2] if len(ends) > 1 else _skip_varint(car, 0)]


def _other_car(account: Hosted, network: Network) -> bytes | None:
    other = next((a for a in network.everyone() if a.did != account.did and not a.status), None)
    return None if other is None else other.car()


def _any_record(repo: Repo) -> bytes | None:
    return max((record.cid for record in repo.records.values()), default=None)


def _without(repo: Repo, missing: bytes | None) -> bytes | None:
    if missing is None:
        return None
    return write_car(repo.commit_cid, [(cid, block) for cid, block in repo.blocks() if cid != missing])


def _with_flipped_bit(repo: Repo, target: bytes | None) -> bytes | None:
    if target is None:
        return None
    pairs = [(cid, block[:-1] + bytes((block[-1] ^ 1,)) if cid == target else block) for cid, block in repo.blocks()]
    return write_car(repo.commit_cid, pairs)


def _with_commit(repo: Repo, commit_cid: bytes, commit_block: bytes) -> bytes:
    rest = [(cid, block) for cid, block in repo.blocks() if cid != repo.commit_cid]
    return write_car(commit_cid, [(commit_cid, commit_block), *rest])


def _with_signature(repo: Repo, *, high: bool) -> bytes:
    commit = {"did": repo.did, "version": 3, "data": link(repo.data), "rev": repo.rev, "prev": None}
    signature = repo.key.sign(encode(commit))
    wrong = raised_s(signature, repo.key.curve) if high else repo.key.sign(b"another message")
    block = encode({**commit, "sig": wrong})
    return _with_commit(repo, cid_of(block), block)
