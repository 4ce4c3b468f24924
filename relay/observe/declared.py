"""What is known of a metric before anything was counted: for its documentation, and for whoever asks about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A metric as /metrics has it, by the name that is asked for there. `kind` is counter, gauge, histogram or info."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    @property
    def unit(self) -> str:
        """Return what one of it is: the name says seconds or bytes, else it is a number of things."""
        stem = self.name.removesuffix("_total").removesuffix("_info")
        return next((unit for unit in ("seconds", "bytes") if stem.endswith(f"_{unit}")), "")
