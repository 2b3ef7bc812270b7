"""Export as a serialized `jax.export` program, which runs without charjax.

The program is one step of decoding and sampling. It computes the same as
`charjax.inference.sampling.sampler`, so that it samples the same characters from the same keys.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.export.weights import import_extra, vocabulary_json, weights_file
from charjax.inference.load import TrainedModel
from charjax.inference.sampling.logits import sample_token
from charjax.model.carry import initial_carry
from charjax.model.decode import DecodeState, decode_state, decode_step
from charjax.model.decode_weights import decode_weights, mask_token
from charjax.runtime.display import counted
from charjax.runtime.keys import Stream
from charjax.types import PyTree, Scalar

PLATFORMS = ("cpu", "cuda", "tpu")

# The leaves of a `DecodeState`, float32 [batch, features] each.
FlatState: TypeAlias = tuple[Float[Array, "batch _"], ...]


def program_files(trained: TrainedModel) -> dict[str, bytes]:
    """`generator.jax`, `start.npz`, `README.md`, the weights and the vocabulary.

    Raises:
      InputError: the package flatbuffers is not installed.
    """
    import_extra("flatbuffers")  # jax.export would fail only after compiling
    model = trained.config.model
    program = export_generator(model, trained.params, masked=trained.vocab.unk_id)
    rows, start = start_rows(model, trained.params), io.BytesIO()
    np.savez(start, allow_pickle=False, **rows)
    return {
        "generator.jax": program,
        "start.npz": start.getvalue(),
        "README.md": _readme(trained, rows).encode(),
        "weights.safetensors": weights_file(trained),
        "vocabulary.json": vocabulary_json(trained.vocab).encode(),
    }


def export_generator(config: ModelConfig, params: PyTree, *, masked: int | None) -> bytes:
    """One step of generation as a serialized `jax.export` program, for any batch size.

    The program takes (tokens int32 [batch], carry, keys uint32 [batch, 2], temperature
    float32 []) and returns the next tokens and the carry. The carry is a tuple of
    float32 [batch, features] arrays; `start_rows` has their initial values.

    Args:
      config: the architecture.
      params: of a `CharRNN`; they become part of the program.
      masked: a token that is never sampled, or None.
    """
    weights = jax.jit(decode_weights, static_argnums=0)(config, params)
    if masked is not None:
        weights = mask_token(weights, masked)
    structure = jax.tree.structure(_start_state(config, params))

    def generate(
        tokens: Int[Array, " batch"],
        carry: FlatState,
        keys: UInt32[Array, "batch 2"],
        temperature: Scalar,
    ) -> tuple[Int[Array, " batch"], FlatState]:
        state: DecodeState = jax.tree.unflatten(structure, carry)
        logits, state = decode_step(config, weights, weights.lookup(tokens), state)
        chosen = sample_token(logits, jax.random.wrap_key_data(keys), temperature)
        return chosen, tuple(jax.tree.leaves(state))

    (batch,) = jax.export.symbolic_shape("batch")
    carry = tuple(
        jax.ShapeDtypeStruct((batch, row.size), row.dtype)
        for row in start_rows(config, params).values()
    )
    with _no_source_paths():
        exported = jax.export.export(jax.jit(generate), platforms=PLATFORMS)(
            jax.ShapeDtypeStruct((batch,), jnp.int32),
            carry,
            jax.ShapeDtypeStruct((batch, 2), jnp.uint32),
            jax.ShapeDtypeStruct((), jnp.float32),
        )
        return bytes(exported.serialize())


@contextlib.contextmanager
def _no_source_paths() -> Iterator[None]:
    """Lowers programs without the paths of the Python files that they come from."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def start_rows(config: ModelConfig, params: PyTree) -> dict[str, Float[np.ndarray, " _"]]:
    """The program's initial carry, as one batch row per array, to be repeated over the batch.

    They are in the order of the program's carry: the states of each layer, then the hidden gates
    of each layer for the next step; see `charjax.model.decode.DecodeState`.
    """
    state = _start_state(config, params)
    states = {
        f"layer_{i}_state_{j}": leaf
        for i, layer in enumerate(state.carry)
        for j, leaf in enumerate(layer)
    }
    hgates = {f"layer_{i}_hgates": leaf for i, leaf in enumerate(state.hgates)}
    return {name: np.asarray(leaf[0]) for name, leaf in (states | hgates).items()}


@partial(jax.jit, static_argnums=0)
def _start_state(config: ModelConfig, params: PyTree) -> DecodeState:
    return decode_state(decode_weights(config, params), initial_carry(config, 1))


def _readme(trained: TrainedModel, start: dict[str, Any]) -> str:
    carry = "\n".join(f"  {name} float32 [batch, {row.size}]" for name, row in start.items())
    return _README.format(
        model=trained.config.model,
        data=trained.config.data,
        training=trained.training,
        carry=carry,
        characters=_characters(trained.vocab),
        platforms=", ".join(PLATFORMS),
        jax=jax.__version__,
        stream=int(Stream.SAMPLE),
    )


def _characters(vocab: Vocab) -> str:
    parts = [f"{counted(len(vocab.characters), 'token')}, each a {vocab.unit}"]
    if vocab.boundary:
        parts.append(
            f"the document boundary, id {vocab.boundary_id}, which is fed before the prompt and, "
            "where it is sampled, ends the text"
        )
    if vocab.unk:
        parts.append("[UNK], the last id, which is never sampled")
    return "; ".join(parts)


_README = """\
# A character model from charjax

{model.summary}, {training}.

| file | what it is |
|---|---|
| `generator.jax` | one step of generation as a `jax.export` program for {platforms} |
| `start.npz` | the initial carry: one batch row for each of its arrays, in order |
| `vocabulary.json` | `symbols`: id i is character i; `start`: the id to feed without a prompt |
| `weights.safetensors` | the parameters by name, float32, and the config in the metadata |

The vocabulary has {characters}.

`jax.export.deserialize(bytes).call(tokens, carry, keys, temperature)` returns the next tokens
and the carry, for any batch size:

```
tokens int32 [batch], the characters to read
carry, a tuple of
{carry}
keys uint32 [batch, 2], `jax.random.key_data` of one threefry key a sequence
temperature float32 []; 0 is greedy, 1e30 the largest
```

To read a prompt, convert it as the model's text was read (`data.lowercase={data.lowercase}`,
`data.newlines={data.newlines}`; unix: CR LF and CR become LF), feed its characters one after the
other, and keep only the carry that is returned. `charjax sample --seed=S --top_k=0 --top_p=1`
writes, as character p of sample i, what the key
fold_in(fold_in(fold_in(key(S), {stream}), i), p) gives. Another batch size, or device, may round
the last bit of a logit differently.

Written with jax {jax}. It needs the packages jax and flatbuffers; jax loads programs of versions
up to six months older. The weights have no such limit.
"""
