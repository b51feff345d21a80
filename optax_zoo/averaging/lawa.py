"""Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging.

Jean Kaddour, 2022, arXiv:2209.14981.
The mean of the last k checkpoints, one an epoch, reaches the loss of the last iterate days earlier.

Differs from the authors' code: nothing but two defects, a list of checkpoints that all instances share and, on the
CPU, checkpoints that alias the weights.
"""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from optax_zoo._core import hyper as hp
from optax_zoo._core.averages import at_least, stepped, steps, wrapping
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.ring import Ring, Snapshots, mean_of, on_device, snapshot, stored
from optax_zoo._core.slots import PerParameter, copy
from optax_zoo._core.trees import PyTree, is_none


class LawaState(NamedTuple):
    """The last checkpoints, their mean, and the state of the optimizer it watches."""

    count: Array  # steps taken
    pushes: Array  # checkpoints taken
    means: Array  # means taken
    mean: PerParameter | None  # averaged parameters
    ring: Snapshots  # last k checkpoints
    inner_state: optax.OptState  # of the optimizer

    AVERAGED = "checkpoint"

    @property
    def checkpoint(self) -> PyTree:
        """One of the checkpoints."""
        return self.ring[0]

    def eval_params(self, params: PyTree) -> PyTree:
        """The mean of the last checkpoints; the initial parameters before the first mean."""
        del params
        if self.mean is not None:
            return self.mean
        mean = mean_of(self.ring, *_latest(self.pushes, len(self.ring)))
        return jax.tree.map(
            lambda p0, m: jnp.where(self.means > 0, m, p0.astype(m.dtype)), on_device(self.ring[-1]), mean
        )


def _latest(pushes: Array, k: int) -> tuple[Array, Array]:
    """Where the newest checkpoint is, and how many there are."""
    return (pushes - 1) % k, jnp.clip(pushes, 1, k)


@method
def with_lawa(
    inner: optax.GradientTransformation,
    k: int = 10,
    freq: hp.ScalarOrSchedule = 1000,
    start: hp.ScalarOrSchedule = 1000,
    *,
    buffer_dtype: DTypeLike | None = None,
    on_read: bool = False,
    host: bool = False,
    accumulator_dtype: DTypeLike = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Latest weight averaging (arXiv:2209.14981): the mean of the last k checkpoints, one every `freq` steps.

    Read it with `optax_zoo.eval_params(opt_state, params)`; before the first mean it is the initial parameters. Steps
    without a checkpoint cost nothing. The authors take k = 5 (ResNet-50 on ImageNet) or 10 (RoBERTa) ends of epochs.
    Batch statistics belong to the weights they were measured at: recompute them before evaluating the mean.

    With `host=True` the checkpoints lie in the pinned memory of the host, sharded as the parameters are; one of them is
    transferred when it is taken, all when a mean is. `jax.vmap` over the step cannot select among arrays of the host
    and refuses; `optax.MultiSteps` around the wrapper would copy the ring at every step, so put it inside. A backend
    without such memory is refused by `init`.

    Args:
      inner: the optimizer; its updates pass through unchanged.
      k: number of checkpoints, >= 1.
      freq: steps between two of them, >= 1: an epoch.
      start: first step t = 1, 2, ... at which a mean may be taken, >= 0; it includes checkpoints before.
      buffer_dtype: dtype of the checkpoints; None: the parameter's own.
      on_read: the mean is computed by `eval_params` only, not at every checkpoint, and is not kept.
      host: the checkpoints are kept in the memory of the host.
      accumulator_dtype: dtype of the mean, or the parameter's own where that is wider.

    Returns:
      The optimizer with k + 1 more numbers of state per parameter, k with `on_read`.

    Raises:
      ValueError: a number out of its range; in `init`, `host` on a backend without host memory; in `update`, params
        are missing.
    """
    hp.number("k", k, "[1, inf)")
    values = hp.checked({"freq": freq, "start": start}, {})
    ring, mean = Ring(snapshot(buffer_dtype), host), at_least(copy(), accumulator_dtype)

    def init(params: PyTree) -> LawaState:
        zero = jnp.zeros((), jnp.int32)
        average = None if on_read else jax.tree.map(mean.init, params)
        return LawaState(zero, zero.copy(), zero.copy(), average, ring.init(params, k), optax.EmptyState())

    def update(updates: PyTree, state: LawaState, params: PyTree) -> tuple[PyTree, LawaState]:
        h = SimpleNamespace(**hp.resolve(values, state.count))
        every, first = map(steps, (h.freq, h.start))
        t, kept = state.count + 1, len(state.ring)
        # Checkpoints that the first mean would not see are not taken: until then the last slot is the initial one.
        first_mean = every * jnp.maximum(-(-first // every), 1)
        pushes = (t % every == 0) & (t > first_mean - kept * every)
        averages = pushes & (t >= first)

        def push(snapshots: Snapshots, average: PyTree, after: PyTree) -> tuple[Snapshots, PyTree]:
            snapshots = ring.push(snapshots, state.pushes % kept, after)
            if not on_read:
                average = jax.lax.cond(averages, renew, lambda _, average: average, snapshots, average)
            return snapshots, average

        def renew(snapshots: Snapshots, average: PyTree) -> PyTree:
            return stored(mean_of(snapshots, *_latest(state.pushes + 1, kept)), average)

        after = jax.tree.map(stepped, params, updates, is_leaf=is_none)
        snapshots, average = jax.lax.cond(
            pushes,
            push,
            lambda snapshots, average, _: (snapshots, average),
            ring.settle(state.ring, after),
            state.mean,
            after,
        )
        return updates, state._replace(
            count=optax.safe_increment(state.count),
            pushes=state.pushes + pushes.astype(jnp.int32),
            means=state.means + averages.astype(jnp.int32),
            mean=average,
            ring=snapshots,
        )

    return wrapping(inner, init, update)


PAPER = register(
    Paper(
        name="with_lawa",
        title="Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging",
        authors=("Kaddour, Jean",),
        year=2022,
        arxiv="2209.14981",
        kind="wrapper",
        make=with_lawa,
        states=(LawaState,),
        needs=("params",),
        floats_per_parameter=4,
        example={"k": 3, "freq": 2, "start": 3},
        scaled=lambda steps: {"k": 5, "freq": max(steps // 40, 1), "start": 0},
        golden=("lawa.basic",),
    )
)
