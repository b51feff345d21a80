"""Which weights to evaluate, and where to take gradients: one function each for all methods, through any nesting."""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.leafwise import leafwise, promotion
from optax_zoo._core.lookup import found
from optax_zoo._core.naming import speaker
from optax_zoo._core.slots import Slot, floating, widest
from optax_zoo._core.trees import Leaves, PyTree, is_none

AveragingRule: TypeAlias = Callable[[Array, Any, Any], Any]
RedirectingRule: TypeAlias = Callable[[Array, Any, Any, Array, Array], tuple[Array, Any]]


@runtime_checkable
class Average(Protocol):
    """An optimizer state that knows better weights than the ones being trained.

    Its class attribute `AVERAGED` names the params-shaped tree by which its blind spots are seen.
    """

    def eval_params(self, params: PyTree) -> PyTree: ...


@runtime_checkable
class Predictor(Protocol):
    """An optimizer state that wants the gradient of its next step elsewhere than at the parameters.

    `PREDICTED` names the params-shaped tree by which its blind spots are seen.
    """

    PREDICTED: str

    def gradient_params(self, params: PyTree) -> PyTree: ...


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
    for average in found(opt_state, Average):
        params = _answer("eval_params", average.eval_params, average_tree(average), params)
    return params


def gradient_params(opt_state: PyTree, params: PyTree) -> PyTree:
    """The point at which the loss and the gradient of the next step must be evaluated.

    It is `params` for all methods but those that look ahead, whose states are found as by `eval_params`. The
    gradient taken there goes into `update` together with `params` themselves.

    Args:
      opt_state: any optimizer state.
      params: the parameters being trained.

    Returns:
      A tree like `params`, in its dtypes.
    """
    for predictor in found(opt_state, Predictor):
        params = _answer("gradient_params", predictor.gradient_params, getattr(predictor, predictor.PREDICTED), params)
    return params


def _answer(asked: str, ask: Callable[[PyTree], PyTree], slots: PyTree, params: PyTree) -> PyTree:
    """`params` with what a state says in the place of each leaf that it has a slot for."""
    Leaves(asked, "params", params).match("the average in the state", slots)
    visible = jax.tree.map(_visible, slots, params, is_leaf=_is_masked)
    return jax.tree.map(_take, ask(visible), params, is_leaf=_is_masked)


def average_tree(average: Any) -> PyTree:
    """The params-shaped tree that an averaging state fills, with `MaskedNode` where it is blind."""
    return getattr(average, average.AVERAGED)


def evaluate(rule: Callable[..., Array], average: PyTree, params: PyTree, *slots: PyTree, **scalars: Array) -> PyTree:
    """Maps `rule(average leaf, parameter leaf, *slot leaves, h)` over floating leaves, lifted to float32 or better.

    Args:
      rule: leaf arithmetic; `h.name` is one of `scalars`.
      average: the params-shaped tree of an averaging state; its integer leaves are returned as they are.
      params: a tree like `average`.
      *slots: further trees like `average`, real ones of complex parameters included.
      **scalars: numbers of the state.
    """

    def leaf(a: Any, p: Any, *more: Any) -> Any:
        if _is_masked(a) or not jnp.issubdtype(a.dtype, jnp.inexact):
            return a
        wide = widest(jnp.float32, a.dtype, p.dtype, *(x.dtype for x in more))
        real = jnp.finfo(wide).dtype
        lifted = (x.astype(wide if jnp.iscomplexobj(x) else real) for x in (a, p, *more))
        with promotion(wide):
            return rule(*lifted, SimpleNamespace(**{k: v.astype(real) for k, v in scalars.items()}))

    return jax.tree.map(leaf, average, params, *slots, is_leaf=_is_masked)


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


def steps(value: Any) -> Array:
    """A number of steps as int32; one too large for it never comes."""
    if isinstance(value, numbers.Real):
        value = min(value, jnp.iinfo(jnp.int32).max)
    return jnp.asarray(value, jnp.int32)


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
        def watch(p: Array, s: Any, h: Any) -> tuple[Array, Any]:
            return p, rule(p, s, h)

        def look(updates: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
            after = jax.tree.map(stepped, params, updates, is_leaf=is_none)
            return updates, watch.update(after, state)[1]

        return wrapping(inner, watch.init, look)

    return build


def redirecting(
    inner: optax.GradientTransformation,
    state_type: type[Any],
    *,
    hyper: Mapping[str, Any],
    adjust_inner: Callable[[Any], PyTree] | None = None,
    **more: Any,
) -> Callable[[RedirectingRule], optax.GradientTransformationExtraArgs]:
    """A wrapper that runs `inner` and may put the parameters elsewhere: `rule(after, s, h, p, u)` -> (update, new s).

    In the rule `p` and `after` are the parameters before and after the step of `inner`, whose update is `u`. The other
    arguments are those of `leafwise`; the state's last field is `inner_state`. Integer leaves are copied into the
    state and keep the update of `inner`; parameters without an update stay where they are.

    Args:
      adjust_inner: `adjust_inner(new s)` -> the inner state with which the next step begins.
    """

    def build(rule: RedirectingRule) -> optax.GradientTransformationExtraArgs:
        own = leafwise(state_type, hyper=hyper, copy_integers=True, **more)(rule)

        def redirect(updates: PyTree, state: Any, params: PyTree) -> tuple[PyTree, Any]:
            after = jax.tree.map(_stepped_wide, params, updates, is_leaf=is_none)
            new: Any
            redirected, new = own.update(
                after, state, params, u=jax.tree.map(_or_zeros, updates, params, is_leaf=is_none)
            )
            if adjust_inner:
                new = new._replace(inner_state=adjust_inner(new))
            return jax.tree.map(_redirected, updates, redirected, is_leaf=is_none), new

        return wrapping(inner, own.init, redirect)

    return build


def _stepped_wide(param: Any, update: Any) -> Any:
    """`stepped`, in a dtype that holds the update too, which a rule gives back in the dtype of what it is given."""
    after = stepped(param, update)
    if after is param or not jnp.issubdtype(after.dtype, jnp.inexact):
        return after
    return after.astype(widest(after.dtype, update.dtype))


def _or_zeros(update: Any, param: Any) -> Any:
    return jnp.zeros_like(param) if update is None and param is not None else update


def _redirected(update: Any, redirected: Any) -> Any:
    if update is None or redirected is None or not jnp.issubdtype(update.dtype, jnp.inexact):
        return update
    return redirected.astype(update.dtype)


def wrapping(
    inner: optax.GradientTransformation,
    init_own: Callable[[PyTree], Any],
    update_own: Callable[[PyTree, Any, PyTree], tuple[PyTree, Any]],
) -> optax.GradientTransformationExtraArgs:
    """`inner`, and then `update_own(updates of inner, state, params)`, with its new state as `inner_state` already.

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
        return update_own(updates, state._replace(inner_state=inner_state), params)

    return optax.GradientTransformationExtraArgs(init, update)


def stepped(param: Any, update: Any) -> Any:
    """The parameter after the step, as `optax.apply_updates` gives it; parameters without update stay."""
    if param is None or update is None or update.dtype == jax.dtypes.float0:
        return param
    wide = widest(param.dtype, update.dtype)
    return (param.astype(wide) + update.astype(wide)).astype(param.dtype)
