"""Wrappers that turn an inner update by the gradient it came from: cautious masks, sign transplants."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import optax
from jax import Array

from optax_zoo._core.hyper import choice
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import speaker
from optax_zoo._core.trees import PyTree

SteeringRule: TypeAlias = Callable[[Array, Array, Any], Array]
Direction: TypeAlias = Literal["ascent", "descent"]
"""Where updates of the inner transformation point: `scale_by_x` returns an ascent direction, an optimizer with its
learning rate what is added to the parameters."""


def steering(
    inner: optax.GradientTransformation,
    state_type: type[Any],
    *,
    direction: Direction = "ascent",
    hyper: Mapping[str, Any] | None = None,
    ranges: Mapping[str, str] | None = None,
) -> Callable[[SteeringRule], optax.GradientTransformationExtraArgs]:
    """Turns `rule(u, g, h)` for one leaf of an ascent direction u and the gradient g into a wrapper of `inner`.

    Args:
      inner: any transformation; extra arguments are forwarded to it.
      state_type: NamedTuple of `count` and `inner_state`.
      direction: of the updates that `inner` returns; the wrapper's point the same way.
      hyper, ranges: as in `leafwise`.

    Raises:
      TypeError: `inner` is not a gradient transformation.
      ValueError: `direction` is neither word.
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"{speaker()}: inner must be an optax.GradientTransformation, got {inner!r}")
    choice("direction", direction, Direction)
    inner = optax.with_extra_args_support(inner)

    def build(rule: SteeringRule) -> optax.GradientTransformationExtraArgs:
        @leafwise(state_type, hyper=hyper, ranges=ranges)
        def steer(u: Array, s: Any, h: Any, p: Array) -> tuple[Array, Any]:
            return rule(u, p if direction == "ascent" else -p, h), s

        def init(params: PyTree) -> Any:
            own: Any = steer.init(params)
            return own._replace(inner_state=inner.init(params))

        def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
            own: Any
            directed, inner_state = inner.update(updates, state.inner_state, params, **extra)
            directed, own = steer.update(directed, state, updates)
            return directed, own._replace(inner_state=inner_state)

        return optax.GradientTransformationExtraArgs(init, update)

    return build
