"""What the rules around an orthogonalised momentum share."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import optax
from jax import Array

from optax_zoo._core.hyper import Scalar, choice
from optax_zoo._core.orthogonalizer import Orthogonalizer, Scale
from optax_zoo._core.slots import cast_like, lifted
from optax_zoo._core.trees import PyTree

MomentumForm: TypeAlias = Literal["ema", "sum"]
Scaling: TypeAlias = Literal["width", "spectral", "rms"]

SCALINGS: Mapping[str | None, Callable[[float, float], float]] = {
    "width": lambda fan_in, fan_out: math.sqrt(max(1.0, fan_out / fan_in)),
    "spectral": lambda fan_in, fan_out: math.sqrt(fan_out / fan_in),
    "rms": lambda fan_in, fan_out: 0.2 * math.sqrt(max(fan_in, fan_out)),
    None: lambda fan_in, fan_out: 1.0,
}
"""Factors on the orthogonal matrix: Keller Jordan's, that of the RMS-to-RMS operator norm, Moonlight's."""

After = Callable[[PyTree, Any, PyTree], tuple[PyTree, Any]]
"""(orthogonal directions, new state with the count of before, param_specs) -> (directions, new state)."""


def scale_of(scaling: Scaling | None) -> Scale:
    """The factor of that name from (fan_in, fan_out).

    Raises:
      ValueError: an unknown word.
    """
    if scaling is not None:
        choice("scaling", scaling, Scaling)
    return lambda fan_in, fan_out: SCALINGS[scaling](max(fan_in, 1), max(fan_out, 1))


def accumulated(g: Array, m: Array, b: Scalar, nesterov: bool, form: MomentumForm) -> tuple[Array, Array]:
    """What is to be orthogonalised, and the new momentum."""
    taken = (1 - b) * g if form == "ema" else g
    m = b * m + taken
    return (taken + b * m if nesterov else m), m


def orthogonalizing(
    accumulate: optax.GradientTransformationExtraArgs,
    orthogonalize: Orthogonalizer,
    scale: Scale | None = None,
    after: After | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`accumulate`, whose output is orthogonalised and scaled, and then what comes `after`."""

    def init(params: PyTree) -> Any:
        orthogonalize.axes(params)
        return accumulate.init(params)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, *, param_specs: PyTree = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        new: Any
        mixed, new = accumulate.update(lifted(updates), state, params, param_specs=param_specs, **extra)
        direction = orthogonalize(mixed, state.count, param_specs, scale)
        if after is not None:
            direction, after_state = after(direction, new._replace(count=state.count), param_specs)
            new = after_state._replace(count=new.count)
        return cast_like(direction, updates), new

    return optax.GradientTransformationExtraArgs(init, update)
