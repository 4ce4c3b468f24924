"""What the service manager is told: ready, a line of status, stopping, and that we are alive (sd_notify(3)).

Without `NOTIFY_SOCKET` nobody listens, and nothing is said.
"""

from __future__ import annotations

import socket
from collections.abc import MutableMapping
from typing import Final

from relay.observe.log import get_logger

log = get_logger(__name__)

VARIABLE: Final = "NOTIFY_SOCKET"
_TEXT_CHARS: Final = 300


class ServiceManager:
    """Says things to systemd. For one thread; it never blocks, and a manager that does not listen is no error of ours."""

    def __init__(self, address: str = "") -> None:
        """`address`: a path, or a name that begins with @; empty: nobody listens."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._is_ready = False
        self._said = ""

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Take the address out of the environment: children have nothing to say."""
        return cls(environment.pop(VARIABLE, ""))

    def ready(self) -> None:
        """The start is over: also for one that stands by. Told once."""
        if not self._is_ready:
            self._is_ready = True
            self._send("READY=1")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows; told when it differs."""
        line = " ".join(text[:_TEXT_CHARS].split())
        if line != self._said:
            self._said = line
            self._send(f"STATUS={line}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as door:
                door.sendto(text.encode(), self._address)
        except OSError as exc:
            log.debug("service_manager_not_told", text=text, error=str(exc))
