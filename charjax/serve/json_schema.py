"""Validates JSON values with the JSON Schemas that the server publishes in /openapi.json.

Only the keywords that those schemas use are known; another one raises KeyError in `check`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from charjax.serve.errors import ProtocolError, invalid

Schema: TypeAlias = Mapping[str, Any]

_SHOWN = 40  # characters of a wrong value in a message


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds.

    Raises:
      ProtocolError: it is not JSON in UTF-8, or not an object.
    """
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ProtocolError(400, "the body is not JSON in UTF-8") from None
    if not isinstance(values, dict):
        raise ProtocolError(400, "the body must be a JSON object, as {...}")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON


def check(value: Any, schema: Schema, name: str) -> None:
    """Checks that a value is valid.

    Args:
      value: of JSON.
      schema: what is valid.
      name: of the field, for messages; "" for the whole body.

    Raises:
      ProtocolError: it is not; the message names the field, the value and what is allowed.
    """
    if problem := _problem(value, schema, name):
        raise problem


def is_valid(value: Any, schema: Schema) -> bool:
    """Whether a value is valid."""
    return _problem(value, schema, "") is None


def _problem(value: Any, schema: Schema, name: str) -> ProtocolError | None:
    """The first error of a value."""
    for keyword, allowed in schema.items():
        if keyword in _ANNOTATIONS:
            continue
        if keyword == "anyOf":
            if not any(is_valid(value, option) for option in allowed):
                return _problem_of_all(value, allowed, name)
            continue
        if keyword in _NESTED:
            if problem := _NESTED[keyword](value, allowed, schema, name):
                return problem
        elif words := _RULES[keyword](value, allowed):
            return invalid(name, f"{_show(value)} {words}")
    return None


def _problem_of_all(value: Any, options: list[Schema], name: str) -> ProtocolError | None:
    """The error of a value that is valid under no option: that of the only one of its type."""
    of_its_type = [option for option in options if _has_type(value, option)]
    if len(of_its_type) == 1:
        return _problem(value, of_its_type[0], name)
    titles = " or ".join(option["title"] for option in options)
    return invalid(name, f"{_show(value)} must be {titles}")


def _has_type(value: Any, schema: Schema) -> bool:
    """Whether a value has the type of a schema, as far as its first item tells."""
    if _type(value, schema["type"]):
        return False
    return not isinstance(value, list) or not value or _has_type(value[0], schema["items"])


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_number(value: Any) -> bool:
    """Whether it is a finite JSON number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _is_integer(value: Any) -> bool:
    """Whether it is a JSON number without a fraction, such as 1 or 1.0."""
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_integer,
    "number": _is_number,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_ANNOTATIONS = {"title", "description", "default"}


def _type(value: Any, types: str | list[str]) -> str:
    types = [types] if isinstance(types, str) else types
    if any(_TYPES[name](value) for name in types):
        return ""
    return f"must be of type {' or '.join(types)}"


def _bounds(kind: Callable[[Any], bool], words: str, holds: Callable[[Any, Any], bool]) -> Any:
    """A rule for the values of one kind, which others pass."""
    return lambda value, bound: (
        "" if not kind(value) or holds(value, bound) else words.format(bound)
    )


_RULES: dict[str, Callable[[Any, Any], str]] = {
    "type": _type,
    "enum": lambda value, allowed: (
        "" if value in allowed else f"must be one of {', '.join(map(_show, allowed))}"
    ),
    "minimum": _bounds(_is_number, "must be at least {:,}", lambda value, bound: value >= bound),
    "maximum": _bounds(_is_number, "must be at most {:,}", lambda value, bound: value <= bound),
    "exclusiveMinimum": _bounds(_is_number, "must be above {}", lambda value, low: value > low),
    "minLength": _bounds(
        _TYPES["string"], "must have {:,} or more characters", lambda value, low: len(value) >= low
    ),
    "maxLength": _bounds(
        _TYPES["string"], "must have at most {:,} characters", lambda value, top: len(value) <= top
    ),
    "minItems": _bounds(
        _TYPES["array"], "must have {:,} or more items", lambda value, low: len(value) >= low
    ),
    "maxItems": _bounds(
        _TYPES["array"], "must have at most {:,} items", lambda value, top: len(value) <= top
    ),
    "maxProperties": _bounds(
        _TYPES["object"], "must have at most {:,} fields", lambda value, top: len(value) <= top
    ),
}


def _items(value: Any, schema: Schema, _: Schema, name: str) -> ProtocolError | None:
    if not isinstance(value, list):
        return None
    problems = (_problem(item, schema, f"{name}[{i}]") for i, item in enumerate(value))
    return next(filter(None, problems), None)


def _properties(value: Any, fields: Schema, _: Schema, name: str) -> ProtocolError | None:
    if not isinstance(value, dict):
        return None
    prefix = f"{name}." if name else ""
    known = ((field, fields[field]) for field in value if field in fields)
    problems = (_problem(value[field], schema, prefix + field) for field, schema in known)
    return next(filter(None, problems), None)


def _additional(
    value: Any, allowed: Schema | bool, schema: Schema, name: str
) -> ProtocolError | None:
    """The error of the first field that `properties` does not have."""
    if not isinstance(value, dict):
        return None
    pattern = schema.get("propertyNames", {}).get("pattern", "")
    for field in value.keys() - schema.get("properties", {}).keys():
        full = f"{name}.{field}" if name else field
        if allowed is False or not re.search(pattern, field):
            return invalid(full, "there is no such field; see /openapi.json")
        if isinstance(allowed, Mapping) and (problem := _problem(value[field], allowed, full)):
            return problem
    return None


def _required(value: Any, fields: list[str], _: Schema, name: str) -> ProtocolError | None:
    if not isinstance(value, dict):
        return None
    missing = [f"{name}.{field}" if name else field for field in fields if field not in value]
    return invalid(missing[0], "is missing") if missing else None


_NESTED: dict[str, Callable[[Any, Any, Schema, str], ProtocolError | None]] = {
    "items": _items,
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": lambda value, allowed, schema, name: None,  # read by additionalProperties
    "required": _required,
}
