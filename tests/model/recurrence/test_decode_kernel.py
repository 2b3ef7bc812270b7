"""The sampling loop as one persistent kernel: interpreted on a CPU, and lowered for CUDA.

`python -m tests.model.recurrence.decode_on_gpu` checks and times it on a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.config import ModelConfig
from charjax.inference.options import Sampling
from charjax.inference.sampling import groups, sampler
from charjax.inference.sampling.sampler import Sampler
from charjax.model.decode import decode_state
from charjax.model.decode_weights import decode_weights, mask_token
from charjax.model.recurrence.pallas_hopper import decode as kernel
from charjax.model.recurrence.pallas_hopper.plan import LaunchConfig
from charjax.model.recurrence.pallas_hopper.tiling import choose_decode_tiling
from charjax.model.shapes import param_shapes
from tests.model.recurrence.decode_scan import rows_of, scan, steps_of
from tests.model.recurrence.test_pallas_hopper import HOPPER
from tests.model.small import UNOPTIMIZED, carry_of, distance, normal, params_of, tokens_of

# Four CTAs of 32 units, of which the first two have logits.
VOCAB, HIDDEN, TIME, MASKED = 40, 128, 5, 3
FOUR_CTAS = LaunchConfig(num_sms=4)
CONFIG = ModelConfig(cell="gru", hidden=HIDDEN, embed=4, dtype="bfloat16")
CELLS = ("gru", "lstm", "rnn")


def config_of(cell, hidden=HIDDEN):
    return ModelConfig(cell=cell, hidden=hidden, embed=4, dtype="bfloat16")


def operands(config, batch, time=TIME, vocab_size=VOCAB, noise=0.5):
    """The arguments of `decode`; some tokens are forced, and one of these is masked."""
    weights = mask_token(decode_weights(config, params_of(config, vocab_size)), MASKED)
    state = decode_state(weights, carry_of(config, batch))
    forced = np.full((time, batch), -1)
    forced[1], forced[-1, 0] = MASKED, 5
    igates = weights.lookup(tokens_of(vocab_size, batch, 1)[:, 0])
    return weights, state, igates, jnp.asarray(forced), noise * normal(3, time, batch, vocab_size)


def run(function, *args):
    return jax.jit(function, compiler_options=UNOPTIMIZED)(*args)


def run_kernel(config, given, launch=FOUR_CTAS):
    return run(partial(kernel.decode, config.cell, launch=launch), *given)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("cell", "batch", "noise"),
    [
        ("gru", 3, 0.5),
        pytest.param("gru", 64, 0.0, marks=pytest.mark.slow),
        pytest.param("lstm", 64, 0.5, marks=pytest.mark.slow),
        pytest.param("lstm", 9, 0.0, marks=pytest.mark.slow),
        pytest.param("rnn", 1, 0.5, marks=pytest.mark.slow),
    ],
)
def test_tokens_and_state_are_those_of_the_scan(cell, batch, noise):
    config = config_of(cell)
    given = operands(config, batch, noise=noise)
    tokens, state = run_kernel(config, given)
    want_tokens, want_state = run(partial(scan, config), *given)
    np.testing.assert_array_equal(tokens, want_tokens)
    assert (tokens[1] == MASKED).all()
    assert (np.delete(tokens, 1, axis=0) != MASKED).all()
    assert distance(state, want_state) < 0.01


@pytest.mark.usefixtures("interpreted")
@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_has_the_same_bits_in_any_batch(cell):
    config = config_of(cell)
    given = operands(config, 64)
    tokens, state = run_kernel(config, given)
    for rows in (1, 8, 9):
        fewer, fewer_state = run_kernel(config, rows_of(given, rows))
        np.testing.assert_array_equal(fewer, tokens[:, :rows])
        assert distance(fewer_state, jax.tree.map(lambda leaf: leaf[:rows], state)) == 0  # noqa: B023


@pytest.mark.usefixtures("interpreted")
@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_chunks_are_the_whole(cell):
    """After an odd number of steps the slots of the states begin anew."""
    config = config_of(cell)
    given = weights, *_ = operands(config, 3)
    tokens, last = run_kernel(config, given)
    first, state = run_kernel(config, steps_of(given, slice(3)))
    rest = weights, state, weights.lookup(first[-1]), *given[3:]
    second, chunked_last = run_kernel(config, steps_of(rest, slice(3, None)))
    np.testing.assert_array_equal(np.concatenate([first, second]), tokens)
    assert distance(chunked_last, last) == 0


@pytest.mark.usefixtures("interpreted")
@pytest.mark.slow
def test_the_sampler_writes_the_same_text_with_it(monkeypatch):
    """In chunks of one size, whatever the number of samples; its prompt is longer than a chunk."""
    launched = []
    monkeypatch.setattr(kernel, "launch_config", lambda: launched.append(1) or FOUR_CTAS)
    monkeypatch.setattr(groups, "_PERSISTENT_CHUNK", 4)
    written = {}
    for recurrence in ("xla", "scan"):  # programs of two configs, so that both are compiled
        for module in (groups, sampler):
            with_kernel = recurrence == "scan"
            monkeypatch.setattr(module, "has_persistent_loop", lambda *_, it=with_kernel: it)
        config = replace(CONFIG, recurrence=recurrence)
        model = Sampler(config, params_of(config, VOCAB), masked=MASKED)
        prompt, bias = np.array([1, 2, MASKED, 4, 5, 6]), ((7, 1.0), (8, -np.inf))
        for samples in (1, 3):
            sampling = Sampling(temperature=0.7, logit_bias=bias, seed=2)
            (group,) = model(prompt, num_chars=7, num_samples=samples, sampling=sampling)
            written[recurrence, samples] = np.concatenate(list(group), axis=1)
    assert len(launched) == 2  # traced for each number of samples
    assert written["scan", 3].shape == (3, 7)
    np.testing.assert_array_equal(written["scan", 3], written["xla", 3])
    np.testing.assert_array_equal(written["scan", 1], written["scan", 3][:1])


@pytest.mark.parametrize(
    ("cell", "batch"),
    [
        ("gru", 1),
        ("lstm", 64),
        pytest.param("gru", 64, marks=pytest.mark.slow),
        pytest.param("rnn", 9, marks=pytest.mark.slow),
    ],
)
def test_it_lowers_for_cuda(cell, batch):
    leaves, structure = jax.tree.flatten(operands(config_of(cell, 1024), batch, 32, 65))

    def decode(*leaves):  # weights of what jax puts in the place of arrays would be refused
        return kernel.decode(cell, *structure.unflatten(leaves), launch=LaunchConfig())

    lowered = jax.jit(decode).trace(*leaves).lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("custom_call @mosaic_gpu") == 1


@pytest.mark.parametrize("gates", [1, 3, 4])
def test_every_multiple_of_128_up_to_1024_has_a_tiling(gates):
    for hidden in range(128, 1025, 128):
        tiling = choose_decode_tiling(hidden, gates, 65, 132)
        assert tiling.fits(132)
        assert tiling.units == 8
    assert choose_decode_tiling(1024, gates, 257, 132) is None


PROGRAMS = {  # of a GPU: whether the kernel runs them
    "temperature": (CONFIG, {"temperature": 0.5}, None, None, True),
    "bias": (CONFIG, {"logit_bias": ((3, 1.0),)}, None, None, True),
    "top_k": (CONFIG, {"top_k": 3}, None, None, False),
    "top_p": (CONFIG, {"top_p": 0.9}, None, None, False),
    "min_p": (CONFIG, {"min_p": 0.1}, None, None, False),
    "penalty": (CONFIG, {"repetition_penalty": 1.1}, None, None, False),
    "log-probabilities": (CONFIG, {}, 0, None, False),
    "no copies": (CONFIG, {}, None, "a table", False),
    "two layers": (replace(CONFIG, layers=2), {}, None, None, False),
    "float32": (replace(CONFIG, dtype="float32"), {}, None, None, False),
    "xla": (replace(CONFIG, recurrence="xla"), {}, None, None, False),
}


def is_persistent(config, options=(), num_top=None, copies=None):
    params = {name: np.zeros(shape) for name, shape in param_shapes(config, VOCAB).items()}
    model = Sampler(config, params, masked=None)
    return model.program(Sampling(**dict(options)), 99, num_top, copies).persistent


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.usefixtures("unchecked_types")
def test_the_kernel_runs_programs_with_few_options(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    *given, runs = PROGRAMS[name]
    assert is_persistent(*given) == runs


def test_it_runs_at_most_64_rows_and_on_no_cpu(monkeypatch):
    assert not is_persistent(CONFIG)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    assert groups.has_persistent_loop(CONFIG, VOCAB, 64)
    assert not groups.has_persistent_loop(CONFIG, VOCAB, 65)


def test_groups_have_a_format_that_it_reads(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [HOPPER])
    assert {groups.group_format(CONFIG, VOCAB, size).layout for size in (1, 64)} == {"batch_major"}
    assert groups.group_format(CONFIG, VOCAB, 256).layout == "feature_major"
    assert list(groups.sample_groups(CONFIG, 66, persistent=True)) == [(0, 64), (64, 64)]
    assert list(groups.sample_groups(CONFIG, 7, persistent=True)) == [(0, 7)]
    assert list(groups.sample_groups(CONFIG, 66)) == [(0, 64), (64, 256)]
