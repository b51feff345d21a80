"""Paths of optimizers in two dimensions, through a curved valley.

The surface is f(x, y) = (1 - x)^2 + 10 (y - x^2)^2, the function of Rosenbrock (1960, "An automatic method
for finding the greatest or least value of a function") with walls ten times less steep, so that momentum,
overshoot and zigzag can be seen. Its minimum is f = 0 at (1, 1).

The parameter is one float32 array of shape (2,), so that element-wise methods see two elements; a method that
treats matrices differently (Muon) sees a vector, and does here what it does to vectors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

import optax_zoo
from optax_zoo import Paper

START = (-0.5, 2.5)
MINIMUM = (1.0, 1.0)
LOWER, UPPER = (-2.0, -1.0), (2.0, 3.0)
STEPS = 300
LEARNING_RATES = np.logspace(-4.0, 1.0, 21, dtype=np.float32)

Points = NDArray[np.float32]


class Trajectory(NamedTuple):
    """The path of one optimizer from `START`, at the learning rate that ends lowest.

    Runs that leave the rectangle from `LOWER` to `UPPER` are chosen only if all of them do.

    Attributes:
      learning_rate: the chosen learning rate.
      points: the parameters that were trained, start included, `(steps + 1, 2)`; cut before the first that is
        not finite.
      averaged: the parameters to evaluate (`optax_zoo.eval_params`), likewise; None where they are `points`.
      value: f at the last parameters to evaluate; not finite where every learning rate diverged.
    """

    learning_rate: float
    points: Points
    averaged: Points | None
    value: float


def valley(point: ArrayLike) -> jax.Array:
    """The surface at `point` of shape `(2, ...)` (x, then y), of shape `(...)`."""
    x, y = jnp.asarray(point)
    return (1.0 - x) ** 2 + 10.0 * (y - x**2) ** 2


def run(paper: Paper, *, steps: int = STEPS) -> Trajectory:
    """Runs `paper.build(learning_rate)` at all `LEARNING_RATES` at once; keeps the one that ends lowest.

    Promotion is JAX's default one, on which methods from other libraries rely.
    """
    start = jnp.asarray(START, jnp.float32)

    def train(learning_rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        tx = paper.build(learning_rate)
        step = optax_zoo.train_step(valley, tx)

        def body(carry, key):
            params, opt_state, _ = step(*carry, key=key)
            return (params, opt_state), (params, optax_zoo.eval_params(opt_state, params))

        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(body, (start, tx.init(start)), keys)[1]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        trained, averaged = map(np.asarray, jax.jit(jax.vmap(train))(jnp.asarray(LEARNING_RATES)))
    outside = ~((trained >= np.array(LOWER)) & (trained <= np.array(UPPER))).all(axis=(1, 2))
    values = np.asarray(valley(averaged[:, -1].T))
    best = int(np.lexsort((values, outside))[0])
    points, averages = (_from_start(path[best]) for path in (trained, averaged))
    return Trajectory(
        learning_rate=float(LEARNING_RATES[best]),
        points=points,
        averaged=None if np.array_equal(points, averages) else averages,
        value=float(values[best]),
    )


def _from_start(path: Points) -> Points:
    broken = ~np.isfinite(path).all(axis=1)
    end = int(np.argmax(broken)) if broken.any() else len(path)
    return np.vstack([np.array(START, np.float32), path[:end]])
