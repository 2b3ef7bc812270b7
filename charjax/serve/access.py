"""Access control: the key and the Host header are checked before a request is read.

A web page of another origin reaches no model. The server reads JSON alone, which a browser sends to
another origin only if that allows it (CORS). A page whose domain resolves to this machine (DNS
rebinding) has the same origin, but its Host header names no allowed host.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from charjax.serve.errors import ProtocolError
from charjax.serve.responses import error_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_OPEN_PATHS = ("/", "/health")  # need no key


class AccessChecks:
    """ASGI middleware that refuses requests without the key or with another Host header."""

    def __init__(self, app: ASGIApp, *, key: str, hosts: Collection[str]) -> None:
        """Wraps an application.

        Args:
          app: the application.
          key: what clients must send as `Authorization: Bearer KEY`; "": nothing.
          hosts: names in the Host header, beside IP addresses and localhost.
        """
        self._app, self._key = app, key.encode()
        self._hosts = {host.lower() for host in (*hosts, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http":
            try:
                self._check(scope["path"], scope["method"], Headers(scope=scope))
            except ProtocolError as error:
                return await error_response(error)(scope, receive, send)
        await self._app(scope, receive, send)

    def _check(self, path: str, method: str, headers: Headers) -> None:
        if not self._is_allowed(headers.get("host", "")):
            raise ProtocolError(
                403, "the Host header names another host; see --allow_host", code="host"
            )
        if self._key and path not in _OPEN_PATHS and method != "OPTIONS":
            kind, _, key = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(key.strip().encode("utf-8", "replace"), self._key)
            if kind.lower() != "bearer" or not is_right:
                raise ProtocolError(
                    401, "send the key as Authorization: Bearer KEY", code="invalid_api_key"
                )

    def _is_allowed(self, host: str) -> bool:
        name = (
            host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        )
        if name.lower() in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
