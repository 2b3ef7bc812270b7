"""Texts from a model: what continues a prompt, and which of several samples are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Int

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.load import TrainedModel
from charjax.inference.options import (
    MAX_SAMPLES,
    NO_CONTROLS,
    Controls,
    Sampling,
    check_num_samples,
)
from charjax.inference.sampling.copying import copy_table, forbidden_tokens
from charjax.inference.sampling.sampler import Sampler
from charjax.inference.texts.controls import check_stops, restrict
from charjax.inference.texts.end import Lines, Text, TextEnd, decode_texts
from charjax.inference.texts.prompt import Prompt, encode_prompt
from charjax.inference.training_text import known_lines, training_text
from charjax.runtime.display import counted
from charjax.types import PyTree

_MAX_REJECTED = 10_000  # in a row


def sample_texts(
    config: ModelConfig,
    params: PyTree,
    vocab: Vocab,
    prompt: str,
    *,
    num_chars: int,
    num_samples: int,
    sampling: Sampling,
) -> Iterator[str]:
    """The continuations of a prompt, without the prompt; see `TextSampler` for more control.

    Args:
      config: the architecture.
      params: of a `CharRNN`.
      vocab: of the model.
      prompt: the text to continue.
      num_chars: characters of each sample.
      num_samples: how many samples.
      sampling: how tokens are chosen.

    Raises:
      InputError: the prompt has characters outside the vocabulary, or a number is out of range.
    """
    groups = Sampler.for_vocab(config, params, vocab).run(
        vocab.encode_prompt(prompt),
        num_chars=num_chars,
        num_samples=num_samples,
        sampling=sampling,
    )
    texts = decode_texts(groups, partial(TextEnd, vocab, num_chars))
    return (text.text for text in texts)


class TextSampler:
    """The texts that `charjax sample` writes for its prompts.

    Attributes:
      vocab: of the model.
      sampling: how tokens are chosen, with what the controls forbid.
      controls: what the texts may hold, and where they end.
      samples: `Sampler.run`, with the table for `Controls.max_copy`.
      selects_documents: whether a text is one of several documents; see `texts`.
    """

    def __init__(
        self, trained: TrainedModel, sampling: Sampling, controls: Controls = NO_CONTROLS
    ) -> None:
        """Takes a model and how to sample it.

        Args:
          trained: the model.
          sampling: how tokens are chosen.
          controls: what the texts may hold, and where they end.

        Raises:
          InputError: the controls do not fit the model, or its training text is gone.
          HostError: the training text can be neither found nor downloaded.
        """
        self.vocab, self.controls, self._trained = trained.vocab, controls, trained
        self.sampling = restrict(sampling, controls, self.vocab)
        check_stops(controls, self.sampling, self.vocab)
        self._known, self._copies = frozenset[str](), None
        if controls.new or controls.max_copy:
            corpus = training_text(trained, "--new" if controls.new else "--max_copy")
            if controls.new:
                self._known = known_lines(trained, corpus)
            if controls.max_copy:
                self._copies = copy_table(corpus, self.vocab, controls.max_copy)
        sampler = Sampler.for_vocab(trained.config.model, trained.params, self.vocab)
        self.samples = partial(sampler.run, copies=self._copies)
        self.selects_documents = self.vocab.boundary and (
            controls.selects_lines or bool(controls.until_lines)
        )

    def encode(self, prompt: str, unknown: str) -> Prompt:
        """The `encode_prompt` of the model."""
        return encode_prompt(self._trained, prompt, unknown)

    def forbidden_after(self, ids: Int[np.ndarray, " n"]) -> set[int]:
        """The tokens that the controls forbid after these."""
        forbidden = set(self.sampling.forbidden)
        if self._copies is not None:
            recent = np.pad(ids, (self._copies.length, 0), constant_values=-1)
            recent = recent[None, -self._copies.length :]
            copied = forbidden_tokens(self._copies, recent, len(self.vocab))
            forbidden.update(np.flatnonzero(copied).tolist())
        return forbidden

    def texts(
        self,
        prompt: Prompt,
        *,
        num_chars: int,
        num_samples: int,
        num_top: int | None = None,
    ) -> Iterator[Text]:
        """The texts that continue a prompt.

        Of a model of documents, with `until_lines`, `unique` or `new`: documents are sampled in
        the order of their numbers, and those that are not left out are the texts, so that the
        first texts do not depend on how many are asked for.

        Args:
          prompt: from `encode`; a line may begin in it.
          num_chars: characters of each sample.
          num_samples: how many texts; with documents, texts of `until_lines` documents.
          num_top: as for `Sampler.run`.

        Raises:
          InputError: a number is out of range, or too few documents are left.
        """
        samples = partial(
            self.samples, prompt.ids, num_chars=num_chars, sampling=self.sampling, num_top=num_top
        )
        if not self.selects_documents:
            texts = partial(self._text_end, prompt, num_chars)
            yield from decode_texts(samples(num_samples=num_samples), texts)
            return
        num_samples = check_num_samples(num_samples)
        wanted = num_samples * max(1, self.controls.until_lines)
        if wanted > MAX_SAMPLES:
            raise InputError(
                f"--until_lines={self.controls.until_lines}: {num_samples:,} times as many "
                f"documents are asked for; together they may be {MAX_SAMPLES:,}"
            )
        document = partial(TextEnd, self.vocab, num_chars, Controls(stop=self.controls.stop))
        candidates = decode_texts(samples(num_samples=MAX_SAMPLES), document)
        accepts, shown = Lines(self.controls, self._known).accepts, prompt.text(self.vocab)
        yield from _accepted(candidates, wanted, lambda text: accepts(shown + text.text))

    def stream(self, prompt: Prompt, *, num_chars: int) -> Iterator[str]:
        """The text of a single sample, in pieces."""
        end = self._text_end(prompt, num_chars)
        (group,) = self.samples(
            prompt.ids, num_chars=num_chars, num_samples=1, sampling=self.sampling
        )
        for sampled in group:
            yield end.read(sampled.ids[0])
            if end.finished:
                break
        yield end.flush()

    def _text_end(self, prompt: Prompt, num_chars: int) -> TextEnd:
        shown = prompt.text(self.vocab)
        return TextEnd(self.vocab, num_chars, self.controls, known=self._known, prompt=shown)


def _accepted(
    candidates: Iterable[Text], wanted: int, accepts: Callable[[Text], bool]
) -> Iterator[Text]:
    """The first candidates that are accepted.

    Raises:
      InputError: too many in a row are not, or there are no more.
    """
    found = rejected = 0
    for text in candidates:
        if accepts(text):
            yield text
            found, rejected = found + 1, 0
        else:
            rejected += 1
        if found == wanted:
            return
        if rejected == _MAX_REJECTED:
            break
    raise InputError(
        f"--unique, --new: found {found} of {counted(wanted, 'text')}; the next {rejected:,} "
        "samples were all left out; raise --temperature, or ask for fewer"
    )


def write_texts(
    sampler: TextSampler,
    prompt: Prompt,
    *,
    num_chars: int,
    num_samples: int,
    separator: str,
    show_prompt: bool = True,
) -> Iterator[str]:
    """The output of `charjax sample` in pieces: prompts, continuations and separators.

    A single text is streamed as it is sampled; several are yielded one by one. A text ends
    after `num_chars` characters, where the model predicts the end of a document, or where the
    controls say.

    Raises:
      InputError: a number is out of range.
    """
    written = prompt.text(sampler.vocab) if show_prompt else ""
    if num_samples == 1 and not sampler.selects_documents:
        yield written
        yield from sampler.stream(prompt, num_chars=num_chars)
        return
    texts = sampler.texts(prompt, num_chars=num_chars, num_samples=num_samples)
    # With `until_lines` and documents, a text is so many of them, one a line.
    documents = sampler.controls.until_lines if sampler.selects_documents else 0
    for number, text in enumerate(texts):
        is_next = number and number % max(1, documents) == 0
        yield (separator if is_next else "") + written + text.text + ("\n" if documents else "")
