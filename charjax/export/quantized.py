"""int8 quantization of a model's kernels for the formats `html` and `c`; biases stay float32."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int8

from charjax.config import ModelConfig
from charjax.errors import InputError
from charjax.export.weights import named_weights
from charjax.inference.load import TrainedModel
from charjax.model.quantization import quantize
from charjax.runtime.safetensors import Arrays

_quantize = jax.jit(quantize)


class QuantizedKernel(NamedTuple):
    """A quantized kernel, `integers * scales`; see `charjax.model.quantization`.

    Attributes:
      integers: from -127 to 127.
      scales: powers of two, one for each column.
    """

    integers: Int8[np.ndarray, "inputs outputs"]
    scales: Float[np.ndarray, " outputs"]


class QuantizedModel(NamedTuple):
    """The parameters of a model, quantized; names are those of `named_weights`.

    Attributes:
      config: the architecture. `embed` is 0 if the embedding was multiplied into the first kernel.
      kernels: the matrices, the embedding included.
      biases: the vectors, float32.
    """

    config: ModelConfig
    kernels: dict[str, QuantizedKernel]
    biases: Arrays


def quantize_model(trained: TrainedModel) -> QuantizedModel:
    """Quantizes the kernels of a model to int8.

    An embedding is first multiplied into the first kernel, as if the input were one-hot, if the
    result has no more numbers than the two together.

    Raises:
      InputError: a parameter is not finite.
    """
    config, weights = trained.config.model, dict(named_weights(trained.params))
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise InputError(f"export: {name} is not finite, which int8 weights cannot be")
    if config.embed:
        embedding, kernel = weights["embedding"], weights["layer_0.kernel"]
        if len(embedding) * kernel.shape[1] <= embedding.size + kernel.size:
            del weights["embedding"]
            weights["layer_0.kernel"] = embedding.astype(np.float32) @ kernel.astype(np.float32)
            config = replace(config, embed=0)
    kernels = {name: _kernel(array) for name, array in weights.items() if array.ndim == 2}
    biases = {name: a.astype(np.float32) for name, a in weights.items() if a.ndim == 1}
    return QuantizedModel(replace(config, dtype="float32"), kernels, biases)


def _kernel(array: Float[np.ndarray, "inputs outputs"]) -> QuantizedKernel:
    integers, scales = _quantize(jnp.asarray(array, jnp.float32))
    # `result` is the kernel's scale over the state's. All are powers of two, so this is exact.
    return QuantizedKernel(
        np.asarray(integers).astype(np.int8), np.asarray(scales.result * scales.state)
    )
