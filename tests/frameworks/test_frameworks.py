"""Law "frameworks": every method lowers a loss under every framework's parameter containers."""

import functools
import re

import jax
import numpy as np
import pytest

from optax_zoo import Paper, papers
from tests.frameworks.networks import FRAMEWORKS, linen

LAW = "frameworks"
BREAKAGES = (AssertionError, AttributeError, KeyError, TypeError, ValueError)

lawful = [paper for paper in papers().values() if LAW not in paper.breaks]
outlaws = [paper for paper in papers().values() if LAW in paper.breaks]
cases = [pytest.param(paper, [name], id=f"{paper.name}-{name}") for paper in lawful for name in FRAMEWORKS]
cases += [pytest.param(paper, list(FRAMEWORKS), id=f"{paper.name}-breaks-as-recorded") for paper in outlaws]


@pytest.fixture(autouse=True)
def _frameworks_promote_dtypes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def assert_learns(paper: Paper, train) -> None:
    before, after = train(paper.build(1e-2 * paper.relative_learning_rate))
    assert np.isfinite(after)
    assert float(after) < float(before)


@pytest.mark.parametrize(("paper", "frameworks"), cases)
def test_learns(paper, frameworks):
    if LAW in paper.breaks:
        with pytest.raises(BREAKAGES):
            for name in frameworks:
                assert_learns(paper, FRAMEWORKS[name])
    else:
        for name in frameworks:
            assert_learns(paper, FRAMEWORKS[name])


@pytest.mark.parametrize("paper", lawful, ids=lambda paper: paper.name)
def test_apply_gradients_learns_or_names_the_missing_argument(paper):
    train = functools.partial(linen, apply_gradients=True)
    missing = [name for name in paper.needs if name != "params"]
    if missing:
        with pytest.raises((TypeError, ValueError), match="|".join(map(re.escape, missing))):
            assert_learns(paper, train)
    else:
        assert_learns(paper, train)
