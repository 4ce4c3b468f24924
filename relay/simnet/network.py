"""A whole network in this process: one server thread for everything that is told, one for control."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from relay.simnet.answers import App, Request, Response, json_response
from relay.simnet.author import Mix
from relay.simnet.corpus import Corpus
from relay.simnet.events import Event, EventLog
from relay.simnet.faults import Fault, FaultKind, FaultPlan
from relay.simnet.http import HttpServer
from relay.simnet.pds import Pds, RateLimit
from relay.simnet.plc import Plc
from relay.simnet.repo import CompactRepo
from relay.simnet.traffic import Traffic
from relay.simnet.upstream import OUTBOX_EVENTS, UPSTREAM, Upstream
from relay.simnet.views import style_of
from relay.simnet.world import AccountTruth, World, WorldSpec, Written
from relay.simnet.writers import Writers

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
        outbox_events: int = OUTBOX_EVENTS,
    ) -> None:
        """Listen, but answer only after `start`. Raise OSError when a port is taken.

        `plain`: all PDSes send with a length and without gzip (cheapest). See `Upstream` and `Plc` for the last three.
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
        murmur: Callable[[], object] | None = None
        on_lost: Callable[[Sequence[Event]], None] = _nobody_lost
        if isinstance(self.network, World):
            murmur, on_lost = self.network.murmur, self.network.teller.lost
            self.network.teller.plan = self.plan
        self._writers = Writers(self.network) if isinstance(self.network, World) else None
        plan, traffic, network = self.plan, self.traffic, self.network
        self._pdses = [Pds(network, host, plan, traffic, style=style_of(host, plain=plain)) for host in range(hosts)]
        self._plcs = [Plc(network, plan, traffic, gone_status=gone_status)]
        self._plcs += [Plc(network, plan, traffic, web_did=did, gone_status=gone_status) for did in web_dids]
        self._upstream = Upstream(
            network,
            self.log,
            plan,
            traffic,
            murmur=murmur,
            blind_to=blind_to,
            outbox_events=outbox_events,
            on_lost=on_lost,
        )
        self._apps["relay"] = self._upstream
        self._apps["plc"] = self._plcs[0]
        self._apps |= {f"pds{host}": pds for host, pds in enumerate(self._pdses)}
        self._apps |= {f"web{number}": plc for number, plc in enumerate(self._plcs[1:])}

    # Life

    def start(self) -> None:
        self._started = True
        self._server.start()

    def stop(self) -> None:
        """End all threads. Raise RuntimeError if one hangs, or if a handler or a writer failed: a bug in this package."""
        try:
            if self._writers is not None:
                self._writers.stop()
        finally:
            self._stop_server()

    def _stop_server(self) -> None:
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
            if isinstance(self.network, World):
                self.network.teller.plan = plan
        return plan

    def fault_counts(self) -> dict[str, int]:
        """Return how often each kind of the plan in force fired."""
        return self.plan.fired()

    def struck(self, kind: FaultKind) -> set[str]:
        """Return the DIDs that a fault of this kind, of the plan in force, struck."""
        return self.plan.struck(kind)

    def write(self, commits: int, dids: Sequence[str] | None = None) -> Written:
        return self.world.write_some(commits, dids)

    def start_writers(
        self, rate: float, *, threads: int = 1, mix: Mix | None = None, dids: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        """Let accounts be written `rate` times a second until `stop_writers`; see `Writers.start`."""
        self._all_writers().start(rate, threads=threads, mix=mix, dids=dids, seed=seed)

    def stop_writers(self) -> dict[str, int]:
        """End the writers; return what they did since the beginning, by the names of `Mix`."""
        return self._all_writers().stop()

    def written(self) -> dict[str, int]:
        """Return what the writers did so far, by the names of `Mix`."""
        return self._all_writers().done()

    def quiesce(self, *, settle: bool = False) -> int:
        """End the writers and return the newest seq: an event that no fault struck in the log, behind everything else.

        `settle`: tell before it what was dropped or told wrong (see `World.settle`), so that a listener that has done
        everything up to this seq can know the whole truth. Faults of streams stay in force: end them with `set_faults`.
        """
        self._all_writers().stop()
        if settle:
            self.world.settle()
        return self.world.murmur()

    def lose_window(self, keep: int = 0) -> int:
        """Let the relay forget its log but for the newest events; return how many it lost."""
        return self.log.lose(keep)

    def renumber(self, first_seq: int) -> None:
        """Let the relay forget its log and go on with other numbers, as one that lost its state."""
        self.log.renumber(first_seq)

    def disconnect(self) -> None:
        """Cut all connections of the relay; it goes on to listen."""
        self._server.cut(self._ports[UPSTREAM])

    def _all_writers(self) -> Writers:
        if self._writers is None:
            raise TypeError("this network serves a corpus: nobody can write")
        return self._writers

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
            case "struck":
                return {"dids": sorted(self.struck(FaultKind(command["kind"])))}
            case "traffic":
                bytes_sent = self.traffic.repo_bytes()
                return {"requests": self.traffic.requests(), "repos": self.traffic.repos(), "repo_bytes": bytes_sent}
            case "reset_traffic":
                self.traffic.reset()
            case "write":
                written = self.write(command["commits"], command.get("dids"))
                return {"creates": written.creates, "updates": written.updates, "deletes": written.deletes}
            case "start_writers":
                mix = Mix.from_json(command.get("mix") or {})
                threads, seed = command.get("threads", 1), command.get("seed", 0)
                self.start_writers(command["rate"], threads=threads, mix=mix, dids=command.get("dids"), seed=seed)
            case "stop_writers":
                return self.stop_writers()
            case "written":
                return self.written()
            case "quiesce":
                return {"seq": self.quiesce(settle=command.get("settle", False))}
            case "newest_seq":
                return {"seq": self.log.newest_seq}
            case "lose_window":
                return {"lost": self.lose_window(command.get("keep", 0))}
            case "renumber":
                self.renumber(command["first_seq"])
            case "disconnect":
                self.disconnect()
            case "commit":
                commit = self.world.write(command["did"], command["changes"])
                return {"rev": commit.rev, "seq": self.log.newest_seq}
            case "import_records":
                return {"rev": self.world.import_records(command["did"], command["changes"]).rev}
            case "create_account":
                changes = command.get("changes")
                return {"did": self.world.create_account(host=command.get("host", 0), changes=changes)}
            case "set_handle":
                self.world.set_handle(command["did"], command["handle"])
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
        except (UnknownCommand, CompactRepo, LookupError, ValueError, TypeError, RuntimeError) as exc:
            return json_response({"error": type(exc).__name__, "message": str(exc)}, 400)

    return answer


def _nobody_lost(_events: Sequence[Event]) -> None:
    """A corpus tells no events, so nobody misses one."""


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
