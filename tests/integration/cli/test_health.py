"""`health` asks over HTTP: 0 for 200, 1 for anything else, and for no answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from relay.admin.http import AdminHttp
from relay.cli.health import ask
from relay.cli.main import main
from relay.config.schema import MetricsSettings
from relay.errors import ConfigError
from relay.observe.status import Phase, StatusSnapshot


@contextmanager
def _serving(code: int, text: str) -> Iterator[int]:
    server = AdminHttp(
        "127.0.0.1",
        0,
        health=lambda: (code, text),
        ready=lambda: (503, "standby"),
        snapshot=lambda: StatusSnapshot(instance="one", phase=Phase.RUNNING),
        metrics=lambda: b"",
    )
    server.start()
    try:
        yield server.address[1]
    finally:
        server.request_stop()
        assert server.join(time.monotonic() + 10)


def test_who_is_well_is_exit_code_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with _serving(200, "running") as port:
        monkeypatch.setenv("METRICS_PORT", str(port))
        monkeypatch.setenv("METRICS_HOST", "0.0.0.0")
        assert main(["health"]) == 0
        assert capsys.readouterr().out == "running\n"
        assert main(["health", "--ready"]) == 1
        assert capsys.readouterr().err == "standby\n"


def test_who_is_not_well_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with _serving(503, "a thread hangs") as port:
        monkeypatch.setenv("METRICS_PORT", str(port))
        assert main(["health"]) == 1
    assert capsys.readouterr().err == "a thread hangs\n"


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else gets this port meanwhile
        port = taken.getsockname()[1]
        well, line = ask(MetricsSettings(port=port), "/health")
    assert not well
    assert line.startswith(f"no answer from 127.0.0.1:{port}: ")


def test_a_port_that_is_chosen_at_start_cannot_be_asked() -> None:
    with pytest.raises(ConfigError, match="name a port"):
        ask(MetricsSettings(port=0), "/health")
