"""The paper's defaults decrease a convex objective and a curved valley like Rosenbrock's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

import optax_zoo
from optax_zoo import Paper
from tests.laws.harness import Batch, PyTree, default_promotion, law, rollout

ADAMW_RATE = 1e-3
DURATION = 1500


def start() -> PyTree:
    return {"b": jnp.array([-1.2, 1.0]), "w": jnp.array([[-1.2, 1.0, 0.5], [0.8, -0.7, 1.4], [0.1, 0.9, -1.1]])}


def convex(params: PyTree) -> Array:
    def bowl(p: Array) -> Array:
        widths = jnp.linspace(0.005, 0.05, p.size).reshape(p.shape)
        return jnp.sum(widths * jnp.square(p - 0.3))

    return sum(map(bowl, jax.tree.leaves(params)))


def valley(params: PyTree) -> Array:
    def chain(p: Array) -> Array:
        x, y = p[..., :-1], p[..., 1:]
        return 0.002 * jnp.sum(jnp.square(1 - x) + 10 * jnp.square(y - jnp.square(x)))

    return sum(map(chain, jax.tree.leaves(params)))


@law
def test_convergence(paper: Paper) -> None:
    tx = paper.build(ADAMW_RATE * paper.relative_learning_rate)
    seeds = {"seed": jnp.arange(DURATION, dtype=jnp.uint32)}

    def train(objective: Callable[[PyTree], Array]) -> tuple[Array, Array, Array]:
        def loss_of(batch: Batch) -> Callable[[PyTree], Array]:
            return objective

        params, state = rollout(tx, start(), seeds, loss_of=loss_of)
        return objective(start()), objective(params), objective(optax_zoo.eval_params(state, params))

    objectives = (convex, valley)
    with default_promotion():
        losses = jax.jit(lambda: [train(objective) for objective in objectives])()
    for objective, (before, after, evaluated) in zip(objectives, losses, strict=True):
        assert after < 0.7 * before, f"{objective.__name__}: {before:.4f} became {after:.4f}"
        assert evaluated < before, f"{objective.__name__}: {before:.4f} became {evaluated:.4f} at eval_params"
