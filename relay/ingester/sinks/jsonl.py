"""`jsonl:DIR`: every operation as one line of JSON, appended to files in DIR; synced to disk before it is acknowledged.

A log and not a state: the rules are not applied, the same operation may be in it twice, and whoever reads it must follow
the rules (docs/ingester-guide.md). Files are `operations-00000001.jsonl`, a new one after `?rotate_mb=` (256) megabytes; only
the last one grows. A line that a crash cut short was never acknowledged, and is removed at the next start.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson

from relay.ingester.errors import BadSinkUrl, SinkAway, SinkFailed
from relay.ingester.operations import Prepared, RefuseHook, prepare_changes
from relay.ingester.sinks.base import SinkUrl
from relay.pb import ingester_pb2 as pb

_FILE = re.compile(r"operations-(\d{8})\.jsonl")
_TAIL_BYTES = 1 << 16


class JsonlSink:
    """One process a folder, held by a lock file."""

    name = "jsonl"
    reads_operations = True

    def __init__(self, url: SinkUrl) -> None:
        self._rotate_bytes = url.number("rotate_mb", 256, at_least=1) * 1_000_000
        url.no_more_options()
        if not url.path:
            raise BadSinkUrl(f"{url.url!r} names no folder: use jsonl:DIR")
        self.folder = Path(url.path)
        self._file = -1
        self._lock = -1
        self._number = 0
        self._size = 0
        self._lines = 0

    def open(self) -> None:
        self._close_file()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            numbers = sorted(int(match[1]) for name in os.listdir(self.folder) if (match := _FILE.fullmatch(name)))
            self._open_file(numbers[-1] if numbers else 1)
        except OSError as exc:
            raise SinkFailed(f"cannot write to {self.folder}: {exc.strerror}") from exc

    def _take_lock(self) -> None:
        if self._lock >= 0:
            return
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(lock)
            raise SinkFailed(f"{self.folder} is in use by another ingester") from exc
        self._lock = lock

    def _open_file(self, number: int) -> None:
        path = self.folder / f"operations-{number:08}.jsonl"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._number = number
        self._size = _whole_lines(self._file)
        os.ftruncate(self._file, self._size)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # else a power cut can lose the file's name
        finally:
            os.close(folder)

    def prepare(self, operations: Iterable[pb.Operation | None], count: int, refuse: RefuseHook | None) -> Prepared:
        listed = list(operations)
        _, refusals = prepare_changes(listed, _no_row, refuse)
        refused = {refusal.index for refusal in refusals}
        lines = [encode_line(op) for index, op in enumerate(listed) if op is not None and index not in refused]
        return Prepared(operations=count, items=lines, refusals=refusals)

    def prepare_raw(self, raw: bytes) -> tuple[int, Prepared]:
        raise AssertionError("this sink reads operations")

    def store(self, batches: Sequence[Prepared]) -> None:
        if self._file < 0:
            raise SinkAway(f"{self.folder} is not open")
        lines = [line for batch in batches for line in batch.items]
        try:
            if self._size >= self._rotate_bytes:
                self._close_file()
                self._open_file(self._number + 1)
            _write_all(self._file, b"".join(lines))
            os.fdatasync(self._file)
        except OSError as exc:
            self._give_up_file()
            raise SinkAway(f"cannot write to {self.folder}: {exc.strerror}") from exc
        self._size += sum(map(len, lines))
        self._lines += len(lines)

    def _give_up_file(self) -> None:
        """Take back what was half written. After a failed sync the kernel may have dropped pages: go on in a new file."""
        if self._file >= 0:
            # Where this fails the next attempt takes the same file, and cuts what is half written there.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
                (self.folder / f"operations-{self._number + 1:08}.jsonl").touch()
            self._close_file()

    def details(self) -> dict[str, str]:
        return {"folder": str(self.folder), "file_number": str(self._number), "lines": str(self._lines)}

    def close(self) -> None:
        self._close_file()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _whole_lines(file: int) -> int:
    """Return the size of the file up to and with its last newline."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _TAIL_BYTES)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def encode_line(op: pb.Operation) -> bytes:
    """Return the operation as a line: the field names of the contract, absent where they are empty.

    `record` is the record's JSON as it came; `record_cbor` is base64.
    """
    line: dict[str, object] = {"type": pb.OperationType.Name(op.type), "did": op.did}
    for name in ("collection", "rkey", "cid", "rev", "seq"):
        if value := getattr(op, name):
            line[name] = value
    if op.source:
        line["source"] = pb.Source.Name(op.source) if op.source in pb.Source.values() else int(op.source)
    line["time_us"] = op.time_us
    if op.HasField("account"):
        line["account"] = {"active": op.account.active, "status": op.account.status}
    if op.HasField("identity"):
        line["identity"] = {"handle": op.identity.handle, "pds": op.identity.pds}
    if op.type == pb.REPO_END:
        line["record_count"] = op.record_count
    if op.type in (pb.REPO_BEGIN, pb.REPO_END):
        line["nsid_filter"] = list(op.nsid_filter)
    if op.record_json:
        # Line breaks in JSON are white space between tokens: inside of strings they are escaped.
        text = op.record_json.replace("\r", " ").replace("\n", " ")
        line["record"] = orjson.Fragment(text)
    elif op.record_cbor:
        line["record_cbor"] = base64.b64encode(op.record_cbor).decode()
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _no_row(*_: object) -> object:
    return True
