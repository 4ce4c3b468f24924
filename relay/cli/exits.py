"""The exit codes of every command (README, "Exit codes"): scripts rely on them."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """What a command's end means to the shell."""

    OK = 0  # done; a batch: every target is synced or inactive; a service: stopped as asked
    CANNOT_GO_ON = 1  # the message says why
    USAGE = 2  # the command line or the configuration is wrong
    QUARANTINED = 3  # a batch ended, but some of its repos were given up; they are listed
    INTERRUPTED = 130  # stopped by the operator; the same command continues where it was
