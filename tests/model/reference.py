"""The network in float64 numpy, written from the cells' equations and independent of JAX."""

from __future__ import annotations

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gru(x, u, carry):
    (h,) = carry
    r, z, n = (slice(i * h.shape[1], (i + 1) * h.shape[1]) for i in range(3))
    reset, update = sigmoid(x[:, r] + u[:, r]), sigmoid(x[:, z] + u[:, z])
    candidate = np.tanh(x[:, n] + reset * u[:, n])
    return ((1 - update) * candidate + update * h,)


def lstm(x, u, carry):
    h, c = carry
    i, f, g, o = (x + u).reshape(len(h), 4, -1).swapaxes(0, 1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def rnn(x, u, carry):
    return (np.tanh(x + u),)


STEPS = {"gru": gru, "lstm": lstm, "rnn": rnn}


def layer(cell, xs, kernel, bias, carry):
    """Outputs [time, batch, hidden] and the last carry of rows [time, batch, gates]."""
    outputs = []
    for x in xs:
        u = carry[0] @ kernel
        if bias is not None:
            u[:, -len(bias) :] += bias
        carry = STEPS[cell](x, u, carry)
        outputs.append(carry[0])
    return np.stack(outputs), carry


def network(config, params, tokens, carry):
    """Logits [batch, time, vocab] and the last carry, without dropout."""
    inputs = params["embedding"] if config.embed else np.eye(params["layer_0"]["kernel"].shape[0])
    inputs, last = inputs[tokens.T], []
    for i in range(config.layers):
        p = params[f"layer_{i}"]
        recurrent = p["recurrent"]
        xs = inputs @ p["kernel"] + p["bias"]
        inputs, state = layer(config.cell, xs, recurrent["kernel"], recurrent.get("bias"), carry[i])
        last.append(state)
    logits = inputs @ params["output_kernel"] + params["output_bias"]
    return logits.swapaxes(0, 1), tuple(last)
