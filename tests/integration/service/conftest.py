"""Fixtures of the tests of `run` and `tail`: the stage of the backfill tests, and what is asked of a running service."""

from __future__ import annotations

import contextlib
import http.client
from typing import Any

import orjson

from tests.integration.backfill.conftest import make_scene, scene
from tests.integration.backfill.scene import Scene
from tests.support.processes import Program, json_of
from tests.support.waiting import wait_until

__all__ = ["make_scene", "scene"]


def get(address: str, path: str) -> tuple[int, str]:
    """Return status and body of a GET."""
    host, _, port = address.rpartition(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def address_of(program: Program, scene: Scene) -> str:
    """Return where a program serves HTTP, once its row says so."""
    found: list[str] = []

    def is_there() -> bool:
        found[:] = [
            address
            for pid, address in scene.select("SELECT pid, metrics_address FROM instance")
            if pid == program.pid and address
        ]
        return bool(found)

    wait_until(is_there, f"the address of {program}")
    return found[0]


def status(scene: Scene) -> Any:
    """Return what `status --json` says."""
    asked = scene.start("status", "--json")
    assert asked.wait() == 0, str(asked)
    return json_of(asked)


def until_equal(scene: Scene, program: Program, what: str, deadline_s: float = 60.0) -> None:
    """Wait until the ingester has what the network has."""
    differences = [""]

    def is_equal() -> bool:
        assert program.is_running(), str(program)
        differences[:] = [scene.differences()]
        return not differences[0]

    try:
        wait_until(is_equal, what, deadline_s=deadline_s)
    except AssertionError as exc:
        raise AssertionError(f"{exc}\n{differences[0]}\n{program}") from None


def end(program: Program, code: int = 0) -> str:
    """End a service as systemd does; return what it wrote to stderr."""
    program.process.terminate()
    assert program.wait(60) == code, str(program)
    text = "\n".join(program.err)
    assert "Traceback" not in text, text
    return text


def holder(scene: Scene) -> str:
    ((owner,),) = scene.select("SELECT owner FROM partition")
    return str(owner)


def loads(text: str) -> Any:
    return orjson.loads(text)
