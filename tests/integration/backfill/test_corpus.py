"""Real repositories of the wild, through the command line into an ingester: exactly the records of `expected.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from relay.simnet.corpus import Corpus
from relay.simnet.oracle import compare_digests, report
from tests.integration.backfill.scene import Scene
from tests.support.data import expected, needs_data

pytestmark = needs_data

# What each CAR that must be refused is refused for. Every one that is not named here must end synced.
REFUSED = {
    "fakermaker.repo.car": "old_commit_version",
    "paul_staging.repo.car": "old_commit_version",
    "divy.repo": "old_commit_version",
    "repo_slice.car": "old_commit_version",
    "attie.car": "missing_block",
    "carv1-basic.car": "invalid_cbor",
    "fixtures.car": "invalid_car",
    "carv2-basic.car": "invalid_car",
}


def _corpus(scene: Scene) -> Corpus:
    assert isinstance(scene.network.network, Corpus)
    return scene.network.network


def _dids_file(scene: Scene) -> str:
    path = scene.folder / "dids.txt"
    path.write_text("# all of them\n\n" + "\n".join(scene.network.dids()) + "\n")
    return str(path)


def _operations(folder: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_every_operation_of_the_corpus_is_of_a_repo_that_verifies_and_the_records_are_those_expected(
    corpus_scene: Scene,
) -> None:
    scene, corpus = corpus_scene, _corpus(corpus_scene)
    log = scene.folder / "log"
    scene.ingester(f"jsonl:{log}", options=["--check-order"])
    out = scene.backfill("--dids-file", _dids_file(scene), code=3)

    rows = scene.rows()
    assert set(rows) == set(scene.network.dids())
    for account in corpus.accounts:
        row, name = rows[account.did], account.current.path.name
        if account.current.acceptable:
            assert (row.state, row.rev, row.records) == ("synced", account.rev, account.current.records), name
        else:
            assert row.state == "quarantined", name
            assert (row.reason, row.attempts, row.touched) == (REFUSED[name], 2, False), (name, row)
            assert row.error, name
            assert f"{account.did}  {row.reason}" in out
    assert corpus.refused(), "the corpus has nothing to refuse: this test proves nothing"

    operations = _operations(log)
    ended = {line["did"] for line in operations if line["type"] == "REPO_END"}
    acceptable = set(corpus.digests())
    assert {line["did"] for line in operations} <= acceptable, "operations of a repo that does not verify"
    assert ended == {did for did in acceptable if corpus.account(did).current.records}
    found = compare_digests(corpus.digests(), scene.delivered())
    assert not found, report(found)


def test_with_dag_cbor_the_corpus_is_delivered_byte_for_byte(corpus_scene: Scene) -> None:
    scene, corpus = corpus_scene, _corpus(corpus_scene)
    scene.backfill("--dids-file", _dids_file(scene), code=3, env={"RECORD_ENCODING": "dag-cbor"})
    delivered = scene.delivered()  # re-hashed while it is read
    found = compare_digests(corpus.digests(), delivered)
    assert not found, report(found)
    assert sum(len(each.records) for each in delivered.values()) == sum(
        account.current.records for account in corpus.accounts if account.current.acceptable
    )


def test_a_later_export_replaces_the_earlier_one_and_its_deletes_are_applied(corpus_scene: Scene) -> None:
    scene, corpus = corpus_scene, _corpus(corpus_scene)
    several = [account.did for account in corpus.accounts if len(account.cars) > 1]
    assert several, f"no account of the data has more than one export: {list(expected()['cars'])}"
    for number in (0, -1):
        for did in several:
            corpus.serve(did, number % len(corpus.account(did).cars))
        scene.backfill("--did", *several)
        wanted = {did: corpus.account(did).current.digest for did in several}
        found = compare_digests(wanted, scene.delivered())
        assert not found, f"export {number}: {report(found)}"
        assert {did: row.rev for did, row in scene.rows().items()} == {did: corpus.account(did).rev for did in several}
