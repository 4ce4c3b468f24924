"""`health`: what /health of the instance at metrics.host and metrics.port says, for health checks that have no HTTP client."""

from __future__ import annotations

import argparse
import http.client
import sys
from typing import Any

from relay.cli.exits import Exit
from relay.config.load import Loaded
from relay.config.schema import MetricsSettings
from relay.errors import ConfigError

_TIMEOUT_S = 10.0
_MOST_BYTES = 4096
# Who listens on every address listens on this one.
_NEAR = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "health",
        help="ask the running instance whether it is well",
        description="Asks the instance that listens on metrics.host and metrics.port, and prints its line. Exit code 0: it is well, or "
        "waits for a reason that it knows; 1: it is not, or does not answer.",
    )
    parser.add_argument("--ready", action="store_true", help="the stricter question: can it work now (/ready)")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Ask, print, and turn the answer into an exit code. Raises ConfigError where the port is not known beforehand."""
    well, line = ask(loaded.settings.metrics, "/ready" if args.ready else "/health")
    print(line, file=sys.stdout if well else sys.stderr)
    return Exit.OK if well else Exit.CANNOT_GO_ON


def ask(settings: MetricsSettings, path: str) -> tuple[bool, str]:
    """Return whether the answer was 200, and its text; no answer is an answer too."""
    if settings.port == 0:
        raise ConfigError("metrics.port: 0 lets the relay choose one, and nobody can ask it then; name a port")
    host = _NEAR.get(settings.host, settings.host.strip("[]"))
    connection = http.client.HTTPConnection(host, settings.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read(_MOST_BYTES).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as exc:
        return False, f"no answer from {host}:{settings.port}: {exc}"
    finally:
        connection.close()
    return response.status == 200, text or f"{response.status} {response.reason}"
