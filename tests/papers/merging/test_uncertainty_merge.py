"""Uncertainty-based gradient matching: its limits, and that it is exact where losses are quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_zoo as zoo
from tests.papers.merging.recorded import Recorded

RECORDED = Recorded("uncertainty_merge.basic")
GIVEN = [RECORDED.tree(f"in/{part}/") for part in ("base", "models", "hessian_base", "hessians")]


@pytest.mark.parametrize("variant", RECORDED.meta["extra"]["variants"])
def test_the_authors_values(variant: str) -> None:
    kwargs = RECORDED.meta["extra"]["variants"][variant]
    with jax.enable_x64(True):
        RECORDED.assert_equal(zoo.uncertainty_merge(*GIVEN, **kwargs), f"out/{variant}/")


@pytest.mark.parametrize("delta0", [0.0, 0.3])
def test_without_curvature_it_is_task_arithmetic(delta0: float) -> None:
    base, models, h0, hs = GIVEN
    flat0, flat = jax.tree.map(np.zeros_like, (h0, hs))
    with jax.enable_x64(True):
        merged = zoo.uncertainty_merge(base, models, flat0, flat, alpha=0.7, delta0=delta0)
        expected = zoo.task_arithmetic(base, models, 0.7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), merged, expected)


def test_one_model_is_returned() -> None:
    base, models, h0, hs = GIVEN
    first = [{name: x[:1] for name, x in part.items()} for part in (models, hs)]
    with jax.enable_x64(True):
        merged = zoo.uncertainty_merge(base, first[0], h0, first[1], delta0=0.1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-12), merged, first[0])


def test_quadratic_tasks_are_merged_into_their_joint_minimum() -> None:
    """Models that minimise their task and the base's prior merge into the minimum of all tasks and the prior."""
    rng = np.random.default_rng(0)
    base, (h0, h1, h2), (c1, c2) = rng.normal(size=6), rng.uniform(0.1, 2.0, (3, 6)), rng.normal(size=(2, 6))
    models = [(h0 * base + h * c) / (h0 + h) for h, c in ((h1, c1), (h2, c2))]
    a1, a2 = 0.4, 1.5
    joint = (h0 * base + a1 * h1 * c1 + a2 * h2 * c2) / (h0 + a1 * h1 + a2 * h2)
    with jax.enable_x64(True):
        merged = zoo.uncertainty_merge(base, models, h0, [h1, h2], alpha=[a1, a2])
        np.testing.assert_allclose(merged, joint, rtol=1e-12)
        halves = zoo.uncertainty_merge(
            base,
            models,
            h0 / 4,
            [h1 / 2, h2 / 3],
            alpha=jnp.asarray([a1, a2]),
            hessian_scales=[2, 3],
            base_hessian_scale=4.0,
        )
        np.testing.assert_allclose(halves, joint, rtol=1e-12)
        plain = zoo.task_arithmetic(base, models, 1.0)
    assert np.linalg.norm(np.asarray(plain) - joint) > 0.1


def test_what_cannot_be_is_refused() -> None:
    w = jnp.ones(2)
    with pytest.raises(ValueError, match="uncertainty_merge: 1 models need as many hessians, got 2"):
        zoo.uncertainty_merge(w, [w], w, [w, w])
    with pytest.raises(ValueError, match=r"uncertainty_merge: delta0 must be in \[0, inf\), got -1"):
        zoo.uncertainty_merge(w, [w], w, [w], delta0=-1)
    with pytest.raises(ValueError, match=r"uncertainty_merge: alpha must be 1 numbers, one for each model"):
        zoo.uncertainty_merge(w, [w], w, [w], alpha=[1, 2])
    with pytest.raises(ValueError, match=r"uncertainty_merge: hessian_scales must be in \[0, inf\), got -3"):
        zoo.uncertainty_merge(w, [w], w, [w], hessian_scales=[-3])
