"""The whole pipeline with three ingesters: what two of them get while the third is slowed to a tenth.

python -m tests.bench.slow_ingester [--accounts N] [--seconds S]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack

from relay.simnet.process import SimProcess
from relay.simnet.world import WorldSpec
from tests.bench.deliver_bench import ROOT, serving

BEGINS_S = 6.0
MB_PER_S = 1.0


def delivered(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.finditer(r'^relay_delivered_bytes_total\{ingester="([^"]+)"\} (\S+)', text, re.M)
    return {match[1]: float(match[2]) for match in found}


def run(network: SimProcess, rates: tuple[float, ...], seconds: float) -> list[float]:
    """Return MB/s of each ingester."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        addresses = [stack.enter_context(serving(rate)) for rate in rates]
        env = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "DATA_DIR": folder,
            "METRICS_PORT": "0",
            "ALLOW_PRIVATE_HOSTS": "true",
            "PLC_URL": network.plc_url,
            "FIREHOSE_HOST": network.firehose_url,
            "NSID_FILTER": "",
            "INGESTER_ADDRESSES": ",".join(addresses),
            "BACKFILLER_HOST_REQUESTS_PER_SEC": "1000",
            "IDENTITY_REQUESTS_PER_SEC": "1000",
            "RELAY_SHUTDOWN_TIMEOUT_SEC": "1",
        }
        command = [sys.executable, str(ROOT / "bin" / "relay"), "backfill", "--all", "--no-progress"]
        relay = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        assert relay.stderr is not None
        try:
            served = next(m for line in relay.stderr if (m := re.search(r"metrics: \S*?([\w.]+:\d+)", line)))[1]
            threading.Thread(target=relay.stderr.read, daemon=True).start()
            time.sleep(BEGINS_S)
            before = delivered(served)
            time.sleep(seconds)
            after = delivered(served)
            return [(after[each] - before[each]) / seconds / 1e6 for each in addresses]
        finally:
            relay.terminate()
            relay.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--accounts", type=int, default=700)
    parser.add_argument("--seconds", type=float, default=14.0)
    args = parser.parse_args()
    spec = WorldSpec(accounts=args.accounts, median_records=300, hosts=8)
    with SimProcess(spec, plain=True, compact=True) as network:
        even = run(network, (MB_PER_S,) * 3, args.seconds)
        uneven = run(network, (MB_PER_S, MB_PER_S, MB_PER_S / 10), args.seconds)
    for name, taken in (("three alike", even), ("the third at a tenth", uneven)):
        print(f"{name:30} {', '.join(f'{each:.2f}' for each in taken)} MB/s")
    print(f"{'the others kept':30} {sum(uneven[:2]) / sum(even[:2]):.1%} of what they had")


if __name__ == "__main__":
    main()
