from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
GENERATED = ("ingester_pb2.py", "ingester_pb2.pyi", "ingester_pb2_grpc.py")


def test_the_generated_messages_are_what_the_contract_in_proto_gives(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools generates the messages")
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", "-I", "relay/pb=proto", "relay/pb/ingester.proto",
            f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}",
        ],
        cwd=ROOT,
        check=True,
        timeout=60,
    )  # fmt: skip
    for name in GENERATED:
        fresh = (tmp_path / "relay" / "pb" / name).read_text()
        assert (ROOT / "relay" / "pb" / name).read_text() == fresh, f"relay/pb/{name} is stale: run `make proto`"
