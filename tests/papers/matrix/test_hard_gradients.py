"""Gradients that are hard on matrix methods, for every method that looks at matrices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.laws.harness import assert_close, assert_finite, build, rate

METHODS = [
    pytest.param(paper, id=paper.name)
    for paper in zoo.papers().values()
    if paper.trains and paper.make.__module__.startswith("optax_zoo.matrix.")
]
SHAPES = {"tall": (8, 3), "wide": (3, 8), "square": (4, 4)}


def draw(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def zero(x: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def rank_one(x: np.ndarray) -> np.ndarray:
    return np.outer(x[:, 0], x[0])


def tiny(x: np.ndarray) -> np.ndarray:
    return np.float32(1e-30) * x


def huge(x: np.ndarray) -> np.ndarray:
    return np.float32(1e15) * x


def repeated_rows(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x[:1], x.shape)


def walk(paper: zoo.Paper, change: Callable[[str, np.ndarray], np.ndarray], steps: int = 4) -> Any:
    """Updates of every step, whose gradients are changed by name."""
    tx = build(paper, rate(paper))
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * x), draw(99))
    state, out = tx.init(params), []

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, grad_fn=lambda at: grads)
        return optax.apply_updates(params, updates), state, updates

    for i in range(steps):
        grads = {name: jnp.asarray(change(name, x)) for name, x in draw(i).items()}
        params, state, updates = step(params, state, grads)
        out.append(updates)
    return out


@pytest.mark.parametrize("change", [zero, rank_one, tiny, huge, repeated_rows])
@pytest.mark.parametrize("paper", METHODS)
def test_updates_stay_finite(paper: zoo.Paper, change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert_finite(walk(paper, lambda name, x: change(x)), f"the updates of {change.__name__} gradients")


@pytest.mark.parametrize("paper", METHODS)
def test_a_nan_stays_in_its_own_matrix(paper: zoo.Paper) -> None:
    def spoiled(name: str, x: np.ndarray) -> np.ndarray:
        return np.where(np.arange(x.size).reshape(x.shape) == 5, np.float32(np.nan), x) if name == "tall" else x

    healthy, ill = walk(paper, lambda name, x: x), walk(paper, spoiled)
    assert not np.isfinite(ill[-1]["tall"]).all()
    for name in ("wide", "square"):
        assert_close([u[name] for u in ill], [u[name] for u in healthy], name)


@pytest.mark.parametrize("paper", METHODS)
def test_a_finished_method_takes_care_of_vectors(paper: zoo.Paper) -> None:
    params = {"w": jnp.ones((3, 2)), "gain": jnp.ones(3)}
    tx = build(paper, rate(paper))
    updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda at: params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("paper", METHODS)
def test_a_leaf_without_gradient_rests(paper: zoo.Paper) -> None:
    params = {"w": jnp.ones((3, 2)), "still": jnp.ones((3, 2)), "gain": jnp.ones(3)}
    tx = build(paper, rate(paper))
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update({**params, "still": None}, state, params, grad_fn=lambda at: {**at, "still": None})
    assert updates["still"] is None
    assert jnp.any(updates["w"]) and jnp.any(updates["gain"])


@pytest.mark.parametrize("make", [zoo.muon, zoo.normuon, zoo.adago, zoo.mars])
def test_whose_a_missing_gradient_is_must_be_known(make: Callable[..., Any]) -> None:
    params = {"w": jnp.ones((3, 2)), "gain": jnp.ones(3)}
    tx = make(0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match=rf"^{make.__name__}: the gradient at \['w'\] is None; pass params"):
        tx.update({**params, "w": None}, tx.init(params))


@pytest.mark.parametrize("make", [zoo.scale_by_muon, zoo.scale_by_normuon, zoo.scale_by_adago])
def test_a_bare_rule_for_matrices_names_the_vector_that_it_is_given(make: Callable[..., Any]) -> None:
    name = make.__name__.removeprefix("scale_by_")
    with pytest.raises(ValueError, match=rf"^{name}: the leaf at \['gain'\] of shape \(3,\) is not a matrix; mask it"):
        make().init({"w": jnp.ones((3, 2)), "gain": jnp.ones(3)})
