from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from charjax.train.progress import Progress

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, st.lists(finite), finite | st.just(math.inf), st.integers(0), st.text())
def test_progress_survives_json(elapsed_s, losses, best, since_best, ended):
    past = Progress(elapsed_s, losses, best, since_best, ended)
    assert Progress.from_json(json.loads(json.dumps(past.to_json(), allow_nan=False))) == past


@given(st.lists(st.floats(0, 10), min_size=1))
def test_the_best_is_the_lowest_and_its_age_is_counted(losses):
    past = Progress()
    better = [past.update_best(loss) for loss in losses]
    assert past.best == min(losses)
    assert past.since_best == len(losses) - 1 - losses.index(min(losses))
    assert better == [loss < min([math.inf, *losses[:i]]) for i, loss in enumerate(losses)]
