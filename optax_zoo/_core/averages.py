"""Which weights to evaluate: one function for every averaging method, through any nesting."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import optax
from jax import Array

from optax_zoo._core.leafwise import Rule, leafwise
from optax_zoo._core.naming import speaker
from optax_zoo._core.trees import PyTree


@runtime_checkable
class Average(Protocol):
    """An optimizer state that knows better weights than the ones being trained."""

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
        visible = jax.tree.map(_visible, average_tree(average), params, is_leaf=_is_masked)
        params = jax.tree.map(_take, average.eval_params(visible), params, is_leaf=_is_masked)
    return params


def average_tree(average: Any) -> PyTree:
    """The params-shaped tree that an averaging state fills, with `MaskedNode` where it is blind."""
    return getattr(average, average.AVERAGED)


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
    state_type: type[tuple],
    *,
    hyper: Mapping[str, Any],
    step: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    ranges: Mapping[str, str] | None = None,
    **fields: Any,
) -> Callable[[Rule], optax.GradientTransformationExtraArgs]:
    """A wrapper that runs `inner` and shows the parameters after its step to `rule(p, s, h) -> new s`.

    The state's last field is `inner_state`; the other arguments are those of `leafwise`. Updates of `inner` pass
    through unchanged, extra arguments are forwarded, integer leaves are copied into the average.
    """
    name = speaker()
    inner = _transformation(name, inner)

    def build(rule: Rule) -> optax.GradientTransformationExtraArgs:
        @leafwise(state_type, hyper=hyper, step=step, ranges=ranges, copy_integers=True, **fields)
        def watch(p: Array, s: Any, h: Any) -> tuple[Array, Any]:
            return p, rule(p, s, h)

        def init(params: PyTree) -> Any:
            return watch.init(params)._replace(inner_state=inner.init(params))

        def update(
            updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
        ) -> tuple[PyTree, Any]:
            if params is None:
                raise ValueError(f"{name}: needs params; call update(grads, state, params)")
            updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
            _, averaged = watch.update(optax.apply_updates(params, updates), state)
            return updates, averaged._replace(inner_state=inner_state)

        return optax.GradientTransformationExtraArgs(init, update)

    return build


def _transformation(name: str, inner: object) -> optax.GradientTransformationExtraArgs:
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"{name}: inner must be an optax.GradientTransformation, got {inner!r}")
    return optax.with_extra_args_support(inner)
