"""The parameters of a model, rearranged for decoding.

Each layer's kernel and that of what comes next, the layer above or the logits, are side by side, so
that one matmul of a state has both: see `charjax.model.decode`.

The layout of the states is the caller's choice. XLA:CPU multiplies batch-major states fastest
for a few sequences, feature-major ones for many, and a vector for one. Kernels packed for C
take batch-major states of any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from charjax.config import ModelConfig
from charjax.model.cells import CELLS
from charjax.model.matmul import dot, lookup, round_to, row_major
from charjax.model.mogrifier import Mogrifier
from charjax.model.quantization import Scales, quantize
from charjax.model.recurrence.base import Weights
from charjax.model.recurrence.c.library import Library
from charjax.model.recurrence.c.packed import Packed, pack
from charjax.runtime.dtypes import as_float32
from charjax.types import PyTree

# Layout of states and gates: [batch, features]; [features, batch]; [features, 1], for one sequence.
Layout: TypeAlias = Literal["batch_major", "feature_major", "vector"]
# States or gates of all sequences, in the layout of the weights.
Activations: TypeAlias = Float[Array, "_ _"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeWeights:
    """The parameters of a `CharRNN`, rearranged for decoding.

    Attributes:
      table: float32 [vocab, gates], the first layer's input gates of every token, or the input
        itself of a mogrifier; [gates, vocab] in feature-major layout.
      kernels: for each layer, [hidden, gates + next] in the compute dtype, where next is the
        gates of the layer above or the vocabulary; transposed unless batch-major. Or packed.
      biases: for each layer, float32 [gates + next].
      scales: for each layer, of a quantized kernel; None for others.
      layout: of the states.
      mogrifiers: for each layer of a mogrifier, what its step multiplies by; `kernels` and
        `biases` then have no gates, and below the last layer nothing. Empty for other cells.
    """

    table: Float[Array, "_ _"]
    kernels: tuple[Float[Array, "_ _"] | Packed, ...]
    biases: tuple[Float[Array, " _"], ...]
    scales: tuple[Scales | None, ...]
    layout: Layout = field(metadata={"static": True})
    mogrifiers: tuple[Weights, ...] = ()

    @property
    def features_first(self) -> bool:
        """Whether the first axis of the states is the features, not the batch."""
        return self.layout != "batch_major"

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.table.shape[1 if self.layout == "feature_major" else 0]

    @property
    def gates(self) -> int:
        """Number of a layer's hidden gates in `kernels`."""
        return self.biases[-1].size - self.vocab_size

    def lookup(self, tokens: Int[Array, " batch"]) -> Activations:
        """The first layer's input gates of one token per sequence."""
        if self.layout == "feature_major":
            return lookup(self.table, tokens)
        igates = self.table[tokens]
        return igates.T if self.features_first else igates

    def matmul(self, layer: int, h: Activations) -> Activations:
        """A layer's state times its kernel, plus the bias; float32."""
        kernel, bias, scales = self.kernels[layer], self.biases[layer], self.scales[layer]
        if scales is not None:
            h = jnp.round(h * scales.state)
        if isinstance(kernel, Packed):
            result = kernel.multiply(h)
        else:
            operands = (kernel, h) if self.features_first else (h, kernel)
            result = dot(*operands, kernel.dtype)
        if scales is not None:
            result *= self._over_batch(scales.result)
        return result + self._over_batch(bias)

    def hgates_bias(self, layer: int) -> Activations:
        """The hidden gates of a state of zeros, the same for every sequence."""
        return self._over_batch(self.biases[layer][: self.gates])

    def mogrify(
        self, layer: int, x: Activations, h: Activations
    ) -> tuple[Activations, Activations]:
        """The input gates and hidden gates of a mogrifier's layer, from its input and state."""
        kernel, _, mogrifier = self.mogrifiers[layer]
        assert mogrifier is not None
        if self.features_first:
            x, h = row_major(x.T), row_major(h.T)
        igates, h = mogrifier.gate(x, h, kernel.dtype)
        hgates = dot(h, kernel, kernel.dtype)
        if self.features_first:
            igates, hgates = row_major(igates).T, row_major(hgates).T
        return igates, hgates

    def split(self, x: Activations, at: int | Sequence[int]) -> list[Activations]:
        """`jnp.split` along the features."""
        return jnp.split(x, at, axis=0 if self.features_first else 1)

    def _over_batch(self, features: Float[Array, " _"]) -> Activations:
        return features[:, None] if self.features_first else features[None]


def decode_weights(
    config: ModelConfig,
    params: PyTree,
    *,
    layout: Layout = "batch_major",
    operands: str = "",
    packed: Library | None = None,
) -> DecodeWeights:
    """Rearranges the parameters of a `CharRNN` for decoding.

    Args:
      config: the architecture; dtype "int8" quantizes the kernels.
      params: of the model; cast to float32, as by `CharRNN.run`.
      layout: of the states.
      operands: of quantized kernels, the dtype that holds them, "float32" or "bfloat16" (both
        hold them exactly); "" is float32. For other kernels "": they have the config's dtype.
      packed: the C library to pack the weights for, in batch-major layout; None: XLA multiplies.
    """
    params, int8 = as_float32(params), config.dtype == "int8"
    dtype = jnp.dtype("float32" if int8 else config.dtype)
    layers = [params[f"layer_{i}"] for i in range(config.layers)]
    mogrifiers: tuple[Weights, ...] = ()
    # `beside`: for each layer, the kernels and biases that are side by side.
    if CELLS[config.cell].rounds:
        mogrifiers = tuple(_mogrifier(layer, dtype) for layer in layers)
        beside = [[_hgates({}, config.hidden)] for _ in layers]
        features = len(layers[0]["kernel"])
        table = params["embedding"] if config.embed else jnp.eye(features, dtype=jnp.float32)
    else:
        beside = [[_hgates(layer, config.hidden)] for layer in layers]
        for pairs, above in zip(beside, layers[1:], strict=False):
            pairs.append((above["kernel"], above["bias"]))
        kernel = layers[0]["kernel"]
        # Without an embedding the input is one-hot: its matmul is the kernel, rounded.
        table = dot(params["embedding"], kernel, dtype) if config.embed else round_to(kernel, dtype)
        table = table + layers[0]["bias"][None]
    beside[-1].append((params["output_kernel"], params["output_bias"]))
    kernels: list[Float[Array, "_ _"] | Packed] = []
    biases, scales = [], []
    for pairs in beside:
        kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*pairs, strict=True))
        kernel, layer_scales = quantize(kernel) if int8 else (kernel, None)
        if packed:
            kernels.append(pack(packed, kernel, operands or dtype))
        else:
            kernel = kernel.astype(operands or dtype)
            kernels.append(kernel if layout == "batch_major" else row_major(kernel.T))
        biases.append(bias)
        scales.append(layer_scales)
    if layout == "feature_major":
        table = row_major(table.T)
    return DecodeWeights(table, tuple(kernels), tuple(biases), tuple(scales), layout, mogrifiers)


def mask_token(weights: DecodeWeights, token: int) -> DecodeWeights:
    """The weights with the logit of one token at minus infinity."""
    *below, last = weights.biases
    last = last.at[weights.gates + token].set(-jnp.inf)
    return replace(weights, biases=(*below, last))


def _mogrifier(layer: PyTree, dtype: DTypeLike) -> Weights:
    """What a step of a mogrifier's layer multiplies by."""
    return Weights(layer["recurrent"]["kernel"].astype(dtype), None, Mogrifier.of(layer))


def _hgates(layer: PyTree, hidden: int) -> tuple[Float[Array, "hidden gates"], Float[Array, " _"]]:
    """Kernel and bias of a layer's hidden gates; without a recurrent kernel both are empty.

    The bias is zeros, except for the candidate with `reset_after`.
    """
    recurrent = layer.get("recurrent", {"kernel": jnp.zeros((hidden, 0), jnp.float32)})
    bias = recurrent.get("bias", jnp.zeros(0, jnp.float32))
    gates = recurrent["kernel"].shape[1]
    zeros = jnp.zeros(gates - bias.size, jnp.float32)
    return recurrent["kernel"], jnp.concatenate([zeros, bias])
