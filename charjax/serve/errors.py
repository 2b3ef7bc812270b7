"""Errors of the protocol: an HTTP status and `{"error": {...}}`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from charjax.errors import InputError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ProtocolError(Exception):
    """An error response of the protocol.

    Attributes:
      status: of HTTP.
      param: the field of the request that is at fault; None: none is.
      code: a word for programs; None: the status says enough.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": _TYPES.get(self.status, kind)}
        return {"error": error | {"param": self.param, "code": self.code}}


def invalid(param: str | None, message: str) -> ProtocolError:
    """The error of a request whose field has a value that cannot be used."""
    return ProtocolError(400, f"{param}: {message}" if param else message, param=param)


def client_gone() -> ProtocolError:
    """The error of a request whose client has closed the connection."""
    return ProtocolError(499, "the client has closed the connection")


def shutting_down() -> ProtocolError:
    """The error of a request that comes, or is not answered yet, when the server ends."""
    return ProtocolError(503, "the server is shutting down")


@contextlib.contextmanager
def as_field_errors(param: str | None) -> Iterator[None]:
    """Turns an `InputError` into the error of a field; None: of the field that its message names.

    The message is written for the command line, `--top_p=2: must be ...`: flags become fields.
    """
    try:
        yield
    except InputError as error:
        message = str(error).replace("pass --unknown=unk", 'set "unknown": "unk"')
        flag = re.match(r"--(\w+)", message)
        message = re.sub(r"(?<!\S)--(?=\w)", "", message)
        if param is None and flag:
            raise ProtocolError(400, message, param=flag[1]) from None
        raise invalid(param, message) from None
