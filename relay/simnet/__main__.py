"""`python -m relay.simnet --accounts 300 --seed 7 --hosts 5`: a network to play with. Prints its addresses as one JSON line.

Control it with `curl -d '{"do": "write", "commits": 10}' ADDRESS/_control`; the commands are those of `SimNetwork.control`.
"""

from __future__ import annotations

import argparse
import gc
import json
import queue
import signal
import sys
import threading
import time
from pathlib import Path

from relay.runtime.signals import next_item
from relay.simnet.corpus import Corpus
from relay.simnet.http import HttpServer
from relay.simnet.network import SimNetwork, control_app
from relay.simnet.upstream import OUTBOX_EVENTS
from relay.simnet.world import World, WorldSpec

_STOP_S = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT, SIGTERM, or (with --until-stdin-closes) the end of the standard input."""
    options = _parser().parse_args(arguments)
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ends.put("signal"))
    gc.disable()  # a world is millions of objects without cycles; the collector would walk them all again and again
    try:
        source = Corpus(options.corpus, hosts=options.hosts) if options.corpus else _spec(options)
    except (OSError, ValueError, TypeError) as exc:
        sys.stderr.write(f"simnet: {exc}\n")
        return 2
    try:
        network = SimNetwork(
            source,
            plain=options.plain,
            base_port=options.base_port,
            blind_to=options.blind_to,
            gone_status=options.gone_status,
            outbox_events=options.outbox_events,
        )
    except OSError as exc:
        sys.stderr.write(f"simnet: cannot listen on the ports from {options.base_port}: {exc}\n")
        return 1
    records = network.network.build_all(compact=options.compact) if isinstance(network.network, World) else 0
    gc.freeze()
    gc.enable()
    control = HttpServer("simnet-control")
    control_port = control.listen(control_app(network), options.control_port)
    network.start()
    control.start()
    told = {**network.addresses(), "control": f"http://localhost:{control_port}"}
    told |= {"accounts": len(network.dids()), "records": records}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    if options.until_stdin_closes:
        threading.Thread(target=_await_end_of_input, args=(ends,), daemon=True, name="stdin").start()
    next_item(ends)
    control.request_stop()
    control.join(time.monotonic() + _STOP_S)
    network.stop()
    return 0


def _await_end_of_input(ends: queue.SimpleQueue[str]) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    ends.put("stdin")


def _spec(options: argparse.Namespace) -> WorldSpec:
    if options.spec:
        values = json.loads(options.spec)
        return WorldSpec(**{**values, "sizes": tuple(values.get("sizes", ()))})
    return WorldSpec(
        seed=options.seed,
        accounts=options.accounts,
        hosts=options.hosts,
        web_accounts=options.web_accounts,
        median_records=options.median_records,
        sizes=tuple(options.size),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m relay.simnet", description="An AT Protocol network on loopback.")
    parser.add_argument("--accounts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=5, help="PDSes")
    parser.add_argument("--web-accounts", type=int, default=0, help="accounts with a did:web")
    parser.add_argument("--median-records", type=int, default=80, help="of a repo")
    parser.add_argument(
        "--size", type=int, action="append", default=[], help="records of the first account; of the next..."
    )
    parser.add_argument("--spec", help="a whole WorldSpec as JSON, instead of the options above")
    parser.add_argument(
        "--corpus", type=Path, help="serve the CARs of this folder (expected.json) instead of a made-up world"
    )
    parser.add_argument("--plain", action="store_true", help="no gzip, no chunked answers: the cheapest to serve")
    parser.add_argument("--compact", action="store_true", help="keep CARs only: least memory, nothing can be written")
    parser.add_argument("--blind-to", type=int, default=0, help="the relay's listRepos lacks every n-th account")
    parser.add_argument("--gone-status", type=int, default=410, choices=(404, 410), help="PLC's answer for a tombstone")
    parser.add_argument(
        "--outbox-events", type=int, default=OUTBOX_EVENTS, help="how far a live subscriber may fall behind"
    )
    parser.add_argument("--base-port", type=int, default=0, help="first of consecutive ports; 0: any free ones")
    parser.add_argument("--control-port", type=int, default=0)
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when the standard input ends")
    return parser


if __name__ == "__main__":
    sys.exit(main())
