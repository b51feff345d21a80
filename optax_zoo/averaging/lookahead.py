"""Lookahead Optimizer: k steps forward, 1 step back.

Michael R. Zhang, James Lucas, Geoffrey Hinton, Jimmy Ba, 2019, arXiv:1907.08610, Algorithm 1.
Slow weights move part of the way to where k steps of any optimizer have led, and the fast ones start again from there.

Differs from the authors' code: their default step size is 0.8; their `pullback` that interpolates momentum is left out,
because both of its ends are one buffer. `optax.lookahead` wants a pair of fast and slow weights in the place of the
parameters; here the parameters are the fast ones and the state keeps the slow ones.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core.averages import approach, at_least, redirecting, steps
from optax_zoo._core.hyper import ScalarOrSchedule, choice
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import KeyPath, path_name

Pullback = Literal["none", "reset"]
ResetPredicate: TypeAlias = Callable[[str, Array], bool]

MOMENTUM_FIELDS = frozenset({"trace", "buf", "velocity", "momentum"})
"""What states of optax and of this library call the momentum of SGD and its relatives."""


class LookaheadState(NamedTuple):
    """The slow weights and the state of the fast optimizer."""

    count: Array  # steps taken
    synced: Array  # 1 after a synchronisation
    slow: PerParameter  # slow weights
    inner_state: optax.OptState  # of the fast optimizer

    AVERAGED = "slow"

    def eval_params(self, params: PyTree) -> PyTree:
        """The slow weights."""
        del params
        return self.slow


@method
def lookahead(
    inner: optax.GradientTransformation,
    sync_period: ScalarOrSchedule = 5,
    slow_step_size: ScalarOrSchedule = 0.5,
    *,
    pullback: Pullback = "none",
    reset_predicate: ResetPredicate | None = None,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Lookahead (arXiv:1907.08610, Algorithm 1).

    Evaluate `optax_zoo.eval_params(opt_state, params)`, the slow weights. Weight decay, clipping and learning-rate
    schedules belong into `inner`; the updates must not be rescaled behind the wrapper.

    Args:
      inner: the fast optimizer, learning rate included.
      sync_period: steps between two synchronisations, >= 1.
      slow_step_size: share of the way that the slow weights take, in (0, 1]; 1 is `inner` itself.
      pullback: "none" keeps the state of `inner`; "reset" sets its momentum to 0 at each synchronisation, and
        nothing else.
      reset_predicate: `f(path, leaf)` says which leaves of the state of `inner` are momentum, with a path such as
        "0/trace/kernel"; None: those in a state's field called trace, buf, velocity or momentum, so that Adam's
        moments stay.
      accumulator_dtype: dtype of the slow weights, or the parameter's own where that is wider.

    Returns:
      The optimizer with one more number of state per parameter.

    Raises:
      ValueError: a number out of its range, an unknown `pullback`, or a `reset_predicate` without
        `pullback="reset"`; in `update`, params are missing.
      TypeError: `reset_predicate` is not a function.
    """
    choice("pullback", pullback, Pullback)
    if reset_predicate is not None and not callable(reset_predicate):
        raise TypeError(f"lookahead: reset_predicate must be a function of (path, leaf), got {reset_predicate!r}")
    if reset_predicate is not None and pullback != "reset":
        raise ValueError(f'lookahead: reset_predicate needs pullback="reset", got pullback={pullback!r}')

    def step(h: Any, s: LookaheadState) -> dict[str, Array]:
        syncs = (h.count + 1) % steps(h.sync_period) == 0
        return {"syncs": syncs, "synced": syncs}

    def without_momentum(new: LookaheadState) -> PyTree:
        def reset(path: KeyPath, leaf: Array) -> Array:
            is_momentum = reset_predicate(path_name(path), leaf) if reset_predicate else _is_momentum(path)
            return jnp.where(new.synced > 0, jnp.zeros_like(leaf), leaf) if is_momentum else leaf

        return jax.tree_util.tree_map_with_path(reset, new.inner_state)

    @redirecting(
        inner,
        LookaheadState,
        hyper={"sync_period": sync_period, "slow_step_size": slow_step_size},
        ranges={"sync_period": "[1, inf)", "slow_step_size": "(0, 1]"},
        step=step,
        adjust_inner=without_momentum if pullback == "reset" else None,
        synced=0.0,
        slow=at_least(copy(), accumulator_dtype),
    )
    def rule(after: Array, s: LookaheadState, h: Any, p: Array, u: Array) -> tuple[Array, LookaheadState]:
        slow = jnp.where(h.syncs, approach(s.slow, after, h.slow_step_size), s.slow)
        return jnp.where(h.syncs, slow - p, u), s._replace(slow=slow)

    return rule


def _is_momentum(path: KeyPath) -> bool:
    """Whether a field on the path is called so; keys are names of parameters and of injected hyper-parameters."""
    return any(isinstance(key, jax.tree_util.GetAttrKey) and key.name in MOMENTUM_FIELDS for key in path)


PAPER = register(
    Paper(
        name="lookahead",
        title="Lookahead Optimizer: k steps forward, 1 step back",
        authors=("Zhang, Michael R.", "Lucas, James", "Hinton, Geoffrey", "Ba, Jimmy"),
        year=2019,
        arxiv="1907.08610",
        algorithm="Algorithm 1",
        kind="wrapper",
        make=lookahead,
        states=(LookaheadState,),
        needs=("params",),
        floats_per_parameter=1,
        probe={"sync_period": 2},
        golden=("lookahead.sgd", "lookahead.adam"),
    )
)
