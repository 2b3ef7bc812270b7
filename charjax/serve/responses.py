"""Answers of HTTP: JSON, errors in the protocol's form, and streams of server-sent events."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from charjax.serve.errors import ProtocolError

_RETRY_S = 1  # after which a full queue may have a place


def to_json(values: Any) -> str:
    """JSON in ASCII, so that half of a surrogate pair in a message is no error."""
    return json.dumps(values, allow_nan=False, separators=(",", ":"))


def json_response(
    values: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """The response with a JSON body."""
    return Response(to_json(values), status, headers, "application/json")


def error_response(error: ProtocolError) -> Response:
    """The response of an error."""
    headers = {"Retry-After": str(_RETRY_S)} if error.status == 429 else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(error.body(), error.status, headers)


def event(values: Any) -> str:
    """One server-sent event."""
    return f"data: {values if isinstance(values, str) else to_json(values)}\n\n"
