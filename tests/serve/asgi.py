"""A client of an ASGI application without sockets, and a server to test."""

from __future__ import annotations

import asyncio
import json
from typing import NamedTuple

JSON = {"content-type": "application/json", "host": "127.0.0.1:8000"}


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        """The data of server-sent events; `[DONE]`, which must be the last one, is left out."""
        *events, done, end = self.body.decode().split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


async def request(
    app, method, path, body=None, *, headers=JSON, until=lambda sent: None, gone=None, cut=False
):
    """One request. `until` is called with what was sent so far; a true result disconnects.

    So does the event `gone`. With `cut`, the client disconnects before the end of its body.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    gone, start, sent = gone or asyncio.Event(), {}, bytearray()
    messages = [{"type": "http.request", "body": content, "more_body": cut}]
    if cut:
        gone.set()

    async def receive():
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        start.update(message if message["type"] == "http.response.start" else {})
        sent.extend(message.get("body", b""))
        if until(bytes(sent)):
            gone.set()
            await asyncio.sleep(0)

    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await asyncio.wait_for(app(scope, receive, send), 60)
    found = {name.decode(): value.decode() for name, value in start.get("headers", ())}
    return Response(start.get("status", 0), found, bytes(sent))


def post(app, path, body, **options):
    return asyncio.run(request(app, "POST", path, body, **options))


def get(app, path, **options):
    return asyncio.run(request(app, "GET", path, **options))


def complete(app, **body):
    """A completion that must succeed."""
    response = post(app, "/v1/completions", body)
    assert response.status == 200, response.body
    return response.json
