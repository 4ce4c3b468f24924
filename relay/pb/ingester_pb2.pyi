from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_TYPE_UNSPECIFIED: _ClassVar[OperationType]
    CREATE: _ClassVar[OperationType]
    UPDATE: _ClassVar[OperationType]
    DELETE: _ClassVar[OperationType]
    ACCOUNT: _ClassVar[OperationType]
    IDENTITY: _ClassVar[OperationType]
    REPO_BEGIN: _ClassVar[OperationType]
    REPO_END: _ClassVar[OperationType]

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    BACKFILL: _ClassVar[Source]
    FIREHOSE: _ClassVar[Source]
    RESYNC: _ClassVar[Source]
OPERATION_TYPE_UNSPECIFIED: OperationType
CREATE: OperationType
UPDATE: OperationType
DELETE: OperationType
ACCOUNT: OperationType
IDENTITY: OperationType
REPO_BEGIN: OperationType
REPO_END: OperationType
SOURCE_UNSPECIFIED: Source
BACKFILL: Source
FIREHOSE: Source
RESYNC: Source

class OperationRequest(_message.Message):
    __slots__ = ("batch_id", "operations")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    batch_id: int
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    def __init__(self, batch_id: _Optional[int] = ..., operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("type", "did", "collection", "rkey", "cid", "rev", "seq", "source", "time_us", "record_json", "record_cbor", "account", "identity", "record_count", "nsid_filter")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DID_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RKEY_FIELD_NUMBER: _ClassVar[int]
    CID_FIELD_NUMBER: _ClassVar[int]
    REV_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    RECORD_JSON_FIELD_NUMBER: _ClassVar[int]
    RECORD_CBOR_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    NSID_FILTER_FIELD_NUMBER: _ClassVar[int]
    type: OperationType
    did: str
    collection: str
    rkey: str
    cid: str
    rev: str
    seq: int
    source: Source
    time_us: int
    record_json: str
    record_cbor: bytes
    account: AccountStatus
    identity: Identity
    record_count: int
    nsid_filter: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, type: _Optional[_Union[OperationType, str]] = ..., did: _Optional[str] = ..., collection: _Optional[str] = ..., rkey: _Optional[str] = ..., cid: _Optional[str] = ..., rev: _Optional[str] = ..., seq: _Optional[int] = ..., source: _Optional[_Union[Source, str]] = ..., time_us: _Optional[int] = ..., record_json: _Optional[str] = ..., record_cbor: _Optional[bytes] = ..., account: _Optional[_Union[AccountStatus, _Mapping]] = ..., identity: _Optional[_Union[Identity, _Mapping]] = ..., record_count: _Optional[int] = ..., nsid_filter: _Optional[_Iterable[str]] = ...) -> None: ...

class AccountStatus(_message.Message):
    __slots__ = ("active", "status")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    active: bool
    status: str
    def __init__(self, active: _Optional[bool] = ..., status: _Optional[str] = ...) -> None: ...

class Identity(_message.Message):
    __slots__ = ("handle", "pds")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    PDS_FIELD_NUMBER: _ClassVar[int]
    handle: str
    pds: str
    def __init__(self, handle: _Optional[str] = ..., pds: _Optional[str] = ...) -> None: ...

class OperationResponse(_message.Message):
    __slots__ = ("batch_id", "errors")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    batch_id: int
    errors: _containers.RepeatedCompositeFieldContainer[OperationError]
    def __init__(self, batch_id: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[OperationError, _Mapping]]] = ...) -> None: ...

class OperationError(_message.Message):
    __slots__ = ("index", "code", "message")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODE_UNSPECIFIED: _ClassVar[OperationError.Code]
        RETRY: _ClassVar[OperationError.Code]
        REJECT: _ClassVar[OperationError.Code]
    CODE_UNSPECIFIED: OperationError.Code
    RETRY: OperationError.Code
    REJECT: OperationError.Code
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    index: int
    code: OperationError.Code
    message: str
    def __init__(self, index: _Optional[int] = ..., code: _Optional[_Union[OperationError.Code, str]] = ..., message: _Optional[str] = ...) -> None: ...

class HealthCheckRequest(_message.Message):
    __slots__ = ("service",)
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    service: str
    def __init__(self, service: _Optional[str] = ...) -> None: ...

class HealthCheckResponse(_message.Message):
    __slots__ = ("status", "message", "details")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[HealthCheckResponse.Status]
        SERVING: _ClassVar[HealthCheckResponse.Status]
        NOT_SERVING: _ClassVar[HealthCheckResponse.Status]
    STATUS_UNSPECIFIED: HealthCheckResponse.Status
    SERVING: HealthCheckResponse.Status
    NOT_SERVING: HealthCheckResponse.Status
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    status: HealthCheckResponse.Status
    message: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, status: _Optional[_Union[HealthCheckResponse.Status, str]] = ..., message: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...
