"""POST /v1/completions: a request as values, and the parts of its answer as JSON."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from charjax.data.tokens.ids import check_ids
from charjax.inference.options import Controls, Sampling
from charjax.inference.texts.controls import restrict
from charjax.inference.texts.prompt import Prompt, encode_prompt
from charjax.runtime.display import counted
from charjax.serve.errors import as_field_errors, invalid
from charjax.serve.jobs import Choice, PieceQueue
from charjax.serve.limits import RequestLimits
from charjax.serve.models import ServedModel
from charjax.serve.text import Delta, Writing


@dataclass(frozen=True)
class Completion:
    """A request for texts, and its answer.

    Attributes:
      model: that writes the texts.
      prompts: that they continue.
      n: texts of each prompt.
      writing: how they are written.
      include_usage: whether a stream ends with the numbers of tokens.
      id: of the answer.
      created: seconds since 1970.
    """

    model: ServedModel
    prompts: tuple[Prompt, ...]
    n: int
    writing: Writing
    include_usage: bool
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def texts(self, pieces: PieceQueue) -> list[Choice]:
        """The texts to write: choice p * n + i is sample i for prompt p."""
        return [
            Choice(self.writing, prompt, number, p * self.n + number, pieces)
            for p, prompt in enumerate(self.prompts)
            for number in range(self.n)
        ]

    def event(self, index: int, piece: Delta) -> dict[str, Any]:
        """One piece of a stream."""
        return self._object([self._choice(index, [piece])])

    def usage_event(self, num_tokens: int) -> dict[str, Any]:
        """The end of a stream with usage; `num_tokens` are those that were written."""
        return self._object([]) | {"usage": self._usage(num_tokens)}

    def whole(self, pieces: Mapping[int, Sequence[Delta]]) -> dict[str, Any]:
        """The whole answer from the pieces of every choice."""
        choices = [self._choice(index, pieces[index]) for index in sorted(pieces)]
        num_tokens = sum(parts[-1].num_tokens for parts in pieces.values())
        return self._object(choices) | {"usage": self._usage(num_tokens)}

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "seed": self.writing.sampling.seed,
            "choices": choices,
        }

    def _choice(self, index: int, pieces: Sequence[Delta]) -> dict[str, Any]:
        entries = [entry for piece in pieces for entry in piece.logprobs]
        logprobs = {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [entry.top for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": None if self.writing.num_top is None else logprobs,
            "finish_reason": pieces[-1].finish_reason,
        }

    def _usage(self, num_tokens: int) -> dict[str, int]:
        read = sum(prompt.ids.size for prompt in self.prompts)
        return {
            "prompt_tokens": read,
            "completion_tokens": num_tokens,
            "total_tokens": read + num_tokens,
        }


def parse_completion(
    fields: Mapping[str, Any], model: ServedModel, limits: RequestLimits
) -> Completion:
    """The request with these fields, which are valid by the schema.

    Raises:
      ProtocolError: a field does not fit the model, or another field.
    """
    n = fields["n"]
    if fields["best_of"] not in (1, n):
        raise invalid("best_of", f"{fields['best_of']} must be n, which is {n}")
    prompts = _split_prompts(fields["prompt"])
    if n * len(prompts) > limits.max_texts:
        raise invalid(
            "n", f"{n} times {counted(len(prompts), 'prompt')} is above {limits.max_texts:,} texts"
        )
    options = fields["stream_options"]
    if options and not fields["stream"]:
        raise invalid("stream_options", "needs stream=true")
    return Completion(
        model,
        tuple(_encode(prompt, model, fields["unknown"]) for prompt in prompts),
        n,
        _writing(fields, model),
        bool(options.get("include_usage")),
    )


def _writing(fields: Mapping[str, Any], model: ServedModel) -> Writing:
    stop, vocab = fields["stop"], model.trained.vocab
    bias = {int(token): float(value) for token, value in fields["logit_bias"].items()}
    with as_field_errors("logit_bias"):
        check_ids(np.array([*bias], np.int64), len(vocab))
    if fields["until_lines"] and vocab.boundary:
        raise invalid("until_lines", "this model writes a document a text; ask for n texts")
    with as_field_errors(None):
        controls = Controls(
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            until_lines=fields["until_lines"],
            forbid=fields["forbid"],
            only=fields["only"],
            max_copy=fields["max_copy"],
        )
        sampling = Sampling(
            seed=secrets.randbelow(2**32) if fields["seed"] is None else fields["seed"],
            top_k=max(fields["top_k"], 0),
            logit_bias=tuple(sorted(bias.items())),
            **{name: float(fields[name]) for name in _FLOATS},
            repetition_window=fields["repetition_window"],
        )
        sampling = restrict(sampling, controls, vocab)
    return Writing(
        vocab, sampling, controls, fields["max_tokens"], fields["logprobs"], fields["echo"]
    )


_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")


def _split_prompts(prompt: Any) -> list[Any]:
    """The prompts, each a text or a list of ids, of one of them or a list of several."""
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        prompts = [prompt]
    else:
        prompts = prompt
    items = prompt if isinstance(prompt, list) else []
    if len({type(item) for item in items}) > 1:
        raise invalid("prompt", "the items of a list must be all strings, all ids, or all lists")
    return prompts


def _encode(prompt: str | list[int], model: ServedModel, unknown: str) -> Prompt:
    with as_field_errors("prompt"):
        if isinstance(prompt, str):
            return encode_prompt(model.trained, prompt, unknown)
        return model.prompt_of_ids(prompt)
