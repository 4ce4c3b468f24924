"""One repo that is larger than what is held in memory."""

from __future__ import annotations

from pathlib import Path

from relay.simnet.delivered import read_sink
from relay.simnet.oracle import compare, report
from tests.integration.backfill.scene import Scene
from tests.support.processes import RunRelay
from tests.support.simnet import StartNetwork

RECORDS = 300_000


def test_a_repo_of_300_000_records_is_delivered_whole_through_a_spool_file(
    start_simnet: StartNetwork, run_relay: RunRelay, migrated_dsn: str, tmp_path: Path
) -> None:
    scene = Scene(run_relay, start_simnet(accounts=3, sizes=(0, 10, 10), hosts=1), migrated_dsn, tmp_path)
    # Small ones: what is tested is their number, and making large ones takes longer than delivering them.
    records = {f"com.example.tiny/{number:07}": {"$type": "com.example.tiny", "n": number} for number in range(RECORDS)}
    scene.network.world.write(scene.network.dids()[0], records)
    scene.ingester(f"sqlite://{scene.folder / 'large.sqlite'}")
    scene.backfill("--all", deadline_s=100)
    row = scene.rows()[scene.network.dids()[0]]
    assert (row.state, row.records) == ("synced", RECORDS)
    assert not list(scene.data_dir.glob("spool/*"))
    # Without hashing each record once more: that is tested with smaller ones.
    found = compare(scene.network.truth(), read_sink(scene.sink, contents=False))
    assert not found, report(found)
