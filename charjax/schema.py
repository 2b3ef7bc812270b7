"""Limits of dataclass fields; dataclasses from nested mappings and from JSON, validated.

`charjax/config.py` has the fields themselves and the conditions between them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from charjax.errors import InputError

_T = typing.TypeVar("_T")

_MAX_FLOAT32 = 3.4028234663852886e38
# What messages call a type.
_NAMES: dict[Any, str] = {
    str: "a string",
    int | str: "an integer or a string",
    bool: "true or false",
    int: "an integer of 64 bits",
    float: "a finite number",
    list: "a list",
    tuple: "a list",
}


def number(default: int | float, low: int | float = 0, high: int | float = 2**31 - 1) -> Any:
    """A numeric field in [low, high]; the default limit is the largest int32."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def choice(default: str, *others: str) -> Any:
    """A text field that must be one of the given words."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


def key_of(table: Mapping[str, Any]) -> Any:
    """A text field that must be a key of the table; the first key is the default."""
    return dataclasses.field(default=next(iter(table)), metadata={"choices": table})


def build(schema: type, values: Any, where: str) -> Any:
    """An instance of a dataclass from nested mappings; missing fields take their defaults.

    Args:
      schema: a dataclass, whose fields may be dataclasses.
      values: a mapping or a `ConfigDict`.
      where: what messages call the outermost mapping, such as "config".

    Raises:
      InputError: a field is unknown, has the wrong type or is outside its limits.
    """
    if not hasattr(values, "items"):  # a ConfigDict has it, yet is no Mapping
        raise InputError(f"{where}={values!r}: must be a mapping of fields to values")
    types = _type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise InputError(f"{where}: no field {unknown[0]!r}; there are {', '.join(fields)}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        path, wanted = f"{where}.{name}", types[name]
        if dataclasses.is_dataclass(wanted):
            built[name] = build(typing.cast(type, wanted), value, path)
        else:
            built[name] = _coerce(value, wanted, path)
            check_limits(built[name], fields[name].metadata, path)
    return schema(**built)


def rebuild(config: _T, where: str) -> _T:
    """The same dataclass by `build`, which checks what Python code has made; errors as there."""
    rebuilt: _T = build(type(config), dataclasses.asdict(typing.cast(Any, config)), where)
    return rebuilt


def _coerce(value: Any, wanted: Any, path: str) -> Any:
    """The value as type `wanted`: an int may become a float, a list a tuple; else InputError.

    A text such as "1,name" becomes (1, "name") where the tuple may hold text.
    """
    if isinstance(value, str) and wanted == tuple[int | str, ...]:
        value = [int(v) if v.isdecimal() else v for v in value.split(",") if v]
    if typing.get_origin(wanted) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(wanted)[0]
        return tuple(_coerce(v, item, path) for v in value)
    if wanted is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if type(value) is wanted or (wanted == int | str and type(value) in (int, str)):
        return value
    raise InputError(f"{path}={value!r}: must be {name_of_type(wanted)}")


def name_of_type(wanted: Any) -> str:
    """The type in words, such as "a finite number"; one that has none here is a JSON object."""
    return _NAMES.get(typing.get_origin(wanted) or wanted) or _NAMES.get(wanted, "a JSON object")


def field_type(schema: Any, name: str) -> Any:
    """The type of a field in nested dataclasses, by a dotted name such as "model.hidden".

    Raises:
      InputError: there is no such field.
    """
    for part in name.split("."):
        is_section = isinstance(schema, type) and dataclasses.is_dataclass(schema)
        types = _type_hints(schema) if is_section else {}
        if part not in types:
            nearest = difflib.get_close_matches(part, types, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "charjax/config.py lists them"
            raise InputError(f"no such field; {hint}")
        schema = types[part]
    return schema


def check_limits(value: Any, limits: Mapping[str, Any], path: str) -> None:
    """Raises InputError for a value outside the limits in a field's metadata."""
    if "choices" in limits and value not in limits["choices"]:
        raise InputError(f"{path}={value!r}: must be one of {', '.join(limits['choices'])}")
    if "low" in limits and not limits["low"] <= value <= limits["high"]:
        raise InputError(f"{path}={value}: must be from {limits['low']} to {limits['high']}")


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field in nested mappings, as `dataclasses.asdict` returns."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def parse(wanted: Any, value: Any, where: str) -> Any:
    """A value of JSON as an instance of a type, with every field checked.

    Args:
      wanted: str, bool, int, float (finite; an int becomes one), Any, `T | None`, `list[T]`,
        `tuple[T, ...]`, `Mapping[str, T]`, or a dataclass or NamedTuple of these, of which only
        fields with defaults may be missing.
      value: as `json.loads` returns it.
      where: what messages call it.

    Raises:
      InputError: the value, or a part of it, has another type.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if type(None) in arguments:
        return None if value is None else parse(arguments[0], value, where)
    if origin in (list, tuple) and isinstance(value, list):
        return origin(parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict) and isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: parse(arguments[1], v, f"{where}.{name}") for name, v in value.items()}
    if isinstance(value, dict) and _required(wanted) is not None:
        return _parse_fields(wanted, value, where)
    if wanted is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    is_valid = type(value) is wanted and (wanted is not float or math.isfinite(value))
    if not is_valid or (wanted is int and abs(value) >= 2**63):
        raise InputError(f"{where}: must be {name_of_type(wanted)}, not {_shortened(value)}")
    return value


def parse_parts(wanted: Sequence[type], values: Any, where: str) -> list[Any]:
    """A JSON object as several dataclasses or NamedTuples, which divide its fields among them.

    Args:
      wanted: the types; no two have a field of the same name.
      values: as `json.loads` returns it.
      where: what messages call it.

    Raises:
      InputError: it is no object, no type has one of its fields, or `parse` refuses a part.
    """
    names: list[set[str]] = [set(_type_hints(one)) for one in wanted]
    fields = parse(Mapping[str, Any], values, where)
    # A field that no type has goes to the first, which names it in its message.
    rest = fields.keys() - set[str]().union(*names[1:])
    return [
        parse(one, {name: fields[name] for name in fields if name in mine}, where)
        for one, mine in zip(wanted, [rest, *names[1:]], strict=True)
    ]


def _parse_fields(wanted: Any, values: Mapping[str, Any], where: str) -> Any:
    types, required = _type_hints(wanted), _required(wanted) or {}
    unknown = next((name for name in values if name not in required), None)
    if unknown is not None:
        raise InputError(f"{where}: has an unknown field {_shortened(unknown)}")
    missing = [name for name in required if required[name] and name not in values]
    if missing:
        raise InputError(f"{where}: has no field {missing[0]}")
    return wanted(**{name: parse(types[name], v, f"{where}.{name}") for name, v in values.items()})


@functools.cache  # a record has hundreds of leaves of one type
def _type_hints(wanted: Any) -> dict[str, Any]:
    return typing.get_type_hints(wanted)


@functools.cache
def _required(wanted: Any) -> dict[str, bool] | None:
    """{field: whether it must be given} of a dataclass or NamedTuple; None for other types."""
    if dataclasses.is_dataclass(wanted):
        missing, fields = dataclasses.MISSING, dataclasses.fields(wanted)
        return {f.name: f.default is missing and f.default_factory is missing for f in fields}
    if hasattr(wanted, "_field_defaults"):
        return {name: name not in wanted._field_defaults for name in wanted._fields}
    return None


def integer(value: Any) -> int | None:
    """An integer of Python, numpy or JAX as one of Python; None for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_integer(name: str, value: object) -> None:
    """Raises InputError, which calls it `name`, for a value that is no integer."""
    if integer(value) is None:
        raise InputError(f"{name}={value!r}: must be an integer")


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that is finite in float32, as all metrics are."""
    return type(value) in (int, float) and abs(value) <= _MAX_FLOAT32


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
