"""The README's commands, as they stand there, in one shell, against a simulated network."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest
from psycopg2.extensions import parse_dsn

from relay.simnet.delivered import read_sink
from relay.simnet.oracle import compare, report
from relay.simnet.process import SimProcess
from relay.simnet.world import WorldSpec
from tests.support.postgres import Server
from tests.support.processes import ROOT, Program
from tests.support.readme import blocks

DEADLINE_S = 100
SPEC = WorldSpec(accounts=8, hosts=2, median_records=20, max_records=100, inactive_share=0.0, seed=3)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _url(dsn: str) -> str:
    parts = parse_dsn(dsn)
    return f"postgresql:///{parts.pop('dbname')}?{urlencode(parts)}"


@pytest.mark.timeout(300)  # a dozen programs one after the other, on a machine that may be busy
@pytest.mark.usefixtures("no_leaks")
def test_every_command_of_the_readme_works(tmp_path: Path, postgres_server: Server) -> None:
    (tmp_path / "bin").symlink_to(ROOT / "bin")
    databases = [postgres_server.create(), postgres_server.create()]
    state, records = (_url(postgres_server.dsn(name)) for name in databases)
    address = f"127.0.0.1:{_free_port()}"
    with SimProcess(SPEC) as network:
        dids = network.dids()
        (tmp_path / "dids.txt").write_text("\n".join(["# two of them", *dids[:2], ""]))
        substitutes = {
            "did:plc:ewvi7nxzyoun6zhxrhs64oiz": dids[0],
            "did:plc:z72i7hdynmk6r22z27h6tvur": dids[1],
            "https://pds.example.org": network.host_urls[0],
            "postgresql://relay:secret@localhost/relay": state,
            "postgresql://records:secret@localhost/records": records,
            "127.0.0.1:50052": address,
        }
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "LANG": "C.UTF-8",
            "PLC_URL": network.plc_url,
            "FIREHOSE_HOST": network.firehose_url,
            "ALLOW_PRIVATE_HOSTS": "true",
            "METRICS_PORT": "0",
        }
        exports: list[str] = []
        servers: list[Program] = []
        services: list[Program] = []
        try:
            for block in blocks():
                text = block.text
                for example, real in substitutes.items():
                    text = text.replace(example, real)
                exports += re.findall(r"^export .*$", text, re.MULTILINE)
                script = "\n".join(["set -euo pipefail", *exports, text])
                if block.kind == "serves":
                    server = Program(["bash", "-c", script], env=environ, cwd=tmp_path)
                    servers.append(server)
                    server.wait_for_line("^listening on ")
                elif block.kind == "works":
                    service = Program(
                        ["bash", "-c", f"exec {text.strip()}"], env={**environ, **_exported(exports)}, cwd=tmp_path
                    )
                    services.append(service)
                    service.wait_for_line("^metrics: ")
                elif block.kind == "runs":
                    _run(script, environ, tmp_path)
            for service in services:
                service.signal(signal.SIGTERM)
                assert service.wait() == 0, service
        finally:
            for program in (*services, *servers):
                program.stop()
        differences = compare(network.truth(), read_sink(records), patterns=["app.bsky."])
        assert not differences, report(differences)
        first = read_sink(f"sqlite://{tmp_path / 'var' / 'first' / 'records.sqlite'}")
        differences = compare(network.truth()[:1], first, patterns=["app.bsky."])
        assert not differences, report(differences)
    for name in databases:
        postgres_server.drop(name)


def _exported(lines: list[str]) -> dict[str, str]:
    """Return what `export NAME=value` lines set; so that a service can be the process itself, and gets its signals."""
    return {name: value.strip("'") for name, value in (line.removeprefix("export ").split("=", 1) for line in lines)}


def _run(script: str, environ: dict[str, str], folder: Path) -> None:
    ended = subprocess.run(
        ["bash", "-xc", script],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    sys.stderr.write(ended.stderr)
    assert ended.returncode == 0, (
        f"exit code {ended.returncode}\n{script}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    )


def test_the_readme_has_blocks_of_every_kind() -> None:
    assert {block.kind for block in blocks()} == {"runs", "exports", "serves", "works"}
