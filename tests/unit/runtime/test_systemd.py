"""sd_notify: one datagram a word, once what is said once, and silence where nobody listens."""

from __future__ import annotations

import secrets
import socket

from relay.runtime.systemd import VARIABLE, ServiceManager


def test_an_abstract_address_works_and_the_variable_is_taken_away() -> None:
    name = f"@relay-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind("\0" + name[1:])
        environment = {VARIABLE: name, "HOME": "/"}
        manager = ServiceManager.of_environment(environment)
        assert environment == {"HOME": "/"}
        manager.ready()
        manager.ready()
        manager.status("running:\n 7 repos")
        manager.status("running: 7 repos")
        manager.alive()
        manager.stopping()
        door.setblocking(False)
        said = [door.recv(1000).decode() for _ in range(4)]
    assert said == ["READY=1", "STATUS=running: 7 repos", "WATCHDOG=1", "STOPPING=1"]


def test_nobody_listens() -> None:
    for manager in (ServiceManager.of_environment({}), ServiceManager("/nonexistent/socket")):
        manager.ready()
        manager.status("x")
        manager.alive()
        manager.stopping()
