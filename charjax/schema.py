"""Limits of dataclass fields, and dataclasses from nested mappings, validated.

`charjax/config.py` has the fields themselves and the conditions between them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from charjax.errors import InputError


def number(default: int | float, low: int | float = 0, high: int | float = 2**31 - 1) -> Any:
    """A numeric field in [low, high]; by default, what fits the device's int32."""
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
    types = typing.get_type_hints(schema)
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
            _check_limits(built[name], fields[name].metadata, path)
    return schema(**built)


def _coerce(value: Any, wanted: Any, path: str) -> Any:
    """The value, an int as float or a list as tuple where that is wanted; else InputError."""
    if typing.get_origin(wanted) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(wanted)[0]
        return tuple(_coerce(v, item, path) for v in value)
    if wanted is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if type(value) is wanted:
        return value
    name = getattr(wanted, "__name__", str(wanted))
    raise InputError(f"{path}={value!r}: must be of type {name}, not {type(value).__name__}")


def _check_limits(value: Any, limits: Mapping[str, Any], path: str) -> None:
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
