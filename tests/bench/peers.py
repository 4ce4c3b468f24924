"""Other Python libraries on the same CARs: atmst, atproto and arroba from PyPI, in a virtual environment of their own.

    python -m tests.bench.peers

They get an environment of their own because beside the product they would change its libraries. The first run installs them;
without network it says so and ends. Every row says what the library checks: none of them checks all that the relay does.
Records/s of CPU time, least of some rounds; the ratio compares with verify_repo, which does what they do, and checks more.
"""

from __future__ import annotations

import gc
import json
import subprocess
import textwrap
import venv
from collections.abc import Callable
from pathlib import Path

from relay.atproto.nsid_filter import NsidFilter
from relay.atproto.verify import verify_repo
from relay.model import RecordEncoding
from tests.bench import mkcars
from tests.bench.worker_stage import Loaded, measure, stage

ENVIRONMENT = mkcars.FOLDER.parent / "peers-venv"
PACKAGES = ("atmst==0.0.6", "atproto==0.0.73", "arroba==3.1")
SETS = {"r1k": 20, "r10k": 3}  # name: rounds of ours

# Runs under the other interpreter: takes CAR paths and record counts, prints [[library, checks, set, seconds or error], ...].
_SCRIPT = textwrap.dedent(
    """
    import io, json, sys, time

    def least(run, rounds):
        best = None
        for _ in range(rounds):
            began = time.process_time()
            run()
            took = time.process_time() - began
            best = took if best is None else min(best, took)
        return best

    def atmst(path, records):
        from atmst.cartool import open_car
        from atmst.mst.node_store import NodeStore
        from atmst.mst.node_walker import NodeWalker

        def run():
            store, commit = open_car(path)
            count = 0
            for _, cid in NodeWalker(NodeStore(store), commit["data"]).iter_kv():
                store.get_block(bytes(cid))
                count += 1
            store.file.close()
            assert count == records, count
        return run

    def atproto(path, records):
        from atproto import CAR
        data = open(path, "rb").read()

        def run():
            CAR.from_bytes(data)
        return run

    def atproto_walk(path, records):
        from libipld import decode_car
        data = open(path, "rb").read()

        def run():
            header, blocks = decode_car(data)
            count = 0

            def walk(node):
                nonlocal count
                if node["l"] is not None:
                    walk(blocks[node["l"]])
                for entry in node["e"]:
                    blocks[entry["v"]]
                    count += 1
                    if entry["t"] is not None:
                        walk(blocks[entry["t"]])
            walk(blocks[blocks[header["roots"][0]]["data"]])
            assert count == records, count
        return run

    def arroba(path, records):
        from arroba.mst import MST, Leaf
        from arroba.storage import Block, MemoryStorage
        from carbox import read_car
        data = open(path, "rb").read()

        def run():
            roots, blocks = read_car(data)
            storage = MemoryStorage()
            for block in blocks:
                storage.blocks[block.cid] = Block(cid=block.cid, encoded=block.data)
            commit = storage.blocks[roots[0]].decoded
            count = sum(isinstance(entry, Leaf) for entry in MST.load(storage=storage, cid=commit["data"]).walk())
            assert count == records, count
        return run

    rows = []
    for name, path, records in json.loads(sys.argv[1]):
        for library, checks, make, rounds in (
            ("atmst: store and walk", "hashes, layers", atmst, 5),
            ("atproto: CAR.from_bytes, no walk", "none", atproto, 10),
            ("libipld of atproto: decode_car, walk by hand", "none", atproto_walk, 10),
            ("arroba: read_car, MST.walk", "hashes", arroba, 1),
        ):
            try:
                rows.append([library, checks, name, least(make(path, records), rounds)])
            except Exception as exc:
                rows.append([library, checks, name, f"{type(exc).__name__}: {exc}"[:80]])
    print(json.dumps(rows))
    """
)


def python() -> Path | None:
    """Return the interpreter of the peers' environment, made now if it is not there; None when it cannot be."""
    found = ENVIRONMENT / "bin" / "python"
    check = [str(found), "-c", "import atmst, atproto, arroba"]
    if found.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return found
    print(f"installing {', '.join(PACKAGES)} into {ENVIRONMENT}", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    installed = subprocess.run(
        [found, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if installed.returncode:
        print(f"peers: skipped, pip could not install them: {installed.stderr.strip()[-300:]}")
        return None
    return found


def verify(loaded: list[Loaded]) -> Callable[[], None]:
    """Return what compares with the peers: reading, hashes and the tree with all its rules; no signature, no encoding."""

    def run() -> None:
        for one in loaded:
            found = verify_repo(one.car, did=one.repo.did, key=None, wanted=NsidFilter.parse(()))
            assert found.wanted == one.repo.records

    return run


def main() -> None:
    interpreter = python()
    if interpreter is None:
        return
    gc.disable()  # as a worker does
    jobs = []
    ours: dict[str, float] = {}
    for name, rounds in SETS.items():
        (repo,) = mkcars.load(name)
        loaded = [Loaded(repo, repo.car())]
        took = measure({"verify": verify(loaded), "raw": stage(loaded, RecordEncoding.DAG_CBOR)}, rounds)
        ours[name] = took["verify"]
        jobs.append((name, str(repo.path), repo.records))
        _print(
            "the relay: verify_repo, no signature",
            "every rule",
            name,
            f"{repo.records / took['verify']:>10,.0f} records/s",
        )
        _print(
            "the relay: worker stage, wire bytes",
            "all, signature",
            name,
            f"{repo.records / took['raw']:>10,.0f} records/s",
        )
    done = subprocess.run([interpreter, "-c", _SCRIPT, json.dumps(jobs)], capture_output=True, text=True)
    if done.returncode:
        print(f"peers: failed: {done.stderr.strip()[-300:]}")
        return
    counts = {name: records for name, _, records in jobs}
    for library, checks, name, took_s in json.loads(done.stdout.splitlines()[-1]):
        if isinstance(took_s, str):
            _print(library, checks, name, took_s)
            continue
        ratio = took_s / ours[name]
        _print(
            library,
            checks,
            name,
            f"{counts[name] / took_s:>10,.0f} records/s, verify_repo is {ratio:.1f} times as fast",
        )


def _print(library: str, checks: str, name: str, text: str) -> None:
    print(f"{library:<46}{checks:<16}{name:<6}{text}", flush=True)


if __name__ == "__main__":
    main()
