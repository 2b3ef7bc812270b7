"""Server-sent events: pieces of texts go to a client as a stream, or as one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from charjax.serve.completions import Completion
from charjax.serve.errors import ProtocolError, client_gone
from charjax.serve.jobs import PieceQueue
from charjax.serve.responses import event
from charjax.serve.text import Delta

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send


class EventStream(StreamingResponse):
    """The answer as server-sent events, one for each piece, and `[DONE]`.

    The texts are given up when the client has gone.
    """

    def __init__(self, completion: Completion, pieces: PieceQueue) -> None:
        self._pieces = pieces
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(
            _events(completion, pieces), headers=headers, media_type="text/event-stream"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.is_closed = True


async def _events(completion: Completion, pieces: PieceQueue) -> AsyncIterator[str]:
    num_tokens = 0
    try:
        async for part in pieces:
            yield "".join(event(completion.event(index, piece)) for index, piece in part)
            num_tokens += sum(piece.num_tokens for _, piece in part if piece.finish_reason)
    except ProtocolError as error:
        yield event(error.body())
        return
    if completion.include_usage:
        yield event(completion.usage_event(num_tokens))
    yield event("[DONE]")


async def whole_answer(
    completion: Completion, pieces: PieceQueue, request: Request
) -> dict[str, Any]:
    """The answer with all texts.

    Raises:
      ProtocolError: the engine failed, the time is over, or the client has gone.
    """
    watch = asyncio.create_task(_close_when_gone(request, pieces))
    choices: dict[int, list[Delta]] = {}
    try:
        async for part in pieces:
            for index, piece in part:
                choices.setdefault(index, []).append(piece)
        return completion.whole(choices)
    finally:
        pieces.is_closed = True
        watch.cancel()


async def _close_when_gone(request: Request, pieces: PieceQueue) -> None:
    """Waits until the client has gone, which gives its texts up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    pieces.is_closed = True
    pieces.put(0, client_gone())
