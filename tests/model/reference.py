"""The network in float64 numpy, written from the cells' equations and independent of JAX."""

from __future__ import annotations

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gru(igates, hgates, carry):
    (h,) = carry
    r, z, n = (slice(i * h.shape[1], (i + 1) * h.shape[1]) for i in range(3))
    reset = sigmoid(igates[:, r] + hgates[:, r])
    update = sigmoid(igates[:, z] + hgates[:, z])
    candidate = np.tanh(igates[:, n] + reset * hgates[:, n])
    return ((1 - update) * candidate + update * h,)


def lstm(igates, hgates, carry):
    h, c = carry
    i, f, g, o = (igates + hgates).reshape(len(h), 4, -1).swapaxes(0, 1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def rnn(igates, hgates, carry):
    return (np.tanh(igates + hgates),)


def mingru(igates, hgates, carry):
    (h,) = carry
    z, candidate = igates.reshape(len(h), 2, -1).swapaxes(0, 1)
    return ((1 - sigmoid(z)) * h + sigmoid(z) * candidate,)


def minlstm(igates, hgates, carry):
    (h,) = carry
    i, f, candidate = igates.reshape(len(h), 3, -1).swapaxes(0, 1)
    i, f = sigmoid(i), sigmoid(f)
    return ((f * h + i * candidate) / (f + i),)


STEPS = {
    **{"gru": gru, "lstm": lstm, "rnn": rnn, "mingru": mingru, "minlstm": minlstm},
    "mogrifier": lstm,
}


def mogrify(x, h, rounds, kernel, bias):
    """The input gates of a mogrifier's step, and the state that its hidden gates read."""
    r1, r2, r3, r4, r5 = rounds
    x = 2 * sigmoid(h @ r1) * x
    h = 2 * sigmoid(x @ r2) * h
    x = 2 * sigmoid(h @ r3) * x
    h = 2 * sigmoid(x @ r4) * h
    x = 2 * sigmoid(h @ r5) * x
    return x @ kernel + bias, h


def layer(cell, igates, kernel, bias, mogrifier, carry, resets=None):
    """Outputs [time, batch, hidden] and the last carry, from igates [time, batch, gates].

    With a mogrifier, (rounds, kernel, bias), `igates` are the inputs [time, batch, features].
    """
    outputs = []
    for t, step in enumerate(igates):
        if resets is not None:
            carry = tuple(np.where(np.asarray(resets)[t, :, None], 0.0, part) for part in carry)
        h = carry[0]
        if mogrifier is not None:
            step, h = mogrify(step, h, *mogrifier)
        hgates = h @ kernel
        if bias is not None:
            hgates[:, -len(bias) :] += bias
        carry = STEPS[cell](step, hgates, carry)
        outputs.append(carry[0])
    return np.stack(outputs), carry


def network(config, params, tokens, carry, resets=None):
    """Logits [batch, time, vocab] and the last carry, without dropout."""
    inputs = params["embedding"] if config.embed else np.eye(params["layer_0"]["kernel"].shape[0])
    inputs, last = inputs[tokens.T], []
    resets = None if resets is None else resets.T
    for i in range(config.layers):
        p = params[f"layer_{i}"]
        recurrent = p.get("recurrent", {"kernel": np.zeros((config.hidden, 0))})
        igates, mogrifier = inputs @ p["kernel"] + p["bias"], None
        if config.cell == "mogrifier":
            rounds = [p[f"round_{number}_kernel"] for number in range(5)]
            igates, mogrifier = inputs, (rounds, p["kernel"], p["bias"])
        kernel, bias = recurrent["kernel"], recurrent.get("bias")
        inputs, state = layer(config.cell, igates, kernel, bias, mogrifier, carry[i], resets)
        last.append(state)
    logits = inputs @ params["output_kernel"] + params["output_bias"]
    return logits.swapaxes(0, 1), tuple(last)
