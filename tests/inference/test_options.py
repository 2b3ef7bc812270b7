"""The options of sampling and of dynamic evaluation are in range."""

from __future__ import annotations

import math

import numpy as np
import pytest

from charjax.errors import InputError
from charjax.inference.options import Controls, DynamicOptions, Sampling


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "flag", "values"),
    [
        (Sampling, "temperature", (-0.1, math.inf, math.nan, None, [0.5])),
        (Sampling, "top_k", (-1,)),
        (Sampling, "top_p", (0.0, 1.1, math.nan)),
        (Sampling, "seed", (-1, 2**32, 1.5)),
        (Controls, "until_lines", (-1, 1.5)),
        (Controls, "max_copy", (-1, 1.5)),
        (Controls, "stop", ("ab", (3,))),
        (Controls, "forbid", (["a"], None, 3)),
        (Controls, "only", (("a",), {"a"})),
        (Controls, "unique", (1, "no", None)),
        (DynamicOptions, "segment", (0, 2.5)),
        (DynamicOptions, "learning_rate", (-1.0, None)),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options, flag, values):
    for value in values:
        with pytest.raises(InputError) as caught:
            options(**{flag: value})
        shown = repr(value) if type(value) is str else value
        assert str(caught.value).startswith(f"--{flag}={shown}: must be ")


@pytest.mark.usefixtures("unchecked_types")
def test_a_number_of_numpy_is_a_number():
    assert Sampling(seed=np.int64(3)) == Sampling(seed=3)
    for dtype in (np.float16, np.float32, np.float64):  # a warning would be an error
        assert Sampling(temperature=dtype(0.5)) == Sampling(temperature=0.5)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("bias", [{3: 1.0}, (3, 1.0), ((3, "a"),), ((3, None),), 3])
def test_biases_that_are_no_pairs_are_refused(bias):
    with pytest.raises(InputError, match=r"^logit_bias=.*: must be pairs of "):
        Sampling(logit_bias=bias)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ((3, math.inf), r"logit_bias of token 3: .* from -1e\+30 to"),
        ((3, math.nan), "logit_bias of token 3: nan"),
        ((3, 1e31), r"logit_bias of token 3: 1e\+31"),
        ((3, -1e300), r"logit_bias of token 3: -1e\+300"),
        ((1.5, 0.0), "logit_bias: token=1.5: must be an integer"),
    ],
)
def test_a_bias_that_could_leave_float32_is_refused(bias, message):
    with pytest.raises(InputError, match=f"^{message}"):
        Sampling(logit_bias=(bias,))
    assert Sampling(logit_bias=((3, -math.inf), (4, 1e30)))
