"""The extra-argument convention: what a method may ask of the training loop beyond the gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.averages import gradient_params
from optax_zoo._core.trees import PyTree

Step = Callable[..., tuple[Any, ...]]


def closures(loss_fn: Callable[..., Any], params: PyTree, *batch: Any, has_aux: bool = False) -> dict[str, Any]:
    """Everything a method of the zoo may ask for at `params` on one batch.

    Call it inside the jitted step: functions cannot be arguments of a jitted function. Gradients of complex
    parameters are directions of ascent, the conjugates of what `jax.grad` returns.

    Args:
      loss_fn: `loss_fn(params, *batch)` -> scalar loss, or (loss, aux) with `has_aux`.
      params: where to differentiate.
      *batch: what else `loss_fn` takes.
      has_aux: whether `loss_fn` returns (loss, aux).

    Returns:
      `value` (scalar), `grad` (like params), `value_fn(params)`, `grad_fn(params)`, `hvp_fn(params, v)`, and
      `aux` with `has_aux`. Pass it on as `tx.update(c["grad"], state, params, **c)`.
    """

    def value_fn(at: PyTree) -> Array:
        out = loss_fn(at, *batch)
        return out[0] if has_aux else out

    def grad_fn(at: PyTree) -> PyTree:
        return _ascent(jax.grad(value_fn)(at))

    def hvp_fn(at: PyTree, v: PyTree) -> PyTree:
        return jax.jvp(grad_fn, (at,), (v,))[1]

    out, grad = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, *batch)
    given = {"value": out[0] if has_aux else out, "grad": _ascent(grad)}
    given |= {"value_fn": value_fn, "grad_fn": grad_fn, "hvp_fn": hvp_fn}
    return given | ({"aux": out[1]} if has_aux else {})


def _ascent(grad: PyTree) -> PyTree:
    """The direction of steepest ascent; for complex parameters that is the conjugate of what `jax.grad` returns."""
    return jax.tree.map(jnp.conj, grad)


def train_step(loss_fn: Callable[..., Any], tx: optax.GradientTransformation, has_aux: bool = False) -> Step:
    """A pure training step with which any method of the zoo drops in.

    Loss and gradient are evaluated where the optimizer state asks for them, `gradient_params(opt_state, params)`:
    at the parameters themselves but for the methods that look ahead.

    Args:
      loss_fn: `loss_fn(params, *batch)` -> scalar loss, or (loss, aux) with `has_aux`.
      tx: any gradient transformation; it is given `value, grad, value_fn, grad_fn, hvp_fn` and `key`.
      has_aux: whether `loss_fn` returns (loss, aux).

    Returns:
      `step(params, opt_state, *batch, key=None)` -> (params, opt_state, loss), followed by aux with `has_aux`.
      Loss and aux are those at the point where the gradient is taken. Jit it yourself, donating params and state:
      `jax.jit(step, donate_argnums=(0, 1))`.
    """
    tx = optax.with_extra_args_support(tx)

    def step(params: PyTree, opt_state: PyTree, *batch: Any, key: Array | None = None) -> tuple[Any, ...]:
        given = closures(loss_fn, gradient_params(opt_state, params), *batch, has_aux=has_aux)
        aux = (given.pop("aux"),) if has_aux else ()
        if key is not None:
            given["key"] = key
        updates, opt_state = tx.update(given["grad"], opt_state, params, **given)
        return optax.apply_updates(params, updates), opt_state, given["value"], *aux

    return step


def only_extra_args(tx: optax.GradientTransformation, *names: str) -> optax.GradientTransformationExtraArgs:
    """Forwards just the named extra arguments to `tx`, which may refuse those it does not know."""
    inner = optax.with_extra_args_support(tx)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, PyTree]:
        return inner.update(updates, state, params, **{k: v for k, v in extra.items() if k in names})

    return optax.GradientTransformationExtraArgs(inner.init, update)
