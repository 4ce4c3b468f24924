"""Numbers as people read them (pure): used by the terminal view, the page and the summaries. A number not known is `-`."""

from __future__ import annotations

UNKNOWN = "-"


def count(value: float | None) -> str:
    """Return a whole number with thousands separators."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def short_count(value: float | None) -> str:
    """Return a count in at most five characters: 999, 12.3k, 4.56M."""
    if value is None:
        return UNKNOWN
    return _scaled(value, 1000.0, ("", "k", "M", "G", "T"))


def size(value: float | None) -> str:
    """Return bytes in binary units: 512 B, 1.50 MiB."""
    if value is None:
        return UNKNOWN
    text = _scaled(value, 1024.0, (" B", " KiB", " MiB", " GiB", " TiB"))
    return text


def rate(value: float | None) -> str:
    """Return a rate per second with as many digits as mean something: 0.25/s, 12.3/s, 4.56k/s."""
    if value is None:
        return UNKNOWN
    if 0 < value < 10:
        return f"{value:.2f}/s"
    return short_count(value) + "/s"


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units: 0.8s, 42s, 3m05s, 2h10m, 4d03h."""
    if seconds is None:
        return UNKNOWN
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def percent(part: float | None, whole: float | None) -> str:
    """Return a share that says 100% only when it is all (or, counted later, more), and 0% only when it is nothing."""
    if part is None or not whole:
        return UNKNOWN
    share = min(100.0, 100.0 * part / whole)
    if part < whole:
        share = min(share, 99.9)
    if part > 0:
        share = max(share, 0.1)
    return f"{share:.0f}%" if share in (0.0, 100.0) else f"{share:.1f}%"


def _scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    """Return three digits and a unit; the number never shows as a full step (1000k)."""
    place = 0
    scaled = float(value)
    while place < len(units) - 1 and abs(scaled) >= step - (0.5 if place == 0 else 0.05):
        scaled /= step
        place += 1
    if place == 0:
        return f"{scaled:.0f}{units[0]}"
    digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:.{digits}f}{units[place]}"
