"""Normalisation by a power of the norm: its ends, its floor, and generalized smoothness."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo

GRADIENT = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]])}


def normalized(gradient: object = GRADIENT, **arguments: float) -> dict:
    tx = zoo.normalize_by_power(**arguments)
    return tx.update(gradient, tx.init(gradient))[0]


@pytest.mark.parametrize("beta", [0.0, 1 / 3, 2 / 3, 1.0])
def test_divides_by_a_power_of_the_norm_of_the_whole_tree(beta: float) -> None:
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, g / 5**beta, rtol=1e-6), normalized(beta=beta), GRADIENT)


def test_eps_is_added_to_the_norm() -> None:
    np.testing.assert_allclose(normalized(eps=1.0)["a"][0], 0.5, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_zero_gradient_stays_zero(beta: float) -> None:
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0.0 * u), normalized({"a": jnp.zeros(3)}, beta=beta))


def test_with_a_floor_it_is_clipped_gradient_descent() -> None:
    clip = optax.clip_by_global_norm(2.0)
    for scale in (0.1, 1.0, 10.0):
        gradient = jax.tree.map(lambda g, scale=scale: scale * g, GRADIENT)
        clipped = clip.update(gradient, clip.init(gradient))[0]
        ours = normalized(gradient, floor=2.0)
        jax.tree.map(lambda u, c: np.testing.assert_allclose(2.0 * u, c, rtol=1e-6), ours, clipped)


def test_a_floor_bounds_the_divisor_for_every_power() -> None:
    np.testing.assert_allclose(normalized(beta=0.5, floor=9.0)["a"][0], 1.0, rtol=1e-6)


@pytest.mark.parametrize("beta", [2 / 3, 1.0])
def test_converges_where_gradient_descent_with_the_same_first_step_diverges_or_crawls(beta: float) -> None:
    """f = x^4 + y^4 is (L0, L1)-smooth and not smooth: no step of gradient descent is safe far out and fast near 0."""
    start = jnp.array([6.0, -4.0])

    def run(tx: optax.GradientTransformation, steps: int = 4000) -> float:
        def step(carry: tuple, _: None) -> tuple:
            x, state = carry
            updates, state = tx.update(4 * x**3, state, x)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=steps)
        return float(jnp.sum(x**4))

    rate = 0.02
    assert run(optax.chain(zoo.normalize_by_power(beta), optax.sgd(rate))) < 1e-4
    assert not np.isfinite(run(optax.sgd(rate)))


def test_clip_by_norm_is_the_global_one_of_optax() -> None:
    assert zoo.clip_by_norm is optax.clip_by_global_norm
    clip = zoo.clip_by_norm(2.5)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, g / 2, rtol=1e-6),
        clip.update(GRADIENT, clip.init(GRADIENT))[0],
        GRADIENT,
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normalize_by_power: beta must be in \[0, 1\], got 1.5"):
        zoo.normalize_by_power(1.5)
    with pytest.raises(ValueError, match=r"normalize_by_power: floor must be in \(0, inf\), got 0"):
        zoo.normalize_by_power(floor=0.0)
