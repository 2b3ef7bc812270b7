"""The texts that an engine is asked to write, and the queue of their pieces to a client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from charjax.inference.sampling.rows import Sampled
from charjax.inference.texts.prompt import Prompt
from charjax.serve.errors import ProtocolError
from charjax.serve.text import Delta, DeltaWriter, Writing

Piece: TypeAlias = tuple[int, Delta]  # the index of a choice, and its next part


class PieceQueue:
    """Brings the pieces of a request's texts from the engine's thread to the event loop.

    Attributes:
      is_closed: whether the client no longer wants them.
    """

    def __init__(self, num_texts: int, seconds: float) -> None:
        """For the running event loop.

        Args:
          num_texts: of the request.
          seconds: from now to the end of all texts, at most.
        """
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Delta | ProtocolError]] = asyncio.Queue()
        self._num_texts, self._seconds = num_texts, seconds
        self._deadline = self._loop.time() + seconds
        self.is_closed = False

    @property
    def is_over(self) -> bool:
        """Whether no more are wanted: the client has gone, or the time is over."""
        return self.is_closed or self._loop.time() >= self._deadline

    def put(self, index: int, piece: Delta | ProtocolError) -> None:
        """Adds the next piece of a choice, or the error that ends the request; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the server ends
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """All pieces that are there, each time, until all texts have ended.

        Raises:
          ProtocolError: what went wrong in the engine, or the time is over.
        """
        left = self._num_texts
        while left:
            arrived = [await self._get()]
            while not self._pieces.empty():
                arrived.append(self._pieces.get_nowait())
            pieces: list[Piece] = []
            for index, piece in arrived:
                if isinstance(piece, ProtocolError):
                    raise piece
                pieces.append((index, piece))
                left -= piece.finish_reason is not None
            yield pieces

    async def _get(self) -> tuple[int, Delta | ProtocolError]:
        try:
            return await asyncio.wait_for(self._pieces.get(), self._deadline - self._loop.time())
        except TimeoutError:
            raise ProtocolError(
                504, f"not finished within {self._seconds:g} s", code="timeout"
            ) from None


@dataclass
class Choice:
    """A choice of the protocol: one sample of a prompt, as it is written.

    Attributes:
      writing: how it is written.
      prompt: what it continues.
      number: of the sample, from 0.
      index: of its choice in the answer.
      pieces: where its pieces go.
      done: whether its last piece has been put there.
    """

    writing: Writing
    prompt: Prompt
    number: int
    index: int
    pieces: PieceQueue
    done: bool = False

    def __post_init__(self) -> None:
        self._writer = DeltaWriter(self.writing, self.prompt)
        reads_prompt = self.writing.scores_prompt and self.prompt.ids.size > 1
        if self.writing.num_chars == 0 and not reads_prompt:  # the model has nothing to do
            self.read(Sampled(self.prompt.ids[:0]), 0)

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for the text."""
        return self.done or self.pieces.is_over

    def read(self, tokens: Sampled, position: int) -> None:
        """Takes the tokens from a position of the sample on; see `DeltaWriter.read`."""
        if self.is_given_up:
            return
        piece = self._writer.read(tokens, position)
        if piece.text or piece.logprobs or piece.finish_reason:
            self.done = piece.finish_reason is not None
            self.pieces.put(self.index, piece)

    def fail(self, error: ProtocolError) -> None:
        """Gives the text up and tells the client why."""
        self.done = True
        self.pieces.put(self.index, error)


Job: TypeAlias = Sequence[Choice]  # texts that start together
