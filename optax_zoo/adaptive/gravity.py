"""Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning.

Dariush Bahrami, Sadegh Pouriyan Zadeh, 2021, arXiv:2101.09192, Algorithm 1.
A ball that rolls down the loss: entries of the gradient that are steep for their leaf are squashed, so that they step
less than gentle ones, and the velocity averages them with a weight that grows from step to step.

Differs from the authors' code: nothing in their PyTorch file, whose counter is 1 at the first step as in the paper's
box; their TensorFlow file starts at 0 (`first_step=0`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core import mesh
from optax_zoo._core.finish import finish
from optax_zoo._core.hyper import (
    RANGES,
    Decay,
    Scalar,
    ScalarOrSchedule,
    check_range,
    ema,
    is_zero,
    number,
    split_decay,
)
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, at_least_float32, zeros
from optax_zoo._core.trees import PyTree


class GravityState(NamedTuple):
    """The ball's velocity."""

    count: Array  # steps taken
    velocity: PerParameter  # averaged squashed gradients


@method
def scale_by_gravity(
    beta: ScalarOrSchedule = 0.9, init_std: Scalar = 0.0, first_step: ScalarOrSchedule = 1, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """The Gravity direction; `init_std` is the spread of the first velocity, the rest as in `gravity`."""
    number("init_std", init_std, "[0, inf)")
    number("seed", seed, RANGES["seed"])

    def step(h: Any, s: GravityState) -> dict[str, Decay]:
        tau = h.t - 1 + jnp.asarray(h.first_step, h.t.dtype)
        keep, take = split_decay(h.beta)
        return {"inertia": Decay((keep * tau + 1) / (tau + 2), (take * tau + 1) / (tau + 2))}

    @leafwise(
        GravityState,
        hyper={"beta": beta, "first_step": first_step},
        ranges={"beta": "[0, 1]", "first_step": "[0, inf)"},
        real_only=True,
        step=step,
        velocity=zeros(),
    )
    def rule(g: Array, s: GravityState, h: Any) -> tuple[Array, GravityState]:
        zeta = g / (1 + jnp.square(g * mesh.largest(jnp.abs(g))))
        velocity = ema(s.velocity, zeta, h.inertia)
        return velocity, s._replace(velocity=velocity)

    def init(params: PyTree) -> Any:
        state: Any = rule.init(params)
        if is_zero(init_std):
            return state
        leaves, treedef = jax.tree.flatten(state.velocity)
        return state._replace(velocity=treedef.unflatten([tossed(v, i) for i, v in enumerate(leaves)]))

    @jax.jit
    def tossed(rest: Array, i: int) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), i)
        for axis in mesh.varying_axes(rest):
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        wide = at_least_float32(rest.dtype)
        drawn = init_std * jax.random.normal(key, rest.shape, wide, out_sharding=jax.typeof(rest).sharding)
        return rest + drawn.astype(rest.dtype)

    return optax.GradientTransformationExtraArgs(init, rule.update)


@method
def gravity(
    learning_rate: ScalarOrSchedule = 0.1,
    alpha: Scalar = 0.01,
    beta: ScalarOrSchedule = 0.9,
    first_step: ScalarOrSchedule = 1,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Gravity (arXiv:2101.09192, Algorithm 1).

    With m = 1 / max |g| over the whole leaf, zeta = g / (1 + (g / m)^2): entries step in proportion to their gradient
    up to |g| = m and less and less beyond. At t = 1, 2, ..., tau = t - 1 + first_step weighs the past velocity with
    (beta tau + 1) / (tau + 2).

    Args:
      learning_rate: step size, >= 0; > 0 at count 0 unless `alpha` is 0.
      alpha: the first velocity is drawn from a normal distribution of this standard deviation over the learning rate,
        of a schedule that at count 0; >= 0, a number.
      beta: weight of the past velocity in the long run, in [0, 1].
      first_step: tau at the first step, >= 0.
      seed: of the first velocity, in [0, 2^32). Inside `jax.shard_map` blocks of one leaf draw numbers of their own.

    Returns:
      The optimizer; one number of state per parameter.

    Raises:
      ValueError: a number out of its range, or a first learning rate of 0.
      TypeError: complex leaves, or a schedule for `alpha`.
    """
    return finish(scale_by_gravity(beta, _init_std(alpha, learning_rate), first_step, seed), learning_rate)


def _init_std(alpha: Scalar, learning_rate: ScalarOrSchedule) -> Scalar:
    check_range("learning_rate", learning_rate, "[0, inf)")
    if is_zero(number("alpha", alpha, "[0, inf)")):
        return 0.0
    first = learning_rate(0) if callable(learning_rate) else learning_rate
    return alpha / number("learning_rate", first, "(0, inf)")


PAPER = register(
    Paper(
        name="gravity",
        title="Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning",
        authors=("Bahrami, Dariush", "Zadeh, Sadegh Pouriyan"),
        year=2021,
        arxiv="2101.09192",
        algorithm="Algorithm 1",
        make=gravity,
        transform=scale_by_gravity,
        states=(GravityState,),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=100.0,
        golden=("gravity.default", "gravity.alpha0"),
        breaks={"schedules": "alpha may not be a schedule"},
    )
)
