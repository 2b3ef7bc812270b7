"""The body of a request: a JSON object that is valid by a published schema."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeAlias

import fastjsonschema
from starlette.requests import ClientDisconnect, Request

from charjax.serve.errors import ProtocolError, client_gone, invalid
from charjax.serve.schemas import Schema

Fields: TypeAlias = dict[str, Any]

_SECONDS = 30  # for a client to send its request
_SHOWN = 40  # characters of a wrong value in a message


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The bytes of a body.

    Raises:
      ProtocolError: it is not called JSON, is too large, or does not arrive in time or in full.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type.strip().lower() != "application/json":
        raise ProtocolError(415, "send the header Content-Type: application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise ProtocolError(413, f"body: above {max_bytes:,} bytes")
    except TimeoutError:
        raise ProtocolError(408, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise client_gone() from None
    return bytes(body)


def body_parser(schema: Schema) -> Callable[[bytes], Fields]:
    """A function from a body to its fields, with defaults for those that are missing or null.

    The function raises ProtocolError for what is not JSON in UTF-8, or not valid by the schema.
    """
    validate = fastjsonschema.compile(schema, use_default=False)
    defaults = {name: field.get("default") for name, field in schema["properties"].items()}

    def parse(body: bytes) -> Fields:
        try:
            values = json.loads(body.decode(), parse_float=_number, parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise ProtocolError(400, "the body is not JSON in UTF-8") from None
        try:
            validate(values)
        except fastjsonschema.JsonSchemaValueException as error:
            raise _invalid(error) from None
        return defaults | {name: value for name, value in values.items() if value is not None}

    return parse


def _number(text: str) -> float:
    """A JSON number; an integer also where it is written as 1.0."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON


def _invalid(error: fastjsonschema.JsonSchemaValueException) -> ProtocolError:
    """The error of a field; of the whole body, where a field is unknown or missing."""
    path, _, rule = error.message.partition(" must ")  # as "data.prompt[1] must be integer"
    field = path.removeprefix("data").removeprefix(".")
    if error.rule == "additionalProperties":
        unknown = next(name for name in error.value if name not in error.definition["properties"])
        return invalid(field or None, f"{unknown[:_SHOWN]}: no such field; see /openapi.json")
    if error.rule == "propertyNames":
        rule = "have ids of tokens as names"
    value = json.dumps(error.value, ensure_ascii=False)
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return invalid(field or None, f"{shown} must {rule}; see /openapi.json")
