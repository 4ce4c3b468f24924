"""`null:` counts and throws away: how fast is everything else?

`null:` splits batches without reading the operations: 17 ns each. `null:?count=1` reads and checks each, and counts by type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from relay.ingester.operations import Prepared, RefuseHook, prepare_changes, split_batch
from relay.ingester.sinks.base import SinkUrl
from relay.pb import ingester_pb2 as pb


class NullSink:
    """Promises nothing: what it acknowledged is gone."""

    name = "null"

    def __init__(self, url: SinkUrl) -> None:
        self.reads_operations = url.number("count", 0, at_least=0) > 0
        url.no_more_options()
        self._types: Counter[str] = Counter()

    def open(self) -> None:
        pass

    def prepare(self, operations: Iterable[pb.Operation | None], count: int, refuse: RefuseHook | None) -> Prepared:
        listed = list(operations)
        _, refusals = prepare_changes(listed, _no_row, refuse)
        refused = {refusal.index for refusal in refusals}
        types = [op.type for index, op in enumerate(listed) if op is not None and index not in refused]
        return Prepared(operations=count, items=types, refusals=refusals)

    def prepare_raw(self, raw: bytes) -> tuple[int, Prepared]:
        batch_id, parts = split_batch(raw)
        return batch_id, Prepared(operations=len(parts), size_bytes=len(raw))

    def store(self, batches: Sequence[Prepared]) -> None:
        for batch in batches:
            self._types.update(pb.OperationType.Name(kind) for kind in batch.items)

    def details(self) -> dict[str, str]:
        return {f"stored_{name.lower()}": str(count) for name, count in sorted(self._types.copy().items())}

    def close(self) -> None:
        pass


def _no_row(*_: object) -> object:
    return True
