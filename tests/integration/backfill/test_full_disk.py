"""Disks that are smaller than a repo."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.simnet.records import padded_record
from tests.integration.backfill.conftest import MakeScene
from tests.support.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with 6 MiB of room, as a file system of its own; skips where this may not be mounted."""
    folder = tmp_path / "data"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a small file system needs `mount`")
    if done.returncode:
        pytest.skip(f"a small file system needs the right to mount one: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_spool_folder_holds_up_only_the_repos_that_need_it_and_is_told_until_there_is_room(
    make_scene: MakeScene, small_disk: Path
) -> None:
    scene = make_scene(accounts=8, sizes=(5,) * 8)
    large = scene.network.dids()[0]
    for number in range(10):
        scene.network.world.write(large, {f"com.example.large/l{number}": padded_record(MIB - number)})
    scene.env["BACKFILLER_SLOT_BYTES"] = str(MIB)
    scene.ingester()  # elsewhere: its own file is not what is tested
    program = scene.start("backfill", "--all")
    wait_until(lambda: scene.counts() == {"synced": 7, "pending": 1}, "all but the large one are synced")
    wait_until(lambda: scene.rows()[large].reason == "spool_full", "the reason is stored")
    row = scene.rows()[large]
    assert row.attempts == 0, "a full disk of ours costs the repo no attempt"
    assert str(small_disk / "spool") in (row.error or "")
    program.wait_for_line("spool_full.*free space there")
    assert not list((small_disk / "spool").iterdir()), "what did not fit is removed"

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert program.wait(40) == 0, str(program)
    assert not scene.differences()
