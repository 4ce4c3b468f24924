from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Part(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PART_UNSPECIFIED: _ClassVar[Part]
    DISCOVERY: _ClassVar[Part]
    BACKFILL: _ClassVar[Part]
    TAIL: _ClassVar[Part]
PART_UNSPECIFIED: Part
DISCOVERY: Part
BACKFILL: Part
TAIL: Part

class AddReposRequest(_message.Message):
    __slots__ = ("dids",)
    DIDS_FIELD_NUMBER: _ClassVar[int]
    dids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dids: _Optional[_Iterable[str]] = ...) -> None: ...

class AddReposResponse(_message.Message):
    __slots__ = ("added", "again", "known")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    added: int
    again: int
    known: int
    def __init__(self, added: _Optional[int] = ..., again: _Optional[int] = ..., known: _Optional[int] = ...) -> None: ...

class RemoveReposRequest(_message.Message):
    __slots__ = ("dids",)
    DIDS_FIELD_NUMBER: _ClassVar[int]
    dids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dids: _Optional[_Iterable[str]] = ...) -> None: ...

class RemoveReposResponse(_message.Message):
    __slots__ = ("removed", "not_tracked")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    NOT_TRACKED_FIELD_NUMBER: _ClassVar[int]
    removed: int
    not_tracked: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, removed: _Optional[int] = ..., not_tracked: _Optional[_Iterable[str]] = ...) -> None: ...

class ResyncReposRequest(_message.Message):
    __slots__ = ("dids", "all", "host", "changed_since", "collections")
    DIDS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CHANGED_SINCE_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    dids: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    host: str
    changed_since: float
    collections: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dids: _Optional[_Iterable[str]] = ..., all: _Optional[bool] = ..., host: _Optional[str] = ..., changed_since: _Optional[float] = ..., collections: _Optional[_Iterable[str]] = ...) -> None: ...

class ResyncReposResponse(_message.Message):
    __slots__ = ("repos", "not_tracked", "failed")
    REPOS_FIELD_NUMBER: _ClassVar[int]
    NOT_TRACKED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    repos: int
    not_tracked: _containers.RepeatedScalarFieldContainer[str]
    failed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, repos: _Optional[int] = ..., not_tracked: _Optional[_Iterable[str]] = ..., failed: _Optional[_Iterable[str]] = ...) -> None: ...

class Repo(_message.Message):
    __slots__ = ("did", "state", "reason", "rev", "host", "attempts", "records")
    DID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REV_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    did: str
    state: str
    reason: str
    rev: str
    host: str
    attempts: int
    records: int
    def __init__(self, did: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., rev: _Optional[str] = ..., host: _Optional[str] = ..., attempts: _Optional[int] = ..., records: _Optional[int] = ...) -> None: ...

class ShowRepoRequest(_message.Message):
    __slots__ = ("did",)
    DID_FIELD_NUMBER: _ClassVar[int]
    did: str
    def __init__(self, did: _Optional[str] = ...) -> None: ...

class ShowRepoResponse(_message.Message):
    __slots__ = ("repo", "tracked", "json")
    REPO_FIELD_NUMBER: _ClassVar[int]
    TRACKED_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    repo: Repo
    tracked: bool
    json: str
    def __init__(self, repo: _Optional[_Union[Repo, _Mapping]] = ..., tracked: _Optional[bool] = ..., json: _Optional[str] = ...) -> None: ...

class ListReposRequest(_message.Message):
    __slots__ = ("states", "host", "limit")
    STATES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[str]
    host: str
    limit: int
    def __init__(self, states: _Optional[_Iterable[str]] = ..., host: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedScalarFieldContainer[Part]
    def __init__(self, parts: _Optional[_Iterable[_Union[Part, str]]] = ...) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ("paused",)
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    paused: _containers.RepeatedScalarFieldContainer[Part]
    def __init__(self, paused: _Optional[_Iterable[_Union[Part, str]]] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedScalarFieldContainer[Part]
    def __init__(self, parts: _Optional[_Iterable[_Union[Part, str]]] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ("paused",)
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    paused: _containers.RepeatedScalarFieldContainer[Part]
    def __init__(self, paused: _Optional[_Iterable[_Union[Part, str]]] = ...) -> None: ...

class SetHostLimitsRequest(_message.Message):
    __slots__ = ("host", "requests_per_sec", "connections")
    HOST_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_SEC_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    host: str
    requests_per_sec: float
    connections: int
    def __init__(self, host: _Optional[str] = ..., requests_per_sec: _Optional[float] = ..., connections: _Optional[int] = ...) -> None: ...

class SetHostLimitsResponse(_message.Message):
    __slots__ = ("requests_per_sec", "connections")
    REQUESTS_PER_SEC_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    requests_per_sec: float
    connections: int
    def __init__(self, requests_per_sec: _Optional[float] = ..., connections: _Optional[int] = ...) -> None: ...

class SetFilterRequest(_message.Message):
    __slots__ = ("patterns",)
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    patterns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, patterns: _Optional[_Iterable[str]] = ...) -> None: ...

class SetFilterResponse(_message.Message):
    __slots__ = ("patterns", "widened")
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    WIDENED_FIELD_NUMBER: _ClassVar[int]
    patterns: _containers.RepeatedScalarFieldContainer[str]
    widened: bool
    def __init__(self, patterns: _Optional[_Iterable[str]] = ..., widened: _Optional[bool] = ...) -> None: ...

class SetIngestersRequest(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class SetIngestersResponse(_message.Message):
    __slots__ = ("joining", "leaving")
    JOINING_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    joining: _containers.RepeatedScalarFieldContainer[str]
    leaving: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, joining: _Optional[_Iterable[str]] = ..., leaving: _Optional[_Iterable[str]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("interval_sec",)
    INTERVAL_SEC_FIELD_NUMBER: _ClassVar[int]
    interval_sec: float
    def __init__(self, interval_sec: _Optional[float] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("phase", "reason", "repos", "paused", "json")
    class ReposEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REPOS_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    phase: str
    reason: str
    repos: _containers.ScalarMap[str, int]
    paused: _containers.RepeatedScalarFieldContainer[Part]
    json: str
    def __init__(self, phase: _Optional[str] = ..., reason: _Optional[str] = ..., repos: _Optional[_Mapping[str, int]] = ..., paused: _Optional[_Iterable[_Union[Part, str]]] = ..., json: _Optional[str] = ...) -> None: ...
