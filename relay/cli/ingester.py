"""`relay ingester`: the reference ingester, until it is stopped."""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import sys
import threading
import time
from types import FrameType

from relay.cli.exits import Exit
from relay.observe.log import get_logger
from relay.runtime.signals import next_item

log = get_logger(__name__)

DEFAULT_LISTEN = "127.0.0.1:50052"
SINK_VARIABLE = "INGESTER_SINK"
STOP_WITHIN_S = 20.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "ingester",
        help="the reference ingester: stores what a relay delivers",
        description="The reference ingester: stores what a relay delivers, and acknowledges it when it is stored.",
    )
    parser.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help=f"where relays connect; port 0: any free port, printed at start; or unix:PATH (default {DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--sink",
        default=os.environ.get(SINK_VARIABLE) or None,
        metavar="URL",
        help="postgresql://..., sqlite:///FILE, jsonl:DIR, or null: (counts, stores nothing); without it the environment's "
        f"{SINK_VARIABLE}, which keeps a password out of the process list",
    )
    parser.add_argument(
        "--max-message-bytes", type=int, default=64 << 20, metavar="N", help="largest batch (default %(default)s)"
    )
    parser.add_argument("--tls-cert", default="", metavar="FILE", help="serve TLS with this certificate (PEM)")
    parser.add_argument("--tls-key", default="", metavar="FILE", help="its key (PEM)")
    parser.add_argument("--tls-client-ca", default="", metavar="FILE", help="ask relays for a certificate of this CA")
    parser.add_argument(
        "--stop-with-stdin", action="store_true", help="stop when standard input ends, so when the parent is gone"
    )
    parser.add_argument(
        "--check-order",
        action="store_true",
        help="for testing your relay: check that it keeps the order it promises; exit code 1 when it did not",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for testing your relay: misbehave (may be repeated): reject-rate=P, reject-match=REGEX, retry-for=SECONDS, "
        "retry-every=N, ack-delay=SECONDS, close-every=N, ack-twice=1, ack-stale=1, never-ack=1, not-serving=1, seed=N "
        "(docs/ingester-guide.md)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends at once. The address goes to stdout, everything else to stderr."""
    # Here and not at the top: the command line must not load gRPC for the other commands.
    from relay.ingester.errors import BadFault, BadSinkUrl, IngesterError
    from relay.ingester.faults import parse_faults
    from relay.ingester.server import IngesterServer, ServerOptions
    from relay.ingester.sinks.choose import make_sink

    events: queue.SimpleQueue[int] = queue.SimpleQueue()
    try:
        if args.sink is None:
            raise BadSinkUrl(f"no sink: give --sink URL or set {SINK_VARIABLE}")
        sink = make_sink(args.sink)
        faults = parse_faults(args.fault) if args.fault else None
    except (BadSinkUrl, BadFault) as exc:
        print(f"ingester: {exc}", file=sys.stderr)
        return Exit.USAGE
    options = ServerOptions(
        listen=args.listen,
        max_message_bytes=args.max_message_bytes,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        tls_client_ca=args.tls_client_ca,
        faults=faults,
        check_order=args.check_order,
    )
    server = IngesterServer(sink, options, on_failure=lambda: events.put(0))
    _listen_to_signals(events)
    try:
        address = server.start()
    except IngesterError as exc:
        print(f"ingester: {exc}", file=sys.stderr)
        return Exit.CANNOT_GO_ON
    print(f"listening on {address}", flush=True)
    if args.stop_with_stdin:
        threading.Thread(target=_wait_for_stdin, args=(events,), name="ingester-stdin", daemon=True).start()
    next_item(events)
    log.info("ingester_stopping", **server.details())
    stored = server.stop(time.monotonic() + STOP_WITHIN_S)
    if server.failure is not None:
        print(f"ingester: the writer died: {server.failure}", file=sys.stderr)
        return Exit.CANNOT_GO_ON
    if not stored:
        print(
            f"ingester: the sink did not finish within {STOP_WITHIN_S:.0f} s; what it held is not acknowledged",
            file=sys.stderr,
        )
        return Exit.CANNOT_GO_ON
    violations, first = server.order_violations()
    if violations:
        print(f"ingester: the order was broken {violations:,} times; first: {first}", file=sys.stderr)
        return Exit.CANNOT_GO_ON
    return Exit.OK


def _listen_to_signals(events: queue.SimpleQueue[int]) -> None:
    def on_signal(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        events.put(number)

    # Tests run this in a thread of theirs, where no handler can be set.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)


def _wait_for_stdin(events: queue.SimpleQueue[int]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while sys.stdin.buffer.read(4096):
            pass
    events.put(0)
