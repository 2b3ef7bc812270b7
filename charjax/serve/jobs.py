"""The texts that an engine is asked to write, and the queue of their pieces to a client."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int

from charjax.data.vocab import Vocab
from charjax.inference.controls import Controls
from charjax.inference.copying import CopyTable
from charjax.inference.sampling import Sampling
from charjax.inference.text_end import TextEnd
from charjax.serve.errors import ProtocolError
from charjax.serve.text import Delta, DeltaWriter, LogprobList, TokenChunk


class Prompt(NamedTuple):
    """What a text continues.

    Attributes:
      ids: at least one.
      hidden: how many of the first ids were not in the request: the start token.
    """

    ids: Int[np.ndarray, " prompt"]
    hidden: int


class Writing(NamedTuple):
    """How texts are written; the same for all texts of a request.

    Attributes:
      vocab: of the model.
      sampling: how tokens are chosen.
      controls: where a text ends, and what it may hold.
      num_chars: tokens of a text at most.
      num_top: how many of the likeliest tokens to report; None: no log-probabilities.
      echo: whether the prompt is part of the text.
      copies: of the training text, for `controls.max_copy`; None: off.
    """

    vocab: Vocab
    sampling: Sampling
    controls: Controls
    num_chars: int
    num_top: int | None
    echo: bool
    copies: CopyTable | None = None


class Sink:
    """Brings pieces from the engine's thread to the event loop of one request.

    Attributes:
      closed: whether the client no longer wants them; its texts are then given up.
    """

    def __init__(self) -> None:
        """For the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[tuple[int, Delta | ProtocolError]] = deque()
        self._arrived = asyncio.Event()
        self.closed = False

    def put(self, index: int, piece: Delta | ProtocolError) -> None:
        """Adds the next piece of a choice; from any thread."""
        self._pieces.append((index, piece))
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the server ends
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> list[tuple[int, Delta]]:
        """Waits for pieces; all that are there, in their order.

        Raises:
          ProtocolError: what went wrong in the engine.
        """
        await self._arrived.wait()
        self._arrived.clear()
        taken: list[tuple[int, Delta]] = []
        while self._pieces:
            index, piece = self._pieces.popleft()
            if isinstance(piece, ProtocolError):
                raise piece
            taken.append((index, piece))
        return taken


@dataclass
class Choice:
    """A choice of the protocol: one sample of a prompt, as it is written.

    Attributes:
      writing: how it is written.
      prompt: what it continues.
      number: of the sample, from 0.
      index: of its choice in the answer.
      sink: where its pieces go.
      done: whether its last piece has been put there.
    """

    writing: Writing
    prompt: Prompt
    number: int
    index: int
    sink: Sink
    done: bool = False
    _echo: list[TokenChunk] = field(default_factory=list)
    _writer: DeltaWriter | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for the text."""
        return self.done or self.sink.closed

    def _needs_model(self) -> bool:
        """False where the text is empty and no log-probability of the prompt is asked for."""
        echoes = self.writing.num_top is not None and self.writing.echo
        return self.writing.num_chars > 0 or (echoes and self.prompt.ids.size > 1)

    def begin(self) -> None:
        """Puts the echo, as far as it needs no log-probabilities, and the end of an empty text."""
        if self.writing.echo and self.writing.num_top is None:
            self._put(Delta(self._shown()))
        if not self._needs_model():
            self._finish_prompt()

    def read(self, forced: TokenChunk, sampled: TokenChunk) -> None:
        """Takes the tokens of one chunk: those of the prompt that it read, and those it sampled."""
        if self.writing.echo and self.writing.num_top is not None and forced.ids.size:
            self._echo.append(forced)
            if sum(part.ids.size for part in self._echo) == self.prompt.ids.size - 1:
                self._finish_prompt()
        if sampled.ids.size and not self.done:
            if self._writer is None:
                self._finish_prompt()
            self._write(sampled)

    def fail(self, error: ProtocolError) -> None:
        """Gives the text up and tells the client why."""
        self.done = True
        self.sink.put(self.index, error)

    def _finish_prompt(self) -> None:
        """Puts the echo with its log-probabilities, if it has any, and starts the text."""
        writing, vocab = self.writing, self.writing.vocab
        shown = self._shown() if writing.echo else ""
        if writing.echo and writing.num_top is not None:
            entries = LogprobList(vocab)
            for tokens in (TokenChunk(self.prompt.ids[:1]), *self._echo):
                entries.extend(tokens)
            self._put(Delta(shown, tuple(entries.entries[self.prompt.hidden :])))
        self._echo = []
        end = TextEnd(vocab, writing.controls, writing.num_chars)
        self._writer = DeltaWriter(vocab, end, len(shown))
        if writing.num_chars == 0:
            self._put(Delta("", finish_reason="length"))

    def _write(self, tokens: TokenChunk) -> None:
        assert self._writer is not None
        piece = self._writer.write(tokens)
        if piece.text or piece.logprobs or piece.finish_reason:
            self._put(piece)

    def _put(self, piece: Delta) -> None:
        self.done = self.done or piece.finish_reason is not None
        self.sink.put(self.index, piece)

    def _shown(self) -> str:
        return self.writing.vocab.decode(self.prompt.ids[self.prompt.hidden :])


Job: TypeAlias = Sequence[Choice]  # texts that start together
