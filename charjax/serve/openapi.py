"""The OpenAPI document of the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from starlette.responses import Response

from charjax.serve.answers import ERROR
from charjax.serve.schemas import TEXT, Schema

NAME = {"name": "name", "in": "path", "required": True, "schema": TEXT}
MODEL = {"name": "model", "in": "query", "required": False, "schema": TEXT}

_ERRORS = {
    "400": "A field is not valid.",
    "401": "The key is missing or wrong.",
    "403": "The Host header names another host.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The content type is not application/json.",
    "429": "Too many texts are waiting.",
    "500": "The text could not be written.",
    "503": "The server is shutting down.",
    "504": "The time limit is over.",
}


class Operation(NamedTuple):
    """What a path does.

    Attributes:
      path: as a starlette route has it.
      handle: makes the response, from the request and, if it has a body, the body's fields; its
        docstring is the summary in the document.
      answer: its schema.
      body: the schema of the request's body; None: GET, without one.
      parameter: in the path or in the query; None: there is none.
    """

    path: str
    handle: Callable[..., Awaitable[Response]]
    answer: Schema
    body: Schema | None = None
    parameter: Schema | None = None


def openapi(operations: Sequence[Operation], *, has_key: bool) -> dict[str, Any]:
    """The document, of OpenAPI 3.1.

    Args:
      operations: of the server.
      has_key: whether clients must send a key.
    """
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "charjax serve", "version": "1"},
        "paths": dict(map(_path, operations)),
        "components": {"schemas": {"Error": ERROR}},
    }
    if has_key:
        bearer = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"key": bearer}
        document["security"] = [{"key": []}]
    return document


def _path(operation: Operation) -> tuple[str, dict[str, Any]]:
    """The path of an operation, and what the document says about it."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {code: {"description": about, "content": error} for code, about in _ERRORS.items()}
    content: dict[str, Any] = {"application/json": {"schema": operation.answer}}
    ok = {"description": "OK", "content": content}
    about: dict[str, Any] = {"summary": operation.handle.__doc__, "responses": {"200": ok} | errors}
    if operation.parameter:
        about["parameters"] = [operation.parameter]
    path = operation.path.replace(":path", "")
    if operation.body is None:
        return path, {"get": about}
    about["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": operation.body}},
    }
    if "stream" in operation.body["properties"]:
        content["text/event-stream"] = {}
    return path, {"post": about}
