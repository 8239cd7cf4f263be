import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ComparisonOp(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPARISON_OP_UNSPECIFIED: _ClassVar[ComparisonOp]
    COMPARISON_OP_EQ: _ClassVar[ComparisonOp]
    COMPARISON_OP_NE: _ClassVar[ComparisonOp]
    COMPARISON_OP_LT: _ClassVar[ComparisonOp]
    COMPARISON_OP_LE: _ClassVar[ComparisonOp]
    COMPARISON_OP_GT: _ClassVar[ComparisonOp]
    COMPARISON_OP_GE: _ClassVar[ComparisonOp]
COMPARISON_OP_UNSPECIFIED: ComparisonOp
COMPARISON_OP_EQ: ComparisonOp
COMPARISON_OP_NE: ComparisonOp
COMPARISON_OP_LT: ComparisonOp
COMPARISON_OP_LE: ComparisonOp
COMPARISON_OP_GT: ComparisonOp
COMPARISON_OP_GE: ComparisonOp

class Filter(_message.Message):
    __slots__ = ("comparison", "membership", "exists", "prefix", "all_of", "any_of", "negation")
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    ALL_OF_FIELD_NUMBER: _ClassVar[int]
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    NEGATION_FIELD_NUMBER: _ClassVar[int]
    comparison: Comparison
    membership: Membership
    exists: Exists
    prefix: Prefix
    all_of: FilterList
    any_of: FilterList
    negation: Filter
    def __init__(self, comparison: _Optional[_Union[Comparison, _Mapping]] = ..., membership: _Optional[_Union[Membership, _Mapping]] = ..., exists: _Optional[_Union[Exists, _Mapping]] = ..., prefix: _Optional[_Union[Prefix, _Mapping]] = ..., all_of: _Optional[_Union[FilterList, _Mapping]] = ..., any_of: _Optional[_Union[FilterList, _Mapping]] = ..., negation: _Optional[_Union[Filter, _Mapping]] = ...) -> None: ...

class FilterList(_message.Message):
    __slots__ = ("operands",)
    OPERANDS_FIELD_NUMBER: _ClassVar[int]
    operands: _containers.RepeatedCompositeFieldContainer[Filter]
    def __init__(self, operands: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("field", "op", "value")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    field: str
    op: ComparisonOp
    value: FilterValue
    def __init__(self, field: _Optional[str] = ..., op: _Optional[_Union[ComparisonOp, str]] = ..., value: _Optional[_Union[FilterValue, _Mapping]] = ...) -> None: ...

class Membership(_message.Message):
    __slots__ = ("field", "values", "negated")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NEGATED_FIELD_NUMBER: _ClassVar[int]
    field: str
    values: _containers.RepeatedCompositeFieldContainer[FilterValue]
    negated: bool
    def __init__(self, field: _Optional[str] = ..., values: _Optional[_Iterable[_Union[FilterValue, _Mapping]]] = ..., negated: _Optional[bool] = ...) -> None: ...

class Exists(_message.Message):
    __slots__ = ("field",)
    FIELD_FIELD_NUMBER: _ClassVar[int]
    field: str
    def __init__(self, field: _Optional[str] = ...) -> None: ...

class Prefix(_message.Message):
    __slots__ = ("field", "prefix")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    field: str
    prefix: str
    def __init__(self, field: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...

class FilterValue(_message.Message):
    __slots__ = ("string_value", "int64_value", "float64_value", "bool_value", "timestamp_value")
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT64_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT64_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_VALUE_FIELD_NUMBER: _ClassVar[int]
    string_value: str
    int64_value: int
    float64_value: float
    bool_value: bool
    timestamp_value: _timestamp_pb2.Timestamp
    def __init__(self, string_value: _Optional[str] = ..., int64_value: _Optional[int] = ..., float64_value: _Optional[float] = ..., bool_value: _Optional[bool] = ..., timestamp_value: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
