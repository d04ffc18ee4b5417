"""Claims and metadata as plain values. Messages have them as `google.protobuf.Struct`."""

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

from google.protobuf.struct_pb2 import ListValue, NullValue, Struct, Value

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A value of JSON."""

# The largest integer up to which doubles hold all integers.
_MAX_EXACT_INTEGER: Final = 2**53


def to_struct(values: Mapping[str, Json]) -> Struct:
    """Converts a JSON object to a `Struct`, as `CreateSessionRequest` has it for claims.

    Numbers become doubles, which do not hold integers beyond 2^53 exactly: send those as strings.
    """
    return Struct(fields={name: _to_value(value) for name, value in values.items()})


def _to_value(value: Json) -> Value:
    match value:
        case None:
            return Value(null_value=NullValue.NULL_VALUE)
        case bool():
            return Value(bool_value=value)
        case int() | float():
            return Value(number_value=value)
        case str():
            return Value(string_value=value)
        case list():
            return Value(list_value=ListValue(values=map(_to_value, value)))
        case dict():
            return Value(struct_value=to_struct(value))


def from_struct(message: Struct) -> dict[str, Json]:
    """Converts a `Struct` to a JSON object.

    Whole numbers up to 2^53 become integers. A number that JSON cannot write becomes `None`.
    """
    return {name: _from_value(value) for name, value in message.fields.items()}


def _from_value(value: Value) -> Json:
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "string_value":
            return value.string_value
        case "number_value":
            return _from_number(value.number_value)
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
        case "struct_value":
            return from_struct(value.struct_value)
        case _:
            return None


def _from_number(number: float) -> Json:
    if not math.isfinite(number):
        return None
    if number.is_integer() and abs(number) <= _MAX_EXACT_INTEGER:
        return int(number)
    return number
