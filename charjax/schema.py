"""Limits of dataclass fields; dataclasses from configs and from JSON, validated.

`charjax/config.py` has the fields themselves, `charjax/conditions.py` the conditions between them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from charjax.errors import InputError

_T = typing.TypeVar("_T")
_S = typing.TypeVar("_S")

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


def number(
    default: int | float,
    low: int | float = 0,
    high: int | float = 2**31 - 1,
    words: str = "",
    *,
    excludes_low: bool = False,
) -> Any:
    """A numeric field in [low, high], or (low, high]; messages may say `words` of the limits."""
    limits = {"low": low, "high": high, "words": words, "excludes_low": excludes_low}
    return dataclasses.field(default=default, metadata=limits)


def choice(default: str, *others: str) -> Any:
    """A text field that must be one of the given words."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


def key_of(table: Mapping[str, Any]) -> Any:
    """A text field that must be a key of the table; the first key is the default."""
    return dataclasses.field(default=next(iter(table)), metadata={"choices": table})


def name_of_type(wanted: Any) -> str:
    """The type in words, such as "a finite number"; one that has none here is a mapping."""
    name = _NAMES.get(typing.get_origin(wanted) or wanted) or _NAMES.get(wanted)
    return name or "a mapping of names to values"


def field_type(schema: Any, name: str) -> Any:
    """The type of a field in nested dataclasses, by a dotted name such as "model.hidden".

    Raises:
      InputError: there is no such field.
    """
    for part in name.split("."):
        fields = _fields(schema) or {}
        if part not in fields:
            nearest = difflib.get_close_matches(part, fields, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "charjax/config.py lists them"
            raise InputError(f"no such field; {hint}")
        schema = fields[part].type
    return schema


def check_limits(value: Any, limits: Mapping[str, Any], path: str) -> None:
    """Raises InputError for a value outside the limits in a field's metadata."""
    if "choices" in limits and value not in limits["choices"]:
        raise InputError(f"{path}={value!r}: must be one of {', '.join(limits['choices'])}")
    if "low" not in limits:
        return
    low, high, excludes_low = limits["low"], limits["high"], limits.get("excludes_low")
    try:
        # numpy would cast the limits to the value's dtype, and overflow.
        value = value.item() if hasattr(value, "item") else value
        is_inside = low <= value <= high and not (excludes_low and value == low)
    except (TypeError, ValueError):
        raise InputError(f"{path}={_shortened(value)}: must be {name_of_type(float)}") from None
    if not is_inside:
        words = f"above {low} and at most {high}" if excludes_low else f"from {low} to {high}"
        raise InputError(f"{path}={value}: must be {limits.get('words') or words}")


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field in nested mappings, as `dataclasses.asdict` returns."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@typing.overload
def parse(wanted: type[_T], value: Any, where: str) -> _T: ...


@typing.overload
def parse(wanted: Any, value: Any, where: str) -> Any: ...


def parse(wanted: Any, value: Any, where: str) -> Any:
    """A value of JSON, or of a config, as an instance of a type, with every field checked.

    Args:
      wanted: str, bool, int, float (finite; an int becomes one), Any, `T | None`, `int | str`,
        `list[T]`, `tuple[T, ...]`, `Mapping[str, T]`, or a dataclass or NamedTuple of these, of
        which only fields with defaults may be missing. `tuple[int | str, ...]` may also be a text
        such as "1,name".
      value: as `json.loads` returns it, a `ConfigDict`, or an instance of the dataclass.
      where: what messages call it; "--" if its fields are flags.

    Raises:
      InputError: the value, or a part of it, has another type or is outside its limits.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if dataclasses.is_dataclass(wanted) and type(value) is wanted:
        value = dataclasses.asdict(value)
    is_mapping = hasattr(value, "items")  # a ConfigDict has it, yet is no Mapping
    if wanted is Any:
        return value
    if type(None) in arguments:
        return None if value is None else parse(arguments[0], value, where)
    if wanted == tuple[int | str, ...] and isinstance(value, str):
        value = [int(part) if part.isdecimal() else part for part in value.split(",") if part]
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return origin(parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if is_mapping and isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: parse(arguments[1], v, f"{where}.{name}") for name, v in value.items()}
    if is_mapping and _fields(wanted) is not None:
        return _parse_fields(wanted, value, where)
    if wanted is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    is_valid = type(value) is wanted or (wanted == int | str and type(value) in (int, str))
    is_finite = type(value) is not float or math.isfinite(value)
    if not (is_valid and is_finite) or (wanted is int and abs(value) >= 2**63):
        raise InputError(f"{where}={_shortened(value)}: must be {name_of_type(wanted)}")
    return value


def parse_pair(first: type[_T], second: type[_S], values: Any, where: str) -> tuple[_T, _S]:
    """A JSON object as two dataclasses or NamedTuples, which divide its fields between them.

    Args:
      first: the type of the first; also gets the fields that neither has, and names one.
      second: the type of the second, without a field of the same name.
      values: as `json.loads` returns it.
      where: what messages call it.

    Raises:
      InputError: it is no object, neither type has one of its fields, or `parse` refuses a part.
    """
    fields = parse(Mapping[str, Any], values, where)
    names = _fields(typing.cast(Any, second)) or {}
    return (
        parse(first, {name: v for name, v in fields.items() if name not in names}, where),
        parse(second, {name: v for name, v in fields.items() if name in names}, where),
    )


def _parse_fields(wanted: Any, values: Mapping[str, Any], where: str) -> Any:
    fields, parsed = _fields(wanted) or {}, {}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{where}: no field {_shortened(name)}; there are {', '.join(fields)}")
        path = f"--{name}" if where == "--" else f"{where}.{name}"
        parsed[name] = parse(fields[name].type, value, path)
        check_limits(parsed[name], fields[name].limits, path)
    missing = [name for name in fields if fields[name].is_required and name not in parsed]
    if missing:
        raise InputError(f"{where}: has no field {missing[0]}")
    return wanted(**parsed)


class _Field(NamedTuple):
    """A field of a dataclass or NamedTuple; `limits` are those of `check_limits`."""

    type: Any
    is_required: bool
    limits: Mapping[str, Any]


@functools.cache  # a record has hundreds of leaves of one type
def _fields(wanted: Any) -> dict[str, _Field] | None:
    """The fields of a dataclass or NamedTuple by name; None for other types."""
    is_dataclass = dataclasses.is_dataclass(wanted)
    if not is_dataclass and not hasattr(wanted, "_field_defaults"):
        return None
    types = typing.get_type_hints(wanted)
    limits = {f.name: f.metadata for f in dataclasses.fields(wanted)} if is_dataclass else {}
    return {
        name: _Field(types[name], parameter.default is parameter.empty, limits.get(name, {}))
        for name, parameter in inspect.signature(wanted).parameters.items()
    }


def integer(value: Any) -> int | None:
    """An integer of Python, numpy or JAX as one of Python; None for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_integer(name: str, value: object, low: int | None = None, high: int = 2**31 - 1) -> int:
    """An integer in [low, high] as one of Python; for others an InputError, which says `name`."""
    number = integer(value)
    if number is None:
        raise InputError(f"{name}={value!r}: must be an integer")
    if low is not None:
        check_limits(number, {"low": low, "high": high}, name)
    return number


def check_flags(options: Any) -> None:
    """Raises InputError, which names the flag, for a field of another type or out of range."""
    for name, field in (_fields(typing.cast(Any, type(options))) or {}).items():
        flag, value = f"--{name}", getattr(options, name)
        if field.type is int:
            check_integer(flag, value)
        elif field.type in (str, bool):
            parse(field.type, value, flag)
        check_limits(value, field.limits, flag)


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that is finite in float32, as all metrics are."""
    return type(value) in (int, float) and abs(value) <= _MAX_FLOAT32


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
