"""A whole network in this process: one server thread for everything that is told, one for control."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

from relay.simnet.answers import App, Request, Response, json_response
from relay.simnet.corpus import Corpus
from relay.simnet.events import EventLog
from relay.simnet.faults import Fault, FaultPlan
from relay.simnet.http import HttpServer
from relay.simnet.pds import Pds, RateLimit
from relay.simnet.plc import Plc
from relay.simnet.repo import CompactRepo
from relay.simnet.traffic import Traffic
from relay.simnet.upstream import UPSTREAM, Upstream
from relay.simnet.views import style_of
from relay.simnet.world import AccountTruth, World, WorldSpec, Written

_STOP_S = 5.0


class UnknownCommand(Exception):
    """The control port was told something that it does not know."""


class SimNetwork:
    """PLC, PDSes and a relay on loopback over a `World` or a `Corpus`. A context manager; also `start` and `stop`.

    `plc_url`, `relay_url` and `host_urls` are known before `start`. With `base_port` the ports are that one and those after it
    (PLC, relay, PDSes, did:web accounts): a network that is started again can have the addresses it had.
    """

    def __init__(
        self,
        source: WorldSpec | Corpus,
        *,
        faults: FaultPlan | None = None,
        plain: bool = False,
        base_port: int = 0,
        blind_to: int = 0,
        gone_status: int = 410,
    ) -> None:
        """Listen, but answer only after `start`. Raise OSError when a port is taken.

        `plain`: all PDSes send with a length and without gzip (cheapest). See `Upstream` and `Plc` for the last two.
        """
        self.plan = faults or FaultPlan()
        self.traffic = Traffic()
        self._server = HttpServer()
        self._next_port = base_port
        self._ports: dict[int, int] = {}  # host number -> port
        self._apps: dict[str, App] = {}
        self._lock = threading.Lock()  # guards the plan's replacement in all apps
        self._started = False
        hosts = source.hosts if isinstance(source, WorldSpec) else len(source.host_urls)
        web_count = source.web_accounts if isinstance(source, WorldSpec) else 0
        try:
            plc_port = self._listen("plc")
            self._ports[UPSTREAM] = self._listen("relay")
            for host in range(hosts):
                self._ports[host] = self._listen(f"pds{host}")
            web_dids = [f"did:web:localhost%3A{self._listen(f'web{number}')}" for number in range(web_count)]
        except OSError:
            self._server.discard()
            raise
        self.network: World | Corpus = World(source, web_dids=web_dids) if isinstance(source, WorldSpec) else source
        self.network.host_urls[:] = [f"http://localhost:{self._ports[host]}" for host in range(hosts)]
        self.log = self.network.log if isinstance(self.network, World) else EventLog()
        self.log.listeners.append(self._server.wake_feeds)
        self.plc_url = f"http://localhost:{plc_port}"
        self.relay_url = f"http://localhost:{self._ports[UPSTREAM]}"
        murmur = self.network.murmur if isinstance(self.network, World) else None
        plan, traffic, network = self.plan, self.traffic, self.network
        self._pdses = [Pds(network, host, plan, traffic, style=style_of(host, plain=plain)) for host in range(hosts)]
        self._plcs = [Plc(network, plan, traffic, gone_status=gone_status)]
        self._plcs += [Plc(network, plan, traffic, web_did=did, gone_status=gone_status) for did in web_dids]
        self._upstream = Upstream(network, self.log, plan, traffic, murmur=murmur, blind_to=blind_to)
        self._apps["relay"] = self._upstream
        self._apps["plc"] = self._plcs[0]
        self._apps |= {f"pds{host}": pds for host, pds in enumerate(self._pdses)}
        self._apps |= {f"web{number}": plc for number, plc in enumerate(self._plcs[1:])}

    # Life

    def start(self) -> None:
        self._started = True
        self._server.start()

    def stop(self) -> None:
        """End the server thread. Raise RuntimeError if it hangs, or if a handler failed: a bug in this package."""
        self.log.listeners.clear()
        if not self._started:
            self._server.discard()
            return
        self._server.request_stop()
        if not self._server.join(time.monotonic() + _STOP_S):
            raise RuntimeError("the simulated network's thread does not end")
        if self._server.failures:
            raise RuntimeError(f"handlers of the simulated network failed: {self._server.failures[:3]}")

    def __enter__(self) -> SimNetwork:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    # What is there

    @property
    def world(self) -> World:
        """Raise TypeError when a corpus is served."""
        if not isinstance(self.network, World):
            raise TypeError("this network serves a corpus, not a world")
        return self.network

    @property
    def host_urls(self) -> list[str]:
        return list(self.network.host_urls)

    @property
    def firehose_url(self) -> str:
        """The relay as `firehose.relay_host` takes it."""
        return self.relay_url.replace("http://", "ws://")

    def addresses(self) -> dict[str, Any]:
        return {"plc": self.plc_url, "relay": self.relay_url, "firehose": self.firehose_url, "hosts": self.host_urls}

    def dids(self) -> list[str]:
        return self.network.dids()

    def truth(self) -> list[AccountTruth]:
        return list(self.world.truth())

    # What is changed

    def set_faults(self, faults: Sequence[Fault] = (), *, seed: int = 0) -> FaultPlan:
        """Put another plan in force, with counters at zero; no faults: all goes well from now on."""
        plan = FaultPlan(faults, seed=seed)
        with self._lock:
            self.plan = plan
            for pds in self._pdses:
                pds.plan = plan
            for plc in self._plcs:
                plc.plan = plan
            self._upstream.plan = plan
        return plan

    def fault_counts(self) -> dict[str, int]:
        """Return how often each kind of the plan in force fired."""
        return self.plan.fired()

    def write(self, commits: int, dids: Sequence[str] | None = None) -> Written:
        return self.world.write_some(commits, dids)

    def set_rate_limit(self, host: int, limit: int, window_s: float, *, silent: bool = False) -> None:
        """Limit a PDS; a limit of 0 ends it."""
        self._pdses[host].rate_limit = RateLimit(limit=limit, window_s=window_s, silent=silent) if limit else None

    def silence(self, host: int) -> None:
        """Refuse connections to a PDS (-1: the relay) and end those that there are."""
        self._server.silence(self._ports[host])

    def restore(self, host: int) -> None:
        """Listen again where `silence` ended it."""
        name = "relay" if host == UPSTREAM else f"pds{host}"
        self._server.listen(lambda request: self._apps[name](request), self._ports[host])

    def control(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what a control command says (`{"do": name, ...}`) and return the answer; each stands for the method of its name.

        Raise UnknownCommand; KeyError for a DID or argument that is not there.
        """
        match command["do"]:
            case "addresses":
                return self.addresses()
            case "dids":
                return {"dids": self.dids()}
            case "truth":
                return {"accounts": [_truth_json(account) for account in self.world.truth()]}
            case "set_faults":
                faults = [Fault.from_json(fault) for fault in command.get("faults", ())]
                self.set_faults(faults, seed=command.get("seed", 0))
            case "fault_counts":
                return self.fault_counts()
            case "traffic":
                bytes_sent = self.traffic.repo_bytes()
                return {"requests": self.traffic.requests(), "repos": self.traffic.repos(), "repo_bytes": bytes_sent}
            case "reset_traffic":
                self.traffic.reset()
            case "write":
                written = self.write(command["commits"], command.get("dids"))
                return {"creates": written.creates, "updates": written.updates, "deletes": written.deletes}
            case "add_large_record":
                return {"path": self.world.add_large_record(command["did"], command["bytes"])}
            case "set_status":
                self.world.set_status(command["did"], command["status"])
            case "tombstone":
                self.world.tombstone(command["did"])
            case "rotate_key":
                self.world.rotate_key(command["did"])
            case "migrate":
                self.world.migrate(command["did"], command["host"])
            case "name_pds":
                self.world.name_pds(command["did"], command["origin"])
            case "set_rate_limit":
                silent = command.get("silent", False)
                self.set_rate_limit(command["host"], command["limit"], command["window_s"], silent=silent)
            case "silence":
                self.silence(command["host"])
            case "restore":
                self.restore(command["host"])
            case other:
                raise UnknownCommand(f"no control command {other!r}")
        return {}

    def _listen(self, name: str) -> int:
        port = self._server.listen(lambda request: self._apps[name](request), self._next_port)
        if self._next_port:
            self._next_port += 1
        return port


def control_app(network: SimNetwork) -> App:
    """Return the app of a control port: `POST /_control` with a command as JSON."""

    def answer(request: Request) -> Response:
        if request.method != "POST" or request.path != "/_control":
            return json_response({"error": "NotFound", "message": "POST /_control"}, 404)
        try:
            return json_response(network.control(json.loads(request.body)))
        except (UnknownCommand, CompactRepo, KeyError, ValueError, IndexError, TypeError) as exc:
            return json_response({"error": type(exc).__name__, "message": str(exc)}, 400)

    return answer


def _truth_json(account: AccountTruth) -> dict[str, Any]:
    return {
        "did": account.did,
        "handle": account.handle,
        "pds": account.pds,
        "status": account.status,
        "rev": account.rev,
        "records": account.records,
        "refused": sorted(account.refused),
    }
