"""How well a model predicts a text: its loss on every character, in nats.

A text is read in many lanes at once. Each lane but the first starts `_CONTEXT`
characters before its own part, and what it predicts there is not counted; so
every character is predicted from at least that much text before it, and the
result is that of one long pass over the text, to within rounding, in a fraction
of the time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from charjax.config import ModelConfig
from charjax.data.corpus import read_text
from charjax.data.vocab import check_ids
from charjax.errors import DivergedError, InputError
from charjax.inference.load import TrainedModel
from charjax.model.decode import decode_sequence
from charjax.model.likelihood import next_char_nats
from charjax.model.network import CharRNN, initial_carry, reset_carry
from charjax.model.recurrence.api import for_inference
from charjax.runtime.sharding import (
    all_devices,
    batch_sharding,
    data_mesh,
    local_copy,
    replicated,
    shard,
)
from charjax.types import Carry, Logits, Nats, PyTree, Reset, Tokens

_CHUNK = 128  # characters a lane and dispatch
_CONTEXT = 4 * _CHUNK  # characters read before a lane's own part
_LANES = 64  # at most


@dataclass(frozen=True)
class Score:
    """The loss of a text.

    Attributes:
      chars: characters predicted: all but the first, which nothing precedes.
      nats_per_char: mean negative log-probability in nats.
    """

    chars: int
    nats_per_char: float

    @property
    def bits_per_char(self) -> float:
        """The same in bits."""
        return self.nats_per_char / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats per character); infinite where that overflows."""
        return math.exp(self.nats_per_char) if self.nats_per_char < 700 else math.inf

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them, for `charjax score`.

        JSON has no infinity: such a perplexity becomes None. The loss itself is finite, see
        `score_file`.
        """
        return {
            "chars": self.chars,
            "nats_per_char": self.nats_per_char,
            "bits_per_char": self.bits_per_char,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
        }


def score(
    config: ModelConfig,
    params: PyTree,
    ids: Int[np.ndarray, " chars"],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """The mean loss over a text.

    Raises:
      InputError: the text has fewer than two characters.
    """
    nats = char_nats(config, params, ids, progress=progress)
    return Score(nats.size, float(np.mean(nats, dtype=np.float64)))


def score_file(
    trained: TrainedModel,
    file: str,
    *,
    unknown: str,
    progress: Callable[[int, int], None],
) -> Score:
    """The score of a text file, read as the model's own text was; "-" is standard input.

    Raises:
      InputError: the file is missing, malformed, too short, or has characters that the
        vocabulary lacks.
      DivergedError: the model gives a character no finite loss.
    """
    data = trained.config.data
    text = read_text(file, data)
    ids = trained.vocab.encode_symbols(text, unknown=unknown)
    result = score(trained.config.model, trained.params, ids, progress=progress)
    # A softmax gives every character a probability, but weights that are finite, as all that
    # are saved, may still be so large that a logit is not.
    if not math.isfinite(result.nats_per_char):
        raise DivergedError(
            f"step {trained.step}: its weights are so large that the loss of this text is not "
            "finite; try another --checkpoint"
        )
    return result


def char_nats(
    config: ModelConfig,
    params: PyTree,
    ids: Int[np.ndarray, " chars"],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[np.ndarray, " predicted"]:
    """Negative log-probability in nats of every character but the first, float32.

    Raises:
      InputError: the text has fewer than two characters, or an id that no symbol has.
    """
    if ids.size < 2:
        raise InputError(f"the text has {ids.size} characters: a score needs at least 2")
    check_ids(ids, params["output_bias"].shape[0])
    predicted = ids.size - 1
    lanes = max(1, min(_LANES, predicted // (2 * _CONTEXT)))
    work = _worker(config, over_all=lanes >= jax.device_count())
    own = math.ceil(predicted / lanes)
    context = _CONTEXT if lanes > 1 else 0
    chunks = math.ceil((context + own) / _CHUNK)

    # Position p of a lane's row reads ids[p] and predicts ids[p + 1]; positions
    # outside the text read a padding symbol, and their predictions are dropped.
    # So are those of the lanes that are there for the devices to have equal shares.
    rows = math.ceil(lanes / work.devices) * work.devices
    first = np.minimum(np.arange(rows), lanes - 1) * own - context
    params, carry = work.shard(params), work.split(_zeros(config, rows))
    nats = np.empty((rows, chunks * _CHUNK), np.float32)
    for chunk in range(chunks):
        at = first[:, None] + chunk * _CHUNK + np.arange(_CHUNK)
        inputs, targets = (ids[np.clip(at + shift, 0, predicted)] for shift in (0, 1))
        carry, out = work.nats(params, carry, *work.split((at[:, 0] <= 0, inputs, targets)))
        nats[:, chunk * _CHUNK : (chunk + 1) * _CHUNK] = out
        progress(chunk + 1, chunks)
    return nats[:lanes, context : context + own].reshape(-1)[:predicted]


class _Worker(NamedTuple):
    """The devices that score a text, its lanes cut among them.

    Attributes:
      devices: how many.
      place: parameters -> a copy on each of them.
      split: host arrays with lanes -> the same on the devices.
      nats: (params, carry, fresh, inputs, targets) -> (carry, nats on every device).
    """

    devices: int
    shard: Callable[[PyTree], PyTree]
    split: Callable[[PyTree], PyTree]
    nats: Callable[..., tuple[Carry, Nats]]


@functools.cache
def _worker(config: ModelConfig, *, over_all: bool) -> _Worker:
    """All devices of all processes, or, for a short text, one of this process's."""
    mesh = data_mesh(all_devices() if over_all else jax.local_devices()[:1])
    everywhere, lanes = replicated(mesh), batch_sharding(mesh, axis=0)
    return _Worker(
        mesh.size,
        lambda params: jax.device_put(params if over_all else local_copy(params), everywhere),
        lambda tree: shard(tree, lanes),
        jax.jit(partial(_chunk_nats, config), out_shardings=(lanes, everywhere), donate_argnums=1),
    )


def _zeros(config: ModelConfig, lanes: int) -> PyTree:
    """`initial_carry` on the host."""
    shapes = jax.eval_shape(lambda: initial_carry(config, lanes))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _chunk_nats(
    config: ModelConfig,
    params: PyTree,
    carry: Carry,
    reset: Reset,
    inputs: Tokens,
    targets: Tokens,
) -> tuple[Carry, Nats]:
    read = decode_sequence if config.dtype == "int8" else _network_logits
    logits, carry = read(config, params, inputs, reset_carry(carry, reset))
    return carry, next_char_nats(logits, targets)


def _network_logits(
    config: ModelConfig, params: PyTree, tokens: Tokens, carry: Carry
) -> tuple[Logits, Carry]:
    config = for_inference(config, tokens.shape[0])
    network = CharRNN(config, params["output_bias"].shape[0])
    return network.run(params, tokens, carry)
