"""How often the same event may be logged (pure)."""

from __future__ import annotations

from collections import OrderedDict


class Repeats:
    """Lets `burst` lines of a key through in each `window_s` seconds, and counts the rest.

    The count is told with the next line that passes, or by `sweep` when none came for a whole window. Memory: `most_keys` keys.
    """

    def __init__(self, burst: int = 20, window_s: float = 10.0, most_keys: int = 2000) -> None:
        self._burst, self._window_s, self._most_keys = burst, window_s, most_keys
        # key -> [start of its window, lines passed in it, lines suppressed]; in the order of the windows' starts
        self._windows: OrderedDict[tuple[str, ...], list[float]] = OrderedDict()
        self._forgotten: dict[str, int] = {}

    def admit(self, key: tuple[str, ...], now: float) -> tuple[bool, int]:
        """Return whether a line of `key` passes at `now`, and how many before it were suppressed since the last one."""
        window = self._windows.get(key)
        if window is None or now - window[0] >= self._window_s:
            suppressed = int(window[2]) if window else 0
            self._windows[key] = [now, 1, 0]
            self._windows.move_to_end(key)
            if len(self._windows) > self._most_keys:
                oldest, (_, _, lost) = self._windows.popitem(last=False)
                if lost:
                    self._forgotten[oldest[0]] = self._forgotten.get(oldest[0], 0) + int(lost)
            return True, suppressed
        if window[1] < self._burst:
            window[1] += 1
            return True, 0
        window[2] += 1
        return False, 0

    def sweep(self, now: float) -> list[tuple[tuple[str, ...], int]]:
        """Forget the keys whose window ended a window ago; return those of which lines were suppressed, with their number."""
        told: list[tuple[tuple[str, ...], int]] = [((event,), count) for event, count in self._forgotten.items()]
        self._forgotten.clear()
        while self._windows:
            key, (start, _, suppressed) = next(iter(self._windows.items()))
            if now - start < 2 * self._window_s:
                break
            del self._windows[key]
            if suppressed:
                told.append((key, int(suppressed)))
        return told
