"""SIGHUP: the configuration is read again, and what can change while the relay runs does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from relay.admin.control import NotNow
from relay.atproto.nsid_filter import NsidFilter
from relay.config.keys import KEYS
from relay.config.load import Loaded
from relay.config.schema import Settings
from relay.errors import ConfigError, StoreError
from relay.net.gate import HostGate
from relay.net.hosts import HostPolicy
from relay.observe.log import configure, get_logger

log = get_logger(__name__)

_LIMITS = ("backfiller.host_requests_per_sec", "backfiller.host_connections")
_LOGGING = ("log_level", "log_format")


class Settable(Protocol):
    """What of the running service can be set: `RelayControl`."""

    def set_ingesters(self, addresses: tuple[str, ...]) -> object: ...
    def set_filter(self, wanted: NsidFilter) -> object: ...


class Rereading:
    """Belongs to the main thread.

    Only keys whose value is another one than when it was last read are touched: what an operator has set by a call stays, until the
    configuration says something new. What could not be applied counts as not read: the next SIGHUP tries again.
    """

    def __init__(self, loaded: Loaded, control: Settable, gate: HostGate) -> None:
        self._loaded, self._control, self._gate = loaded, control, gate
        self._known = {name: value_of(loaded.settings, name) for name in KEYS}
        self._failed: set[str] = set()  # that could not be applied at the last look

    def look(self) -> None:
        """Read, apply, and log what changed, what of it holds from now on, and what needs a restart."""
        if self._loaded.again is None:
            return
        try:
            settings = self._loaded.again().settings
        except ConfigError as exc:
            log.error("configuration_not_reread", error=str(exc), in_force="as before")
            return
        self._failed = set()
        changed = {name for name in KEYS if value_of(settings, name) != self._known[name]}
        applied = [
            *self._apply(changed, ("ingesters",), settings, self._ingesters),
            *self._apply(changed, ("firehose.nsid_filter",), settings, self._filter),
            *self._apply(changed, _LIMITS, settings, self._limits),
            *self._apply(changed, _LOGGING, settings, lambda new: configure(new.log_level, new.log_format)),
        ]
        for name in sorted(changed.difference(applied, self._failed)):
            # Said once: it is what the next start reads.
            self._known[name] = value_of(settings, name)
            log.warning("restart_needed", key=name)
        log.info("configuration_reread", changed=len(changed), applied=",".join(applied) or "nothing")

    def _apply(
        self, changed: set[str], names: tuple[str, ...], settings: Settings, do: Callable[[Settings], object]
    ) -> list[str]:
        mine = [name for name in names if name in changed]
        if not mine:
            return []
        try:
            do(settings)
        except (NotNow, StoreError) as exc:
            self._failed.update(mine)
            log.error("setting_not_applied", keys=",".join(mine), error=str(exc), in_force="as before")
            return []
        for name in mine:
            self._known[name] = value_of(settings, name)
        return mine

    def _ingesters(self, settings: Settings) -> None:
        if not settings.ingesters:
            raise NotNow("no ingester is named: with its own ingester the relay has to be started anew")
        self._control.set_ingesters(settings.ingesters)

    def _filter(self, settings: Settings) -> None:
        self._control.set_filter(NsidFilter.parse(settings.firehose.nsid_filter))

    def _limits(self, settings: Settings) -> None:
        policy = HostPolicy.from_settings(settings.backfiller)
        self._gate.set_policy(requests_per_s=policy.requests_per_s, burst=policy.burst, connections=policy.connections)


def value_of(settings: Settings, name: str) -> Any:
    """Return the value of a key, `section.key` or `key`."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value
