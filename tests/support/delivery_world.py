"""A live world with several ingesters before one database, each behind a witness and, where packets are to be dropped, a proxy."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from relay.simnet.network import SimNetwork
from relay.simnet.process import SimProcess
from tests.faults.stage import Stage, free_port
from tests.support.live_world import LiveWorld
from tests.support.processes import Program
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until
from tests.support.witness import Ledger, Witness

RATE = 120.0
"""Writers' actions a second."""
RESTS_S = 120.0
QUICK_DELIVERY = {"DELIVERY_ACK_TIMEOUT_SEC": "3", "DELIVERY_FAILOVER_AFTER_SEC": "1"}


class Seat:
    """One ingester: the program comes and goes, what stands before it stays."""

    def __init__(self, stage: Stage, contexts: contextlib.ExitStack, ledger: Ledger, *, with_proxy: bool) -> None:
        self._stage = stage
        self._port = free_port()
        self.program: Program | None = None
        self.witness = contexts.enter_context(Witness(f"127.0.0.1:{self._port}", ledger))
        self.proxy: Proxy | None = None
        self.address = self.witness.address
        if with_proxy:
            self.proxy = contexts.enter_context(Proxy("127.0.0.1", int(self.witness.address.rpartition(":")[2])))
            self.address = f"127.0.0.1:{self.proxy.port}"

    def start(self, *faults: str) -> None:
        self.program = self._stage.ingester(self._port, *faults)

    def kill(self) -> None:
        assert self.program is not None
        self.program.kill()

    def stop(self) -> None:
        """SIGTERM: it ends its streams in good order, and found no fault with the order."""
        assert self.program is not None
        self.program.signal(signal.SIGTERM)
        assert self.program.wait(30.0) == 0, str(self.program)

    def restart(self, *faults: str) -> None:
        self.stop()
        self.start(*faults)


class DeliveryWorld(LiveWorld):
    """`seats` are its ingesters; `figures` what came of it, in words."""

    def __init__(
        self,
        stage: Stage,
        network: SimProcess | SimNetwork,
        *,
        ingesters: int = 1,
        faults: tuple[str, ...] = (),
        with_proxy: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(stage, network, env={**QUICK_DELIVERY, **dict(env or {})})
        self.seats: list[Seat] = []
        self.ledger = Ledger()
        self._ingesters, self._faults, self._with_proxy = ingesters, faults, with_proxy

    def __enter__(self) -> DeliveryWorld:
        for _ in range(self._ingesters):
            seat = Seat(self.stage, self._contexts, self.ledger, with_proxy=self._with_proxy)
            seat.start(*self._faults)
            self.seats.append(seat)
        self.env["INGESTER_ADDRESSES"] = ",".join(seat.address for seat in self.seats)
        return self

    def begin(self, rate: float = RATE) -> None:
        """Start the writers and the relay; return when operations flow."""
        assert isinstance(self.network, SimProcess)
        self.network.start_writers(rate, threads=1, seed=1)
        self.start()
        wait_until(lambda: self.operations > 0, "the first operations")

    def end(self, *, deadline_s: float = RESTS_S) -> None:
        """No more writing; the relay does what is left, the judge looks, and the figures are printed."""
        assert isinstance(self.network, SimProcess)
        self.network.stop_writers()
        self.come_to_rest(deadline_s=deadline_s)
        self.judge()
        print(self.figures())

    def judge(self, *, live: bool = True) -> None:
        super().judge(live=live)
        for seat in self.seats:
            seat.witness.assert_in_order()

    @property
    def operations(self) -> int:
        """How many the witnesses have seen."""
        return sum(seat.witness.operations() for seat in self.seats)

    def reasons(self) -> dict[str, str]:
        """Return why each ingester is away, empty when it is not; nothing while the relay does not answer."""
        status = self.status()
        return {} if status is None else {each["address"]: each["reason"] or "" for each in status["ingesters"]}

    def metric(self, name: str) -> int:
        """Return the sum of a metric's series, as the running relay tells them."""
        found = next(
            m for line in [*self.relay.err, *self.relay.out] if (m := re.search(r"^metrics: \S*?([\w.]+:\d+)", line))
        )
        with contextlib.closing(http.client.HTTPConnection(found[1], timeout=5.0)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return int(sum(sample.value for sample in samples if sample.name == name))

    @property
    def misordered(self) -> int:
        """How many operations were out of order so far."""
        return sum(len(seat.witness.violations) for seat in self.seats)

    def figures(self, *, misordered: int | None = None) -> str:
        """Say what came of it; `misordered`: as counted earlier, where something was told again on purpose since."""
        lost = len(self.differences())
        misordered = self.misordered if misordered is None else misordered
        streams = sum(seat.witness.streams for seat in self.seats)
        return (
            f"operations: {self.ledger.operations:,} delivered, {self.ledger.again:,} redelivered, {lost} lost,"
            f" {misordered} misordered; over {streams} streams;"
            f" {self.metric('relay_moved_repos_total'):,} repos moved by the relay that runs"
        )
