"""What the commands that work share: the data folder, and a service from its reporter to its exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from relay.cli.exits import Exit
from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.supervisor.launch import launch
from relay.tui.report import TerminalReporter


def check_data_dir(folder: Path) -> None:
    """Make the folder if need be. Raises ConfigError when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"relay.data_dir: {folder} cannot be made: {exc.strerror} (DATA_DIR names another one)"
        ) from exc
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"relay.data_dir: nothing can be written in {folder} (DATA_DIR names another one)")


def serve(
    loaded: Loaded, *, command: str, cursor: int | None = None, live: bool = False, no_progress: bool = False
) -> Exit:
    """Work until stopped: OK; CANNOT_GO_ON, with the reason on stderr, when it ended by itself."""
    settings = loaded.settings
    check_data_dir(Path(settings.relay.data_dir))
    # The reporter first: a live view takes stderr, and children must inherit what it put there. Nothing with threads or gRPC
    # is imported before the forkserver runs.
    reporter = TerminalReporter(sys.stderr, live=not no_progress)
    try:
        launch()
        from relay.supervisor.service import Service

        why = Service(loaded, command=command, cursor=cursor, live=live, reporter=reporter).run()
    finally:
        reporter.ended()
    reporter.closing(why)
    return Exit.OK if why is None else Exit.CANNOT_GO_ON
