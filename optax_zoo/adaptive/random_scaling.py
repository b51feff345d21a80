"""Random Scaling and Momentum for Non-smooth Non-convex Optimization.

Qinzi Zhang, Ashok Cutkosky, 2024, arXiv:2405.09742.
SGD with momentum whose every update is multiplied by one random number from Exp(1) converges at the optimal rate
however rough the loss is: on average over s the gradient at x + s Delta is the loss's decrease along Delta.

Differs from the authors' code: s is a function of the seed and the step, so no key is kept; "uniform02" is "uniform"
there.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.hyper import RANGES, choice, number, scalar_dtype
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.trees import PyTree

Distribution = Literal["exponential", "uniform02", "none"]


class RandomScalingState(NamedTuple):
    """What the last scale leaves to the next gradient."""

    count: Array  # steps taken
    weight: Array  # next importance weight
    inner_state: optax.OptState  # of what is scaled


@method
def random_scaling(
    distribution: Distribution = "exponential",
    seed: int = 0,
    importance: bool = True,
    inner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies every update by one random number of mean 1 for the whole tree (arXiv:2405.09742).

    As the last link of a chain it scales what the chain gives. "uniform02" also multiplies the next incoming
    gradient by the importance weight 2 - s; an optimizer with a memory must see it, so pass it as `inner` then.

    Args:
      distribution: of s: "exponential", Exp(1); "uniform02", U(0, 2); "none", 1.
      seed: of the scales, >= 0.
      importance: whether "uniform02" weights the next gradient; the first weight is 1.
      inner: the optimizer between the weight and the scale; None: nothing.

    Returns:
      A transformation with one number of state, beyond that of `inner`.

    Raises:
      ValueError: an unknown `distribution`, a `seed` out of its range.
      TypeError: `inner` is not a gradient transformation.
    """
    choice("distribution", distribution, Distribution)
    number("seed", seed, RANGES["seed"])
    inner = optax.identity() if inner is None else inner
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"{speaker()}: inner must be an optax.GradientTransformation, got {inner!r}")
    inner = optax.with_extra_args_support(inner)
    weighs = distribution == "uniform02" and importance

    def step(h: Any, s: RandomScalingState) -> dict[str, Array]:
        scale = draw(distribution, seed, h.count)
        return {"scale": scale, "weight": 2.0 - scale if weighs else jnp.ones(())}

    @leafwise(RandomScalingState, step=step, weight=1.0)
    def scaled(u: Array, s: RandomScalingState, h: Any) -> tuple[Array, RandomScalingState]:
        return h.scale * u, s

    @leafwise(RandomScalingState, weight=1.0)
    def weighted(g: Array, s: RandomScalingState, h: Any) -> tuple[Array, RandomScalingState]:
        return s.weight * g, s

    def init(params: PyTree) -> Any:
        own: Any = scaled.init(params)
        return own._replace(inner_state=inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        own: Any
        if weighs:
            updates, _ = weighted.update(updates, state)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        updates, own = scaled.update(updates, state)
        return updates, own._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def draw(distribution: str, seed: int, count: Array) -> Array:
    """s of the step with this 0-based count."""
    key = jax.random.fold_in(jax.random.key(jnp.asarray(seed).astype(jnp.uint32)), count)
    dtype = scalar_dtype()
    if distribution == "uniform":
        return jax.random.uniform(key, dtype=dtype)
    if distribution == "uniform02":
        return jax.random.uniform(key, dtype=dtype, maxval=2.0)
    return jax.random.exponential(key, dtype=dtype) if distribution == "exponential" else jnp.ones((), dtype)


PAPER = register(
    Paper(
        name="random_scaling",
        title="Random Scaling and Momentum for Non-smooth Non-convex Optimization",
        authors=("Zhang, Qinzi", "Cutkosky, Ashok"),
        year=2024,
        arxiv="2405.09742",
        kind="transform",
        make=random_scaling,
        states=(RandomScalingState,),
        base=optax.sgd,
        relative_learning_rate=100.0,
    )
)
