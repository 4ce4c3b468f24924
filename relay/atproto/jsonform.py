"""DAG-CBOR records to AT Protocol JSON and back: links as {"$link": "b..."}, bytes as {"$bytes": "..."} without padding.

`record_to_json` is exact: `json_to_record(record_to_json(block)) == block` for every block that it accepts; it refuses the
rest. A record that it refuses still is a record: it travels as DAG-CBOR. Source: PROTOCOL 3.4.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any, Final

import orjson
from cbrrr import _cbrrr

from relay.atproto import cbor
from relay.atproto.cbor import FAST_BYTES, Link, Value
from relay.atproto.cid import parse_cid_text
from relay.atproto.errors import InvalidCbor, InvalidSyntax, LimitExceeded, NotJson
from relay.atproto.limits import DEFAULT_LIMITS, Limits

# What orjson nests; other readers of JSON stop at about the same depth.
JSON_DEPTH: Final = 254
# What every reader of JSON keeps exact.
JSON_INT_MAX: Final = (1 << 53) - 1

_decode: Final[Callable[[bytes, None, bool], tuple[Any, int]]] = _cbrrr.decode_dag_cbor  # type: ignore[assignment]
_encode = _cbrrr.encode_dag_cbor
_dumps = orjson.dumps
_STRICT: Final = orjson.OPT_STRICT_INTEGER
_TAG_BYTE: Final = 0xD8  # the head of tag 42; rare elsewhere in a record, as it is no ASCII
# A tag 42 (or two bytes of a digest that look like one) that does not begin a CID as AT Protocol has them.
_FOREIGN_LINK: Final = re.compile(rb"\xd8\x2a(?!\x58\x25\x00\x01[\x71\x55]\x12\x20)", re.DOTALL)
# "$link" or "$bytes", which JSON may also spell with escapes.
_SPECIAL: Final = re.compile(rb"\$(?:link|bytes)|\\u")


def record_to_json(block: bytes, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the record's JSON, compact, keys in the order of the CBOR. `block`: DAG-CBOR bytes. About 0.8 us for 215 bytes.

    Raises NotJson when these bytes would not come back from it: not canonical DAG-CBOR, a float, an integer beyond
    +-(2**53 - 1), a map with a key `$link` or `$bytes`, a link that is no CID of AT Protocol, more than 254 levels; also when
    a container of a block above 4 KiB has more than `limits.cbor_items` items.
    """
    # The fast decoder allocates whatever nested arrays claim: a large block is walked by the strict reader first.
    if len(block) > FAST_BYTES:
        _check_with_strict_reader(block, limits)
    try:
        # In this mode cbrrr writes links and bytes as JSON has them, and refuses floats and maps that look like these.
        value, size = _decode(block, None, True)
        json: bytes = _dumps(value, None, _STRICT)
    except (ValueError, TypeError, MemoryError) as exc:
        raise _refusal(block, limits) from exc
    if size != len(block):
        raise _refusal(block, limits)
    if _TAG_BYTE in block and _FOREIGN_LINK.search(block):
        _check_with_strict_reader(block, limits)
    return json


def json_to_record(json: bytes | str) -> bytes:
    """Return the canonical DAG-CBOR of a record's JSON; of two equal keys in one object the last one counts, as everywhere.

    A number with a fraction of zero (`123.0`) is taken for the integer; base64 may be padded. Raises NotJson for anything
    that is not JSON of the AT Protocol data model. Schemas are not looked at.
    """
    value = _load(json)
    # cbrrr reads links and bytes in spellings that the specification does not have: those go the plain way.
    if not _SPECIAL.search(json.encode() if isinstance(json, str) else json):
        try:
            block: bytes = _encode(value, Link, True)
            # cbrrr lets large integers through; the way back does not, and takes 0.8 us.
            record_to_json(block)
        except (ValueError, TypeError, NotJson):
            pass  # the plain way finds out what is wrong, and knows what to do with 123.0
        else:
            return block
    return cbor.encode(_from_json(value, 0))


def check_record_json(json: bytes | str) -> bytes:
    """Do as `json_to_record`, for records of unknown origin: refuse what is no record by the data model.

    A record is an object; every `$type` in it is a nonempty text; a blob has a link, a nonempty MIME type and a size.
    """
    value = _load(json)
    if not isinstance(value, dict):
        raise NotJson("a record is a JSON object")
    block = json_to_record(json)  # first, as it bounds the nesting
    _check_types(value)
    return block


def _load(json: bytes | str) -> Any:
    try:
        return orjson.loads(json)
    except orjson.JSONDecodeError as exc:
        raise NotJson(f"not JSON: {exc}") from exc


def _from_json(value: Any, depth: int) -> Value:
    """Turn parsed JSON, inside of `depth` containers, into the data model: the plain way, which says what is wrong."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        if not -JSON_INT_MAX <= value <= JSON_INT_MAX or value != int(value):
            raise NotJson(f"the number {value} is no integer within +-(2**53 - 1)")
        return int(value)
    if depth >= JSON_DEPTH:
        raise NotJson(f"nested deeper than {JSON_DEPTH} levels")
    if isinstance(value, list):
        return [_from_json(item, depth + 1) for item in value]
    if "$link" in value or "$bytes" in value:
        return _special_from_json(value)
    return {key: _from_json(item, depth + 1) for key, item in value.items()}


def _special_from_json(value: dict[str, Any]) -> Value:
    ((key, text), *others) = value.items()
    if others or not isinstance(text, str):
        raise NotJson("$link and $bytes are the only key of their object, and their value is text")
    if key == "$link":
        try:
            return Link(parse_cid_text(text))
        except InvalidSyntax as exc:
            raise NotJson(str(exc)) from exc
    bare = text.rstrip("=")
    padded = bare + "=" * (-len(bare) % 4)
    try:
        raw = base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise NotJson(f"$bytes is not base64: {exc}") from exc
    if text not in (bare, padded) or base64.b64encode(raw).decode() != padded:
        raise NotJson("$bytes is not base64 in its one spelling (padding is optional)")
    return raw


def _check_types(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _check_types(item)
    elif isinstance(value, dict):
        kind = value.get("$type", "absent")
        if not isinstance(kind, str) or not kind:
            raise NotJson("a $type is a nonempty text")
        if kind == "blob":
            size, mime, ref = value.get("size"), value.get("mimeType"), value.get("ref")
            link = isinstance(ref, dict) and "$link" in ref
            if not (link and isinstance(mime, str) and mime and type(size) is int and size > 0):
                raise NotJson("a blob has a link `ref`, a nonempty `mimeType` and a positive `size`")
        for item in value.values():
            _check_types(item)


def _check_with_strict_reader(block: bytes, limits: Limits) -> None:
    try:
        cbor.decode(block, limits=limits, depth=JSON_DEPTH)
    except (InvalidCbor, LimitExceeded) as exc:
        raise NotJson(f"JSON cannot carry this record: {exc.args[0]}", at=exc.at) from exc


def _refusal(block: bytes, limits: Limits) -> NotJson:
    """Find out why the fast path refused this block."""
    try:
        _check_with_strict_reader(block, limits)
    except NotJson as exc:
        return exc
    return NotJson("JSON cannot carry this record: an integer beyond +-(2**53 - 1), or a map key $link or $bytes")
