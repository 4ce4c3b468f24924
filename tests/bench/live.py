"""What the verify worker costs: firehose frames in, proved commits and encoded operations out, one core, no I/O.

    python -m tests.bench.live [--quick]

Frames are real ones, repeated, where the shared data are; and made ones: repos of some thousand records, one operation each (of
which 94 % create, 3 % delete, 3 % update), a tenth of the accounts on P-256. Every figure stands beside a reference loop
(`hashlib.sha256` over the same blocks), timed in the same rounds: compare ratios, not seconds. CPU time; the least of some rounds.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cbrrr import CID, encode_dag_cbor

from relay.atproto.frames import CommitMessage, parse_frame
from relay.atproto.inversion import Change, invert
from relay.atproto.jsonform import record_to_json
from relay.atproto.keys import PublicKey, parse_multikey
from relay.atproto.limits import DEFAULT_LIMITS
from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.verify_live import verify_commit
from relay.model import RecordEncoding
from relay.tail.messages import FrameToVerify, Outcome
from relay.tail.verifier import FrameVerifier, VerifierSettings
from tests.support.data import data_root, frames_of, plain_sections
from tests.support.live import LiveCommit, Op, proof_of, rev_of
from tests.support.repos import Signer, build_tree, cid_of

CORPUS = "bluesky-social/jetstream/internal/corpus/testdata/"
NOW_US = 1_790_000_000_000_000
ALL = NsidFilter.parse([])
# Events/s on one core with the full check and JSON records (PERFORMANCE, "Targets").
MUST, GOAL = 5_000, 8_000


@dataclass(frozen=True, slots=True)
class Event:
    """A frame with all that the steps need."""

    frame: bytes
    envelope: FrameToVerify
    key: PublicKey
    message: CommitMessage
    blocks: dict[bytes, bytes]
    data: bytes
    changes: list[Change]


def event(frame: bytes, multikey: str) -> Event:
    message = parse_frame(frame)
    assert isinstance(message, CommitMessage)
    key = parse_multikey(multikey)
    proved: Any = verify_commit(message, key=key, wanted=ALL, now_us=NOW_US)
    return Event(
        frame,
        FrameToVerify(message.seq, 0, len(frame), message.did, multikey, 0),
        key,
        message,
        {cid[4:]: block for cid, block in plain_sections(message.blocks)},
        proved.data,
        [Change(op.path.encode(), op.cid, op.prev) for op in message.ops],
    )


def real_events() -> list[Event]:
    """Return the 75 contiguous frames of production; their DID documents came with them."""
    from relay.atproto.did_doc import parse_did_document
    from tests.support.data import data_json

    documents = data_json(CORPUS + "did_docs-000-074.json")
    keys = {did: parse_did_document(document, did).signing_key for did, document in documents.items()}
    events = []
    for frame in frames_of(CORPUS + "frames-000-074.bin"):
        message = parse_frame(frame)
        assert isinstance(message, CommitMessage)
        text = keys[message.did]
        assert text is not None
        events.append(event(frame, text))
    return events


def made_events(repos: int, per_repo: int) -> list[Event]:
    """Return events of made repos, whose sizes are as those of active accounts: a thousand records, up to six."""
    rng = random.Random(7)
    events: list[Event] = []
    for number in range(repos):
        signer = Signer(seed=number, p256=number % 10 == 0)
        did = "did:plc:" + "".join(rng.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(24))
        size = min(6000, int(rng.lognormvariate(6.6, 1.0)) + 3)
        records: dict[bytes, bytes] = {}
        while len(records) < size:
            path = _path(rng)
            records[path] = cid_of(path)
        for place in range(per_repo):
            commit = _one_operation(rng, records, signer, did, len(events) + 1, place)
            events.append(event(commit.frame, signer.multikey))
    return events


def _path(rng: random.Random) -> bytes:
    kind = rng.choices((b"like", b"post", b"repost"), (70, 18, 12))[0]
    return b"app.bsky.feed.%b/%b" % (kind, rev_of(-rng.randrange(1 << 45)).encode())


def _one_operation(
    rng: random.Random, before: dict[bytes, bytes], signer: Signer, did: str, seq: int, place: int
) -> LiveCommit:
    draw = rng.random()
    path = _path(rng) if draw < 0.94 else rng.choice(sorted(before))
    prev = before.get(path)
    record: bytes | None = encode_dag_cbor(
        {
            "$type": path.split(b"/")[0].decode(),
            "subject": {
                "uri": f"at://{did}/{path.decode()}",
                "cid": "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm",
            },
            "createdAt": "2026-07-04T14:38:07.517Z",
            "via": CID(cid_of(path)),
        }
    )
    if draw > 0.97:
        record = None
    after = dict(before)
    if record is None:
        del after[path]
    else:
        after[path] = cid_of(record)
    data, built = build_tree(after)
    nodes = dict(built)
    prev_data, old = build_tree(before)
    needed = proof_of(data, nodes, after, [path]) | (nodes.keys() - dict(old).keys())
    action = "delete" if record is None else "create" if prev is None else "update"
    return LiveCommit(
        signer=signer,
        ops=(Op(action=action, path=path, cid=None if record is None else cid_of(record), prev=prev),),
        nodes={cid: nodes[cid] for cid in needed},
        records={} if record is None else {cid_of(record): record},
        data=data,
        prev_data=prev_data,
        rev=rev_of(place + 1),
        since=rev_of(0),
        did=did,
        seq=seq,
    )


def verifier(encoding: RecordEncoding, *, proofs: bool = True) -> FrameVerifier:
    return FrameVerifier(
        VerifierSettings(
            encoding=encoding,
            signatures=True,
            proofs=proofs,
            max_operation_bytes=16 << 20,
            limits=DEFAULT_LIMITS,
            log_level="error",
            log_format="text",
        )
    )


def least(step: Callable[[Event], object], events: list[Event], rounds: int) -> float:
    """Return the CPU time of a step over all events, seconds for each of them, in the best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        for each in events:
            step(each)
        best = min(best, time.process_time() - began)
    return best / len(events)


def report(name: str, events: list[Event], rounds: int) -> None:
    def reference(each: Event) -> None:
        for block in each.blocks.values():
            hashlib.sha256(block).digest()

    json, raw, unproved = (
        verifier(RecordEncoding.JSON),
        verifier(RecordEncoding.DAG_CBOR),
        verifier(RecordEncoding.JSON, proofs=False),
    )
    for each in events:
        outcome = json.verify(each.frame, each.envelope, ALL, NOW_US).result.outcome
        if outcome != Outcome.COMMIT:
            raise SystemExit(f"seq {each.envelope.seq} is not proved: the benchmark would measure something else")
    blocks = sum(len(each.blocks) for each in events)
    size = sum(len(each.frame) for each in events)
    base = least(reference, events, rounds)
    print(f"{name}: {len(events)} frames of {size / len(events):,.0f} bytes, {blocks / len(events):.1f} blocks")
    print(
        f"reference loop: {blocks / len(events) / base:,.0f} sha256/s over the same blocks, {base * 1e6:.1f} us an event"
    )
    steps: list[tuple[str, Callable[[Event], object]]] = [
        ("decode the frame", lambda each: parse_frame(each.frame)),
        (
            "blocks, commit, signature",
            lambda each: verify_commit(each.message, key=each.key, wanted=ALL, now_us=NOW_US, check_proof=False),
        ),
        ("undo the operations", lambda each: invert(each.data, each.blocks, each.changes)),
        ("record to JSON", lambda each: [record_to_json(each.blocks[c.cid[4:]]) for c in each.changes if c.cid]),
        ("all, JSON", lambda each: json.verify(each.frame, each.envelope, ALL, NOW_US)),
        ("all, raw DAG-CBOR", lambda each: raw.verify(each.frame, each.envelope, ALL, NOW_US)),
        ("all but proofs, JSON", lambda each: unproved.verify(each.frame, each.envelope, ALL, NOW_US)),
    ]
    for label, step in steps:
        took = least(step, events, rounds)
        print(f"  {label:<28}{took * 1e6:>8.1f} us{1 / took:>10,.0f} events/s{took / base:>8.1f} x reference")


def main() -> None:
    parser = argparse.ArgumentParser(description="Live verification on one core.")
    parser.add_argument("--quick", action="store_true", help="fewer events and rounds")
    options = parser.parse_args()
    rounds = 8 if options.quick else 40
    gc.disable()  # as in the worker
    made = made_events(20, 3) if options.quick else made_events(60, 5)
    gc.freeze()
    print(f"targets: all, JSON: must {MUST:,}, goal {GOAL:,} events/s")
    if data_root() is not None:
        report("real frames", real_events(), rounds)
    else:
        print("real frames: no test data (RELAY_TEST_DATA)")
    report("made frames", made, rounds)


if __name__ == "__main__":
    main()
