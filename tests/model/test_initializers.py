"""Initial parameters follow the distributions that the frameworks document."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.model.network import init_params

HIDDEN, EMBED, VOCAB = 48, 16, 40


def random_params(init: str, cell: str) -> dict:
    config = ModelConfig(cell=cell, hidden=HIDDEN, embed=EMBED, init=init)
    return init_params(config, VOCAB, jax.random.key(0))


def params_of(init: str, cell: str = "lstm") -> dict:
    return jax.tree.map(np.asarray, random_params(init, cell))


def assert_uniform_within(weights: np.ndarray, bound: float) -> None:
    assert np.abs(weights).max() <= bound
    assert np.std(weights) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_orthogonal_has_an_orthogonal_matrix_for_each_gate():
    kernel = params_of("orthogonal")["layer_0"]["recurrent"]["kernel"]
    for block in np.split(kernel, 4, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(HIDDEN), atol=1e-5)


@pytest.mark.parametrize("init", ["orthogonal", "keras"])
def test_no_matrix_is_decomposed_in_a_batch(init):
    """XLA's threads would share the batch, and those of two layers wait for each other."""
    config = ModelConfig(cell="lstm", hidden=4, layers=2, embed=2, init=init)
    lowered = jax.jit(lambda key: init_params(config, 3, key)).lower(jax.random.key(0)).as_text()
    calls = [line for line in lowered.splitlines() if "custom_call @lapack" in line]
    assert calls
    assert not [line for line in calls if re.search(r"tensor<\d+x\d+x\d+xf32>", line)]


def test_two_layers_are_initialized_on_two_threads():
    """With decompositions in a batch, this waited forever."""
    code = """
        import jax
        from charjax.config import ModelConfig
        from charjax.model.network import init_params
        for _ in range(3):
            jax.block_until_ready(init_params(
                ModelConfig(cell="lstm", hidden=512, layers=2), 3, jax.random.key(0)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, env=os.environ | {"NPROC": "2"}, timeout=60, check=True)


def test_keras_has_orthonormal_rows_over_all_gates():
    params = params_of("keras")
    kernel = params["layer_0"]["recurrent"]["kernel"]
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(HIDDEN), atol=1e-5)
    assert_uniform_within(params["embedding"], 0.05)
    assert_uniform_within(params["layer_0"]["kernel"], (6 / (EMBED + 4 * HIDDEN)) ** 0.5)
    assert_uniform_within(params["output_kernel"], (6 / (HIDDEN + VOCAB)) ** 0.5)


def test_keras_glorot_differs_from_keras_in_the_recurrent_kernel_only():
    kernel = params_of("keras_glorot")["layer_0"]["recurrent"].pop("kernel")
    assert_uniform_within(kernel, (6 / (5 * HIDDEN)) ** 0.5)
    glorot, keras = params_of("keras_glorot"), params_of("keras")
    for params in (glorot, keras):
        params["layer_0"]["recurrent"].pop("kernel")
    jax.tree.map(np.testing.assert_array_equal, glorot, keras)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_torch_draws_all_but_the_embedding_within_one_bound(cell):
    params = params_of("torch", cell)
    assert np.std(params.pop("embedding")) == pytest.approx(1, rel=0.1)
    weights = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    assert_uniform_within(weights, HIDDEN**-0.5)


@pytest.mark.parametrize("init", ["orthogonal", "keras", "keras_glorot"])
def test_only_the_forget_gate_has_a_nonzero_bias(init):
    bias = params_of(init)["layer_0"]["bias"]
    np.testing.assert_array_equal(
        np.split(bias, 4), [[0] * HIDDEN, [1] * HIDDEN, *[[0] * HIDDEN] * 2]
    )
    assert not params_of(init, "gru")["layer_0"]["bias"].any()
