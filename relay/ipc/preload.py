"""Imported by the forkserver before anything else: it must outlive a SIGTERM that reaches the whole service.

The supervisor drains first, and ends the forkserver when it is done; with the supervisor's death it ends by itself.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
