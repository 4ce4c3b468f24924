"""The schema as a flat table: `section.key` -> type, default, range, environment names, help."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from relay.config.schema import Settings

_EXPECTS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list of texts"}

# Folders and files on this machine: `~/` is expanded in them.
_PATHS = ("data_dir", "path", "tls_ca", "tls_cert", "tls_key", "tls_client_ca", "token_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting. `type` is str, int, float, bool or tuple (of str); `name` is `section.key`, or `key` at the top level."""

    name: str
    type: type
    default: Any
    help: str
    env: str | None
    at_least: float | None
    at_most: float | None
    choices: tuple[str, ...]
    secret: bool
    empty_env: bool

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that set this key: the short name first where there is one."""
        full = self.name.replace(".", "_").upper()
        return (full,) if self.env in (None, full) else (self.env, full)

    @property
    def is_path(self) -> bool:
        return self.name.rpartition(".")[2] in _PATHS

    @property
    def expects(self) -> str:
        """What a value has to be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return _EXPECTS[self.type]


def _flatten() -> Mapping[str, Key]:
    keys = {}
    for outer in dataclasses.fields(Settings):
        if outer.default_factory is dataclasses.MISSING:
            keys[outer.name] = _key("", outer, Settings)
            continue
        section = type(outer.default_factory())
        for inner in dataclasses.fields(section):
            keys[f"{outer.name}.{inner.name}"] = _key(f"{outer.name}.", inner, section)
    return MappingProxyType(keys)


def _key(prefix: str, field: dataclasses.Field[Any], owner: type) -> Key:
    declared = typing.get_type_hints(owner)[field.name]
    declared = typing.get_origin(declared) or declared
    if declared not in _EXPECTS:
        raise TypeError(f"{owner.__name__}.{field.name}: {declared} is no type for a setting")
    return Key(name=prefix + field.name, type=declared, default=field.default, **field.metadata)


KEYS: Mapping[str, Key] = _flatten()
SECTIONS: tuple[str, ...] = tuple(dict.fromkeys(name.partition(".")[0] for name in KEYS if "." in name))
