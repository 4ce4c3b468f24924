"""Typed settings: one frozen dataclass a section, read once at start. A room receives its own section, never the whole."""
