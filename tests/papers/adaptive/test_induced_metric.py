"""The induced metric: its inverse, its limits, and steps that are skipped."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo
from tests.support import optax_trajectory, problem, trajectory

PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}


def gradient(scale: float = 1.0) -> dict[str, jax.Array]:
    return jax.tree.map(lambda g: jnp.asarray(scale * g[0], jnp.float32), problem()[1])


def flat(tree: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.ravel(tree[key]) for key in sorted(tree)]).astype(np.float64)


def test_flat_space_gives_sgd_with_an_ema() -> None:
    params, gradients = problem()
    with jax.enable_x64(True):
        ours, _ = trajectory(zoo.induced_metric(0.1, xi=0.0), params, gradients)
        theirs = optax_trajectory(optax.chain(optax.ema(0.9), optax.sgd(0.1)), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, theirs)


@pytest.mark.parametrize("variant", ["standard", "log"])
def test_without_averages_it_inverts_the_metric(variant: Any) -> None:
    """With h = 1 for the graph of L and h = 1/L for that of ln L: the metric is I + xi h^2 g g^T, the slope h g."""
    xi, loss = 0.3, 1.7
    tx = zoo.scale_by_induced_metric(momentum=0.0, xi=xi, beta=0.0, variant=variant)
    u, _ = tx.update(gradient(), tx.init(PARAMS), value=jnp.float32(loss))
    h, g = (1.0 if variant == "standard" else 1 / loss), flat(gradient())
    metric = np.eye(g.size) + xi * h**2 * np.outer(g, g)
    np.testing.assert_allclose(flat(u), np.linalg.solve(metric, h * g), rtol=1e-5)


def test_steps_of_the_rms_variant_written_out() -> None:
    params, gradients = problem(steps=6)
    momentum, xi, beta, beta_rms, eps = 0.8, 0.2, 0.7, 0.9, 1e-3
    with jax.enable_x64(True):
        tx = zoo.induced_metric(0.1, momentum, xi, beta, "rms", beta_rms, eps, weight_decay=0.05)
        ours, _ = trajectory(tx, params, gradients)
    p = {key: leaf.copy() for key, leaf in params.items()}
    r, buf = ({key: np.zeros_like(leaf) for key, leaf in params.items()} for _ in range(2))
    energy = 0.0
    for t in range(1, 7):
        g = {key: gradients[key][t - 1] for key in p}
        r = {key: beta_rms * r[key] + (1 - beta_rms) * g[key] ** 2 for key in p}
        d = {key: np.sqrt(r[key] / (1 - beta_rms**t)) + eps for key in p}
        energy = beta * energy + (1 - beta) * xi * sum((g[key] ** 2 / d[key]).sum() for key in p)
        c = 1 / (1 + energy / (1 - beta**t))
        buf = {key: momentum * buf[key] + (1 - momentum) * g[key] for key in p}
        p = {key: p[key] - 0.1 * (c * buf[key] / (1 - momentum**t) / d[key] + 0.05 * p[key]) for key in p}
        for key in p:
            np.testing.assert_allclose(ours[key][t - 1], p[key], rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e6])
def test_steps_are_shorter_where_it_is_steep(scale: float) -> None:
    """A smoothed form of clipping: |g| / (1 + xi |g|^2) is never above 1 / (2 sqrt(xi)), however large g is."""
    tx = zoo.scale_by_induced_metric(momentum=0.0, xi=0.25, beta=0.0)
    u, _ = tx.update(gradient(scale), tx.init(PARAMS))
    assert 0 < float(optax.tree.norm(u)) <= 1.0


@pytest.mark.parametrize(
    ("variant", "broken"), [("log", "value"), ("standard", "gradient"), ("log", "gradient"), ("rms", "gradient")]
)
def test_a_step_that_is_not_finite_changes_only_the_count(variant: Any, broken: str) -> None:
    tx = zoo.induced_metric(0.1, variant=variant)
    _, state = tx.update(gradient(), tx.init(PARAMS), PARAMS, value=jnp.float32(1.0))
    grads = gradient() if broken == "value" else {**gradient(), "b": jnp.array([0.0, jnp.nan, 1.0])}
    value = jnp.float32(jnp.nan if broken == "value" else 1.0)
    updates, after = jax.jit(tx.update)(grads, state, PARAMS, value=value)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0.0), updates)
    assert int(after[0].count) == 2
    jax.tree.map(np.testing.assert_array_equal, after[0]._replace(count=0), state[0]._replace(count=0))


def test_an_entry_without_gradient_divides_by_nothing() -> None:
    tx = zoo.scale_by_induced_metric(variant="rms", eps=0.0)
    u, _ = tx.update({**gradient(), "b": jnp.zeros(3)}, tx.init(PARAMS))
    np.testing.assert_array_equal(u["b"], 0.0)
    assert np.isfinite(flat(u)).all() and np.abs(flat(u)).max() > 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"induced_metric: variant must be one of .* did you mean 'log'"):
        zoo.induced_metric(variant="logs")
    with pytest.raises(ValueError, match=r"induced_metric: xi must be in \[0, inf\), got -1"):
        zoo.induced_metric(xi=-1)
    tx = zoo.induced_metric(variant="log")
    with pytest.raises(ValueError, match="induced_metric: needs value"):
        tx.update(gradient(), tx.init(PARAMS), PARAMS)
