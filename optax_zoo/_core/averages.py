"""Which weights to evaluate: one function for every averaging method, through any nesting."""

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import speaker
from optax_zoo._core.slots import Slot, floating, widest
from optax_zoo._core.trees import Leaves, PyTree, is_none

AveragingRule: TypeAlias = Callable[[Array, Any, Any], Any]


@runtime_checkable
class Average(Protocol):
    """An optimizer state that knows better weights than the ones being trained.

    Its class attribute `AVERAGED` names the params-shaped tree by which its blind spots are seen.
    """

    def eval_params(self, params: PyTree) -> PyTree: ...


def eval_params(opt_state: PyTree, params: PyTree) -> PyTree:
    """The parameters to evaluate or export.

    Finds every averaging state inside `opt_state` through `chain`, `masked`, `partition`, `inject_hyperparams`,
    `MultiSteps`, `apply_if_finite`, ...; of nested averages the outermost decides.

    Args:
      opt_state: any optimizer state.
      params: the parameters being trained, from which leaves without an average are taken.

    Returns:
      A tree like `params`, in its dtypes.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, Average))
    for average in (node for node in nodes if isinstance(node, Average)):
        Leaves("eval_params", "params", params).match("the average in the state", average_tree(average))
        visible = jax.tree.map(_visible, average_tree(average), params, is_leaf=_is_masked)
        params = jax.tree.map(_take, average.eval_params(visible), params, is_leaf=_is_masked)
    return params


def average_tree(average: Any) -> PyTree:
    """The params-shaped tree that an averaging state fills, with `MaskedNode` where it is blind."""
    return getattr(average, average.AVERAGED)


def evaluate(rule: Callable[[Array, Array, Any], Array], average: PyTree, params: PyTree, **scalars: Array) -> PyTree:
    """Maps `rule(average leaf, parameter leaf, h)` over floating leaves, lifted to float32 or better.

    Args:
      rule: leaf arithmetic; `h.name` is one of `scalars`.
      average: the params-shaped tree of an averaging state; its integer leaves are returned as they are.
      params: a tree like `average`.
      **scalars: numbers of the state.
    """

    def leaf(a: Any, p: Any) -> Any:
        if _is_masked(a) or not jnp.issubdtype(a.dtype, jnp.inexact):
            return a
        wide = widest(jnp.float32, a.dtype, p.dtype)
        real = jnp.finfo(wide).dtype
        return rule(a.astype(wide), p.astype(wide), SimpleNamespace(**{k: v.astype(real) for k, v in scalars.items()}))

    return jax.tree.map(leaf, average, params, is_leaf=_is_masked)


def at_least(slot: Slot, dtype: DTypeLike) -> Slot:
    """`slot` stored in `dtype`, or in the parameter's own dtype where that is wider.

    Raises:
      TypeError: `dtype` is not a real floating dtype.
    """
    if not jnp.issubdtype(floating(dtype), jnp.floating):
        raise TypeError(f"{speaker()}: accumulator_dtype must be real, got {dtype!r}")
    return dataclasses.replace(slot, dtype=lambda leaf: widest(leaf, dtype))


def approach(average: Any, value: Any, take: Any) -> Any:
    """(1 - take) * average + take * value, in the form whose fixed point is `value` in floating point too."""
    return average + take * (value - average)


def _is_masked(node: object) -> bool:
    return node is None or isinstance(node, optax.MaskedNode)


def _visible(slot: Any, param: Any) -> Any:
    return slot if isinstance(slot, optax.MaskedNode) else param


def _take(average: Any, param: Any) -> Any:
    if _is_masked(average):
        return param
    return average.astype(param.dtype)


def averaging(
    inner: optax.GradientTransformation,
    state_type: type[Any],
    *,
    hyper: Mapping[str, Any],
    step: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    ranges: Mapping[str, str] | None = None,
    **fields: Any,
) -> Callable[[AveragingRule], optax.GradientTransformationExtraArgs]:
    """A wrapper that runs `inner` and shows the parameters after its step to `rule(p, s, h) -> new s`.

    The state's last field is `inner_state`; the other arguments are those of `leafwise`. Updates of `inner` pass
    through unchanged, extra arguments are forwarded, integer leaves are copied into the average.
    """

    def build(rule: AveragingRule) -> optax.GradientTransformationExtraArgs:
        @leafwise(state_type, hyper=hyper, step=step, ranges=ranges, copy_integers=True, **fields)
        def watch(stepped: Array, s: Any, h: Any) -> tuple[Array, Any]:
            return stepped, rule(stepped, s, h)

        def look(updates: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
            stepped = jax.tree.map(_stepped, params, updates, is_leaf=is_none)
            return updates, watch.update(stepped, state)[1]

        return wrapping(inner, watch.init, look)

    return build


def wrapping(
    inner: optax.GradientTransformation,
    init_own: Callable[[PyTree], Any],
    update_own: Callable[[PyTree, Any, PyTree], tuple[PyTree, Any]],
) -> optax.GradientTransformationExtraArgs:
    """`inner`, and then `update_own(updates of inner, state, params)`, with the state of `inner` as `inner_state`.

    Raises:
      TypeError: `inner` is not a gradient transformation.
      ValueError: in `update`, params are missing.
    """
    name = speaker()
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"{name}: inner must be an optax.GradientTransformation, got {inner!r}")
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> Any:
        return init_own(params)._replace(inner_state=inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError(f"{name}: needs params; call update(grads, state, params)")
        Leaves(name, "the gradient", updates).match("params", params)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        updates, state = update_own(updates, state, params)
        return updates, state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _stepped(param: Any, update: Any) -> Any:
    """The parameter after the step, as `optax.apply_updates` gives it; parameters without update stay."""
    if param is None or update is None or update.dtype == jax.dtypes.float0:
        return param
    wide = widest(param.dtype, update.dtype)
    return (param.astype(wide) + update.astype(wide)).astype(param.dtype)
