"""From file, environment and flags to checked `Settings`, with the place that each value came from.

Later wins: defaults, file, environment, flags. Every mistake is collected, and all of them are raised as one `BadConfig`, each
with key, value and place. Nothing is read from the network, and of the files that settings name (tokens, keys) none is opened.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pwd
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

from relay.config.checks import check_settings, normalise
from relay.config.file import FileValue, read_file
from relay.config.keys import KEYS, Key
from relay.config.schema import Settings
from relay.config.values import IllTyped, from_text, in_range, show_value
from relay.errors import ConfigError

DEFAULT_PLACE = "default"
SHORTEST_NEAR_MISS = 6  # shorter names of other programs are too often like one of ours
USUAL_FILES = (Path("config/config.yaml"), Path("/etc/tradr-relay/config.yaml"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing that is wrong: where, with which key ("" for a file as a whole), and what to do."""

    place: str
    key: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.text) if part)


class BadConfig(ConfigError):
    """Every mistake of a configuration at once, in the order of file, environment, flags, and their combination."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        head = "" if len(mistakes) == 1 else f"{len(mistakes)} mistakes in the configuration:\n  "
        super().__init__(head + "\n  ".join(str(mistake) for mistake in mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What is in force. `origins` maps every key (`section.key`) to a place: `default`, `FILE:LINE`, `environment NAME`, a flag.

    `warnings` name environment variables that look like a misspelt setting; they stop nothing.
    """

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None
    warnings: tuple[str, ...] = ()
    again: Callable[[], Loaded] | None = None
    """Reads everything as it was read here, with the file as it is now. Raises BadConfig."""

    def is_default(self, key: str) -> bool:
        """Tell whether nobody has set `key`: some commands choose for themselves then."""
        return self.origins[key].startswith(DEFAULT_PLACE)

    def is_left_alone(self, key: str) -> bool:
        """Tell whether nobody asks for `key` now: a file that says what the default is, as the shipped one does, asks for nothing."""
        if self.origins[key].startswith(("environment", "--")):
            return False
        value, default = (reduce(getattr, key.split("."), each) for each in (self.settings, Settings()))
        return bool(value == default)


def load(
    path: str | Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, tuple[Any, str]] | None = None,
    *,
    usual_files: Sequence[Path] = USUAL_FILES,
    is_root: bool | None = None,
) -> Loaded:
    """Return the settings in force.

    `path` is `--config`; `overrides` maps `section.key` to (value, name of the flag). Raises BadConfig with every mistake.
    Source: the configuration reference (config/config.yaml).
    """
    mistakes: list[Mistake] = []
    file = _find_file(path, environ, usual_files)
    values: dict[str, Any] = {name: key.default for name, key in KEYS.items()}
    origins = dict.fromkeys(KEYS, DEFAULT_PLACE)

    if file is not None:
        found, file_mistakes = read_file(file)
        mistakes += [Mistake(place=place, key=key, text=text) for place, key, text in file_mistakes]
        for name, file_value in found.items():
            _accept(KEYS[name], file_value, file_value.place, values, origins, mistakes)
    for name, text, place in _environment(environ, mistakes):
        _accept(KEYS[name], text, place, values, origins, mistakes)
    for name, (value, flag) in (overrides or {}).items():
        _accept(KEYS[name], value, flag, values, origins, mistakes)

    # Combinations are checked on what could be read: a key with a mistake keeps its default, and gives no second message.
    for name, text in normalise(values):
        mistakes.append(Mistake(place=origins[name], key=name, text=text))
    _fill_in_folders(values, origins, environ, os.geteuid() == 0 if is_root is None else is_root, mistakes)
    for name, text in check_settings(values):
        if not any(mistake.key == name for mistake in mistakes):
            mistakes.append(Mistake(place=origins[name], key=name, text=text))
    if mistakes:
        raise BadConfig(mistakes)
    return Loaded(
        settings=_build(values),
        origins=MappingProxyType(origins),
        file=file,
        warnings=tuple(_near_misses(environ)),
        again=partial(load, file, dict(environ), overrides, usual_files=usual_files, is_root=is_root),
    )


def _find_file(path: str | Path | None, environ: Mapping[str, str], usual_files: Sequence[Path]) -> Path | None:
    """Return the file to read. One that was named must exist; of the usual places the first that exists is taken."""
    if path is not None and str(path):
        return Path(path)
    if environ.get("RELAY_CONFIG"):
        return Path(environ["RELAY_CONFIG"])
    for candidate in usual_files:
        try:
            candidate.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # It is there and cannot be looked at: reading it says why, passing over it would hide it.
        return candidate
    return None


def _accept(
    key: Key, value: Any, place: str, values: dict[str, Any], origins: dict[str, str], mistakes: list[Mistake]
) -> None:
    """Put one value in force, or note what is wrong with it."""
    try:
        if isinstance(value, FileValue):
            typed = value.typed_as(key)
        elif isinstance(value, str):
            typed = from_text(key, value)
        else:
            typed = _from_object(key, value)
        values[key.name] = in_range(key, typed)
        origins[key.name] = place
    except IllTyped as exc:
        mistakes.append(Mistake(place=place, key=key.name, text=str(exc)))


def _from_object(key: Key, value: Any) -> Any:
    """Return a flag's value, which its parser has typed already, in the type of its key."""
    if key.type is tuple and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if key.type is float and type(value) is int:
        return float(value)
    if type(value) is key.type:
        return value
    raise IllTyped(f"expected {key.expects}, got {show_value(key, value)}")


def _environment(environ: Mapping[str, str], mistakes: list[Mistake]) -> list[tuple[str, str, str]]:
    """Return (key, text, place) for each key that the environment sets, under either of its names."""
    found = []
    for name, key in KEYS.items():
        given = {
            variable: environ[variable]
            for variable in key.variables
            if variable in environ and (environ[variable] or key.empty_env)
        }
        if not given:
            continue
        variable, text = next(iter(given.items()))
        if len(given) == 2 and not _equal(key, *given.values()):
            shown = " and ".join(f"{each}={show_value(key, given[each])}" for each in given)
            mistakes.append(Mistake(place="environment", key=name, text=f"{shown} differ; set one of them"))
            continue
        found.append((name, text, f"environment {variable}"))
    return found


def _equal(key: Key, first: str, second: str) -> bool:
    try:
        return bool(from_text(key, first) == from_text(key, second))
    except IllTyped:
        return first == second


def _fill_in_folders(
    values: dict[str, Any], origins: dict[str, str], environ: Mapping[str, str], is_root: bool, mistakes: list[Mistake]
) -> None:
    """Choose the data folder and the database's where nobody did, and make both absolute."""
    if not (values["relay.data_dir"] or values["database.path"]):
        values["relay.data_dir"] = "/var/lib/tradr-relay" if is_root else "~/.local/share/tradr-relay"
        origins["relay.data_dir"] = DEFAULT_PLACE
    for name, key in KEYS.items():
        if key.is_path and values[name].startswith("~"):
            values[name] = _expand_home(values[name], environ)
            if values[name].startswith("~"):
                mistakes.append(
                    Mistake(place=origins[name], key=name, text=f"{values[name]}: whose home? write it out")
                )
    if values["relay.data_dir"]:
        values["relay.data_dir"] = os.path.abspath(values["relay.data_dir"])
    else:
        values["relay.data_dir"] = os.path.dirname(os.path.abspath(values["database.path"]))
        origins["relay.data_dir"] = f"{DEFAULT_PLACE} (the parent of database.path)"
    if values["database.path"]:
        values["database.path"] = os.path.abspath(values["database.path"])
    else:
        values["database.path"] = os.path.join(values["relay.data_dir"], "pg")
        origins["database.path"] = f"{DEFAULT_PLACE} (pg under relay.data_dir)"


def _expand_home(path: str, environ: Mapping[str, str]) -> str:
    """Expand `~` and `~/...` by the given environment's HOME, else by the user's entry; `~name` stays as it is."""
    if path != "~" and not path.startswith("~/"):
        return path
    home = environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return path
    return home.rstrip("/") + path[1:]


def _build(values: Mapping[str, Any]) -> Settings:
    """Return the dataclasses for `section.key` -> value."""
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        section = field.default_factory
        if section is dataclasses.MISSING:
            arguments[field.name] = values[field.name]
        else:
            names = [each.name for each in dataclasses.fields(type(section()))]
            arguments[field.name] = type(section())(**{each: values[f"{field.name}.{each}"] for each in names})
    return Settings(**arguments)


def _near_misses(environ: Mapping[str, str]) -> list[str]:
    """Name variables that no key has, but that are one slip away from one that it has."""
    known = {variable for key in KEYS.values() for variable in key.variables} | {"RELAY_CONFIG"}
    sections = tuple(sorted({name.split(".")[0].upper() + "_" for name in KEYS if "." in name}))
    found = []
    for variable in sorted(environ):
        if variable not in known and (variable.startswith(sections) or len(variable) >= SHORTEST_NEAR_MISS):
            close = difflib.get_close_matches(variable, known, n=1, cutoff=0.9)
            if close:
                found.append(f"environment {variable}: no such setting (did you mean {close[0]}?)")
    return found
