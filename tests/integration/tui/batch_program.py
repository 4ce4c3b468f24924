"""What a batch does to its terminal, as a program of its own: run by test_live.py under a pseudo-terminal.

Reads commands from stdin, a line each, so that the test decides when what happens; acknowledges each on stdout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from relay.observe.status import HostView, Phase, StatusSnapshot, Targets
from relay.tui.live import restore_terminal_now
from relay.tui.report import TerminalReporter

CHILD = (
    "import sys;"
    "sys.stderr.write('2026-01-01T00:00:00.000Z info    repo_synced did=routine\\n');"
    "sys.stderr.write('2026-01-01T00:00:00.000Z warning child_speaks did=notable\\n');"
    "sys.stderr.write('Traceback of a child\\n')"
)
LASTING_CHILD = (
    "import sys;"
    "sys.stderr.write('child is there\\n');"
    "sys.stdin.readline();"
    "sys.stderr.write('child outlived the view\\n')"
)


def main() -> None:
    reporter = TerminalReporter(sys.stderr, live=True)
    snapshot = StatusSnapshot(
        instance="tester",
        phase=Phase.RUNNING,
        repos={"synced": 7},
        targets=Targets(total=10, done=7, final=True),
        hosts=tuple(HostView(host=f"https://host-{number}.example") for number in range(30)),
    )
    for line in sys.stdin:
        match line.strip():
            case "start":
                reporter.started({"metrics": "127.0.0.1:1"})
                reporter.show(snapshot)
            case "child":
                subprocess.run([sys.executable, "-c", CHILD], check=True)
            case "lasting child":
                child = subprocess.Popen([sys.executable, "-c", LASTING_CHILD], stdin=subprocess.PIPE)
            case "let the child speak":
                child.communicate(b"\n")
            case "threads":
                line = f"{len(threading.enumerate())} threads\n"
            case "end":
                reporter.ended()
                reporter.ended()
            case "raise":
                raise RuntimeError("the message that must not get lost")
            case "exit":
                restore_terminal_now()
                os._exit(130)
            case "quit":
                return
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
