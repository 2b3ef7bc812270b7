"""The next token: the likeliest k, the nucleus, and one key a sequence."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from charjax.inference.sampling.logits import mask_below_top_k, mask_below_top_p, sample_token

ROWS_OF_LOGITS = st.permutations([-math.inf, -7.0, -1.5, -0.5, 0.25, 1.0, 1.75, 3.0])


@given(logits=ROWS_OF_LOGITS, k=st.integers(1, 9))
def test_top_k_keeps_exactly_k(logits, k):
    kept = np.asarray(mask_below_top_k(jnp.asarray([logits], jnp.float32), 9, jnp.array([[k]])))[0]
    want = [x if x in sorted(logits, reverse=True)[:k] else -math.inf for x in logits]
    np.testing.assert_array_equal(kept, np.array(want, np.float32))


@given(logits=ROWS_OF_LOGITS, p=st.sampled_from([1e-30, 0.3, 0.65, 0.8, 0.9, 0.98, 0.9999]))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    kept = np.asarray(mask_below_top_p(jnp.asarray([logits], jnp.float32), jnp.float32(p)))[0]
    probs = np.exp(logits) / np.exp(logits).sum()
    inside = np.isfinite(kept)
    np.testing.assert_array_equal(kept[inside], np.float32(logits)[inside])
    assert probs[inside].sum() >= p
    assert probs[inside].sum() - probs[inside].min() < p
    assert probs[inside].min() > probs[~inside].max(initial=0)


def test_each_sequence_is_sampled_by_its_key():
    keys = jax.random.split(jax.random.key(0), 4)
    logits = jnp.tile(jnp.linspace(0, 1, 50), (4, 1))
    together = sample_token(logits, keys, jnp.float32(1))
    one_by_one = [
        sample_token(logits[i : i + 1], keys[i : i + 1], jnp.float32(1))[0] for i in range(4)
    ]
    np.testing.assert_array_equal(together, np.array(one_by_one))
    assert len(set(together.tolist())) > 1
