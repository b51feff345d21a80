"""Dual SGD: dualisation of an average of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import problem, trajectory

ROLES = {"w": "linear", "b": "vector"}


def polar(m: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(m, full_matrices=False)
    return np.sqrt(m.shape[1] / m.shape[0]) * u @ vt


def rms(m: np.ndarray) -> np.ndarray:
    return m / np.sqrt(np.mean(m**2))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("adaptive", [True, False])
def test_equals_the_numpy_transcription(momentum: float, adaptive: bool) -> None:
    params, gradients = problem(steps=5)
    rate, decay, budgets = 0.05, 0.1, {"w": 0.5, "b": 2.0}
    with jax.enable_x64(True):
        tx = zoo.dual_sgd(
            rate, ROLES, momentum, target_norm=budgets, adaptive=adaptive, method="svd", weight_decay=decay
        )
        ours, _ = trajectory(tx, params, gradients)
    m = {name: np.zeros_like(p) for name, p in params.items()}
    for i in range(5):
        m = {name: momentum * m[name] + (1 - momentum) * gradients[name][i] for name in m}
        t = {"w": budgets["w"] * polar(m["w"]), "b": budgets["b"] * rms(m["b"])}
        dual = sum(np.sum(m[name] * t[name]) for name in m) if adaptive else 1.0
        params = {name: p - rate * (dual * t[name] + decay * p) for name, p in params.items()}
        for name, p in params.items():
            np.testing.assert_allclose(ours[name][i], p, rtol=1e-9)


def test_without_momentum_nothing_is_kept() -> None:
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    assert all(leaf.shape == () for leaf in jax.tree.leaves(zoo.dual_sgd(0.1, ROLES).init(params)))
    kept = zoo.dual_sgd(0.1, ROLES, 0.9, mu_dtype=jnp.bfloat16).init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(optax.tree.get(kept, "momentum"))} == {jnp.dtype(jnp.bfloat16)}


def test_the_average_is_not_rounded_before_it_is_dualized() -> None:
    """The first average of gradients is a tenth of them, which float16 does not hold here."""
    g = jnp.asarray([6e-8, 1.8e-7], jnp.float16)
    tx = zoo.dual_sgd(1.0, "vector", 0.9, mu_dtype=jnp.float32)
    updates, _ = tx.update(g, tx.init(g))
    assert updates.dtype == jnp.float16
    np.testing.assert_allclose(updates, -rms(np.asarray(g, np.float64)), rtol=1e-3)


def test_bad_input_is_refused() -> None:
    for arguments, sentence in (
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"target_norm": -1.0}, r"target_norm must be in \[0, inf\), got -1.0"),
        ({"eps": -1.0}, r"eps must be in \[0, inf\), got -1.0"),
        ({"method": "qr"}, "method must be one of"),
    ):
        with pytest.raises(ValueError, match=f"^dual_sgd: {sentence}"):
            zoo.dual_sgd(0.1, ROLES, **arguments)
    with pytest.raises(ValueError, match=r"dual_sgd: the leaf at \['b'\] of shape \(3,\) has the role 'linear'"):
        zoo.dual_sgd(0.1, "linear").init({"b": jnp.ones(3)})
