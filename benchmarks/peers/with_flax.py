"""Plain Flax: `nn.RNN` over a Flax cell, one jitted step; a jitted scan to sample."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.worker import Task
from benchmarks.workload import Shape, batch

# `OptimizedLSTMCell` fuses the gates' kernels in the step.
CELLS = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "optimized_lstm": nn.OptimizedLSTMCell}


class CharModel(nn.Module):
    """embedding -> recurrent layers -> dropout -> logits."""

    cell: str
    hidden: int
    embed: int
    layers: int
    vocab: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, carry: Any, *, train: bool = True) -> tuple[Any, Any]:
        """Logits and carry after tokens [batch, time]; carry None starts from zeros."""
        x, carries = nn.Embed(self.vocab, self.embed)(tokens), []
        for layer in range(self.layers):
            rnn = nn.RNN(CELLS[self.cell](self.hidden), return_carry=True)
            after, x = rnn(x, initial_carry=None if carry is None else carry[layer])
            carries.append(after)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.vocab)(x), carries


def train_step(shape: dict[str, Any], cell: str) -> Task:
    """Forward, backward, clipping by global norm and Adam, in one donated jitted step."""
    wanted = Shape(**shape)
    model = CharModel(cell, wanted.hidden, wanted.embed, wanted.layers, wanted.vocab)
    inputs, targets = (jnp.asarray(x[0]) for x in batch(wanted))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    params = model.init(jax.random.key(0), inputs, None)
    state = (params, optimizer.init(params))

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        def loss_fn(params: Any) -> jax.Array:
            logits, _ = model.apply(params, inputs, None)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def run(units: int) -> dict[str, Any]:
        nonlocal state
        for _ in range(units):
            state, loss = step(state, inputs, targets)
        return {"loss": float(loss)}

    return Task(wanted.chars, run, about(params), device_bytes())


def sample(shape: dict[str, Any], streams: int, chars: int) -> Task:
    """A jitted `lax.scan` over the cell; each character splits the key and draws once."""
    wanted = Shape(**shape)
    rnn = CELLS[wanted.cell](wanted.hidden)
    embed, dense = nn.Embed(wanted.vocab, wanted.embed), nn.Dense(wanted.vocab)
    key = jax.random.key(0)
    x = jnp.zeros((streams, wanted.embed))
    carry = rnn.initialize_carry(key, x.shape)
    params = {
        "embed": embed.init(key, jnp.zeros(1, jnp.int32)),
        "rnn": rnn.init(key, carry, x),
        "dense": dense.init(key, jnp.zeros((1, wanted.hidden))),
    }

    @jax.jit
    def write(params: Any, carry: Any, token: jax.Array, key: jax.Array) -> jax.Array:
        def advance(at: Any, _: None) -> tuple[Any, jax.Array]:
            carry, token, key = at
            key, draw_key = jax.random.split(key)
            x = embed.apply(params["embed"], token)
            carry, y = rnn.apply(params["rnn"], carry, x)
            token = jax.random.categorical(draw_key, dense.apply(params["dense"], y))
            return (carry, token, key), token

        return jax.lax.scan(advance, (carry, token, key), None, length=chars)[1]

    def run(units: int) -> dict[str, Any]:
        for _ in range(units):
            written = write(params, carry, jnp.zeros(streams, jnp.int32), key)
        return {"last": int(written[-1, 0])}

    return Task(streams * chars, run, about(params), device_bytes())


def about(params: Any) -> dict[str, Any]:
    """Versions, device and parameter count of a JAX peer."""
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def device_bytes() -> Any:
    """How to read the accelerator's peak memory; None on a CPU."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return None
    return lambda: int((device.memory_stats() or {}).get("peak_bytes_in_use", 0))
