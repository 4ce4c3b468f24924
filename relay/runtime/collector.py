"""The garbage collector of a process that makes few cycles and has many objects."""

from __future__ import annotations

import gc
from typing import Final

# What works with repos and frames refers one way only, so counting references frees it. Left alone the collector looks at a
# hundred thousand objects that stay, again and again: a seventh of the supervisor's time, and a tenth of a second in one go, in
# which nobody is served. What libraries make of cycles is found all the same, later.
THRESHOLDS: Final = (10_000, 5, 50)


def calm_collector() -> None:
    """Have this process look for cycles more seldom: 10,000 more objects for a young pass (1 ms), 2,500,000 for a full one."""
    gc.set_threshold(*THRESHOLDS)
