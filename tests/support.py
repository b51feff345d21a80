"""What several test files share."""

from typing import Any

import jax
import numpy as np
import optax

import optax_zoo as zoo


def trajectory(tx: optax.GradientTransformation, params: Any, gradients: Any, **extra: Any) -> tuple[Any, Any]:
    """Parameters, and parameters to evaluate, after each step.

    Args:
      gradients: stacked on axis 0, one for each step.
      **extra: more arguments of `update`, stacked alike.
    """
    tx = optax.with_extra_args_support(tx)

    def step(carry: Any, given: Any) -> Any:
        params, state = carry
        grads, more = given
        updates, state = tx.update(grads, state, params, **more)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, zoo.eval_params(state, params))

    run = jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])
    return jax.tree.map(np.asarray, run(params, (gradients, extra)))


def optax_trajectory(tx: optax.GradientTransformation, params: Any, gradients: Any) -> Any:
    """The parameters of `trajectory` for optax's own code, which relies on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return trajectory(tx, params, gradients)[0]


def problem(steps: int = 12, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters of two leaves and `steps` noisy gradients for them, float64."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3), "b": (3,)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return params, {name: rng.normal(size=(steps, *shape)) for name, shape in shapes.items()}
