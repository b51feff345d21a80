"""MARS: Unleashing the Power of Variance Reduction for Training Large Models.

Huizhuo Yuan, Yifeng Liu, Shuang Wu, Xun Zhou, Quanquan Gu, 2024 (ICML 2025), arXiv:2411.10438.
A preconditioned method is fed g + gamma b1 / (1 - b1) (g - g'), clipped, in the place of the gradient g: where g' is
the gradient of the same batch at the previous parameters, the noise that two steps share cancels in the average.

Differs from the authors' code: the orthogonal matrices of "shampoo" are computed in the dtype of the leaf, float32 or
better, where the authors take bfloat16, and on the Gram matrix where that is cheaper, which is equal up to rounding.
As there, the second moment is that of the clipped, corrected gradient (their README has the raw one), and leaves that
are not matrices, convolution kernels included, go to AdamW (`dimension_numbers` and `optimize_1d` change that). The
authors' training loop evaluates the next batch ahead of each step for the exact form; `exact=True` evaluates the
present batch at the previous parameters instead, which is the same gradient.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from optax_zoo._core import hyper as hp
from optax_zoo._core import mesh
from optax_zoo._core.blocks import Block
from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, abs_sq, debias, ema, split_decay
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.norms import divisible, norm, root
from optax_zoo._core.orthogonalizer import Orthogonalizer
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.sharing import ShardOver
from optax_zoo._core.slots import PerParameter, Slot, squares, zeros
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import DimensionNumbers
from optax_zoo.matrix._auxiliary import by_kind
from optax_zoo.matrix._momentum import orthogonalizing, scale_of

Variant: TypeAlias = Literal["adamw", "lion", "shampoo"]

_RANGES = {
    "gamma": "[0, inf)",
    "clip_norm": "(0, inf]",
    "learning_rate_1d": "[0, inf)",
    "b1_1d": "[0, 1)",
    "b2_1d": "[0, 1)",
    "weight_decay_1d": "[0, inf)",
}


class MarsState(NamedTuple):
    """The moments, and the last gradient."""

    count: Array  # steps taken
    m: PerParameter  # corrected gradients' average
    v: PerParameter  # their second moment
    v_max: PerParameter  # its maximum (amsgrad)
    previous: PerParameter  # last step's gradient


class ExactMarsState(NamedTuple):
    """Where the exact form evaluates the batch again."""

    count: Array  # steps taken
    previous_params: PerParameter  # last step's parameters
    inner: Any  # MARS given previous_grads


@method
def scale_by_mars(
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    gamma: ScalarOrSchedule = 0.025,
    variant: Variant = "adamw",
    amsgrad: bool = False,
    clip_norm: ScalarOrSchedule = 1.0,
    *,
    first_correction: bool = True,
    exact: bool = False,
    mu_dtype: DTypeLike | None = None,
    dimension_numbers: DimensionNumbers = None,
    shard_over: ShardOver = None,
) -> optax.GradientTransformationExtraArgs:
    """The MARS direction, for every leaf alike; arguments as in `mars`.

    Returns:
      The transformation. Its `update` takes `previous_grads` and `param_specs`, see `mars`.

    Raises (in `init` and `update`):
      ValueError: with "shampoo", a leaf that is no matrix; the sentence names its path.
    """
    more = exact, mu_dtype, dimension_numbers, shard_over
    tx = _corrected(b1, b2, eps, gamma, variant, amsgrad, clip_norm, first_correction, *more)
    return _with_previous_grads(tx, first_correction) if exact else tx


def _corrected(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    gamma: ScalarOrSchedule,
    variant: Variant,
    amsgrad: bool,
    clip_norm: ScalarOrSchedule,
    first_correction: bool,
    exact: bool,
    mu_dtype: DTypeLike | None,
    dimension_numbers: DimensionNumbers,
    shard_over: ShardOver,
) -> optax.GradientTransformationExtraArgs:
    """The direction; with `exact` it keeps no gradient and needs `previous_grads`."""
    hp.choice("variant", variant, Variant)
    adaptive, name = variant == "adamw", speaker()

    def step(h: Any, s: MarsState) -> dict[str, Any]:
        keep, take = split_decay(h.b1)
        return {"pull": h.gamma * keep / take, "take1": take, "first": h.count == 0, **_biases(h)}

    @leafwise(
        MarsState,
        hyper={"b1": b1, "b2": b2, "eps": eps, "gamma": gamma, "clip_norm": clip_norm},
        ranges=_RANGES,
        step=step,
        m=zeros(mu_dtype),
        v=squares() if adaptive else None,
        v_max=squares() if adaptive and amsgrad else None,
        previous=None if exact else zeros(),
    )
    def rule(
        g: Array, s: MarsState, h: Any, previous_grads: Array | None = None, *, spec: PartitionSpec | None
    ) -> tuple[Array, MarsState]:
        before = s.previous if previous_grads is None else previous_grads
        if not first_correction:
            before = jnp.where(h.first, g, before)
        c = _clipped(g + h.pull * (g - before), h.clip_norm, spec, name)
        s = s._replace(previous=None if exact else g)
        if adaptive:
            return _adam(c, s, h)
        m = ema(s.m, c, h.b1)
        return (jnp.sign(m) if variant == "lion" else m / h.take1), s._replace(m=m)

    if variant != "shampoo":
        return rule
    orthogonalize = Orthogonalizer.of(eps=eps, dimension_numbers=dimension_numbers, shard_over=shard_over)
    return orthogonalizing(rule, orthogonalize, scale_of("width"))


def _biases(h: Any) -> dict[str, Array]:
    return {"bias1": debias(h.b1, h.t), "bias2": debias(h.b2, h.t)}


def _adam(c: Array, s: MarsState, h: Any) -> tuple[Array, MarsState]:
    m = ema(s.m, c, h.b1)
    v = ema(s.v, abs_sq(c), h.b2)
    v_max = None if s.v_max is None else jnp.maximum(s.v_max, v)
    largest = v if v_max is None else v_max
    return m / (h.bias1 * (jnp.sqrt(largest / h.bias2) + h.eps)), s._replace(m=m, v=v, v_max=v_max)


def _clipped(c: Array, clip_norm: Scalar, spec: PartitionSpec | None, name: str) -> Array:
    """`c`, of the norm `clip_norm` if its own is larger, over all of the leaf of which it may be a block."""
    if isinstance(clip_norm, numbers.Real) and math.isinf(clip_norm):
        return c
    if spec is None:
        top = divisible(mesh.largest(jnp.abs(c)))
        size = top * root(mesh.total(abs_sq(c / top.astype(c.dtype))))
    else:
        block = Block.of(c, spec, f"{name}: a leaf of shape {c.shape}", "its norm must be that of the whole leaf")
        size = norm(c, range(c.ndim), block)
    return c * jnp.where(size > clip_norm, clip_norm / size, jnp.ones_like(size))


def _with_previous_grads(
    inner: optax.GradientTransformationExtraArgs, first_correction: bool
) -> optax.GradientTransformationExtraArgs:
    """`inner`, given the gradient of the present batch at the previous parameters, at first 0, as `previous_grads`."""
    name = speaker()

    @leafwise(ExactMarsState, previous_params=Slot(lambda leaf, dtype: jnp.array(leaf, dtype, copy=True), jnp.dtype))
    def remember(g: Array, s: ExactMarsState, h: Any, p: Array) -> tuple[Array, ExactMarsState]:
        return g, s._replace(previous_params=p)

    def init(params: PyTree) -> Any:
        first: Any = remember.init(params)
        return first._replace(inner=inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        new_state: Any
        updates, new_state = remember.update(updates, state, params)
        if extra.get("previous_grads") is None:
            if extra.get("grad_fn") is None:
                raise ValueError(
                    f"{name}: needs grad_fn; call update(grads, state, params, grad_fn=...) or use optax_zoo.train_step"
                )
            before = extra["grad_fn"](state.previous_params)
            if first_correction:
                before = jax.tree.map(lambda g: jnp.where(state.count == 0, jnp.zeros_like(g), g), before)
            extra["previous_grads"] = before
        updates, after = inner.update(updates, state.inner, params, **extra)
        return updates, new_state._replace(inner=after)

    return optax.GradientTransformationExtraArgs(init, update)


@method
def mars(
    learning_rate: ScalarOrSchedule = 3e-3,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    *,
    gamma: ScalarOrSchedule = 0.025,
    variant: Variant = "adamw",
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    amsgrad: bool = False,
    clip_norm: ScalarOrSchedule = 1.0,
    optimize_1d: bool = False,
    learning_rate_1d: ScalarOrSchedule = 3e-3,
    b1_1d: ScalarOrSchedule = 0.9,
    b2_1d: ScalarOrSchedule = 0.95,
    weight_decay_1d: ScalarOrSchedule = 0.1,
    first_correction: bool = True,
    mu_dtype: DTypeLike | None = None,
    exact: bool = False,
    base_learning_rate: Scalar | None = None,
    dimension_numbers: DimensionNumbers = None,
    shard_over: ShardOver = None,
) -> optax.GradientTransformationExtraArgs:
    """MARS on matrices, AdamW on everything else (arXiv:2411.10438: MARS-AdamW, MARS-Lion, MARS-Shampoo).

    The average m is that of c = g + gamma b1 / (1 - b1) (g - g'), clipped. The approximate form, the default, takes the
    last step's gradient for g', which belongs to another batch: where nothing is clipped, m is then the plain average
    plus gamma b1 (g - its last value), as in Nesterov's momentum. The exact form takes the gradient of the present
    batch at the previous parameters: pass it, `update(grads, state, params, previous_grads=...)`, a tree like the
    gradient, or let `exact=True` get it from the `grad_fn` that `optax_zoo.train_step` hands over. What changes the
    gradient before MARS in a chain does not change what `grad_fn` returns.

    Inside `jax.shard_map` pass the parameters' PartitionSpecs, `update(grads, state, params, param_specs=specs)`;
    without them "adamw" and "lion" rely on the types of `check_vma=True`. Under `jax.jit` nothing is needed.

    Args:
      learning_rate: step size of MARS leaves, >= 0; a schedule scales a constant `learning_rate_1d` with it.
      b1: decay of the average of corrected gradients, in [0, 1).
      b2: decay of their second moment, in [0, 1).
      eps: added to the root of the second moment after its bias correction, and to the Frobenius norm; >= 0.
      gamma: strength of the correction, >= 0; 0 turns it off, 1 is that of STORM.
      variant: "adamw"; "lion", the sign of the average; "shampoo", the nearest orthogonal matrix to the average, by
        five Newton-Schulz steps, times sqrt(max(1, fan_out/fan_in)).
      weight_decay: decoupled decay of MARS leaves, multiplied by their learning rate.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.
      amsgrad: divide by the root of the largest second moment so far, in "adamw" and in AdamW.
      clip_norm: largest norm of a leaf's corrected gradient, > 0; infinite: no clipping.
      optimize_1d: MARS on all leaves; with "shampoo" those that are no matrices have the variant "adamw".
      learning_rate_1d: step size of AdamW; a schedule is taken as it is.
      b1_1d: decay of AdamW's first moment, in [0, 1).
      b2_1d: decay of AdamW's second moment, in [0, 1).
      weight_decay_1d: AdamW's decoupled decay, multiplied by its learning rate.
      first_correction: whether g' is 0 at the first step, as in the authors' code, unless it is passed; False: it is
        g, as in the paper.
      mu_dtype: dtype of the averages m; None: the parameters'.
      exact: keep the previous parameters in the place of the last gradient, and evaluate `grad_fn` there at every
        step. Not for the inside of `optax.masked`, `optax.partition` (`grad_fn` wants all parameters) and
        `optax.MultiSteps` (it sees the last micro-batch only).
      base_learning_rate: the rate that belongs to a constant `learning_rate_1d`; None: the learning rate, of a
        schedule the largest within a million steps, found to 2%. With a schedule inside `optax.inject_hyperparams`,
        pass it.
      dimension_numbers: how a leaf is read as matrices, see `muon`. Leaves with two axes are MARS leaves, and those to
        which a tree, a function or rules give a view.
      shard_over: of "shampoo": mesh axes over whose devices the matrices are shared out, see `muon`.

    Returns:
      The optimizer, which needs params; the state has, per entry of a MARS leaf, three numbers with "adamw" and two
      with the others, per other parameter two; one more with `amsgrad` where there is a second moment. `exact` has no
      last gradient, and one number more for every parameter.

    Raises:
      ValueError: a number out of its range, an unknown word, a schedule that starts at 0 without
        `base_learning_rate`; in `update`, dimension numbers that do not fit, or with `exact` no `grad_fn`.
    """
    of_1d = {"learning_rate_1d": learning_rate_1d, "b1_1d": b1_1d, "b2_1d": b2_1d, "weight_decay_1d": weight_decay_1d}
    hp.checked(of_1d, _RANGES)
    if base_learning_rate is not None:
        hp.number("base_learning_rate", base_learning_rate, "(0, inf)")

    def corrected(variant: Variant) -> optax.GradientTransformationExtraArgs:
        more = exact, mu_dtype, dimension_numbers, shard_over
        direction = _corrected(b1, b2, eps, gamma, variant, amsgrad, clip_norm, first_correction, *more)
        return finish(direction, learning_rate, weight_decay, mask)

    matrices = corrected(variant)
    if optimize_1d:
        others = corrected("adamw" if variant == "shampoo" else variant)
    else:
        rate = _rate_1d(learning_rate_1d, learning_rate, base_learning_rate)
        others = finish(_scale_by_adam(b1_1d, b2_1d, eps, amsgrad, mu_dtype), rate, weight_decay_1d, mask)

    tx = by_kind(matrices, others, dimension_numbers=dimension_numbers)
    return _with_previous_grads(tx, first_correction) if exact else tx


def _scale_by_adam(
    b1: ScalarOrSchedule, b2: ScalarOrSchedule, eps: ScalarOrSchedule, amsgrad: bool, mu_dtype: DTypeLike | None
) -> optax.GradientTransformationExtraArgs:
    @leafwise(
        MarsState,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        step=lambda h, s: _biases(h),
        m=zeros(mu_dtype),
        v=squares(),
        v_max=squares() if amsgrad else None,
        previous=None,
    )
    def rule(g: Array, s: MarsState, h: Any) -> tuple[Array, MarsState]:
        return _adam(g, s, h)

    return rule


def _rate_1d(
    learning_rate_1d: ScalarOrSchedule, learning_rate: ScalarOrSchedule, base_learning_rate: Scalar | None
) -> ScalarOrSchedule:
    """AdamW's learning rate: a constant one follows the other's schedule."""
    if base_learning_rate is None and callable(learning_rate) and not callable(learning_rate_1d):
        base_learning_rate = _peak(learning_rate)
    if callable(learning_rate_1d) or base_learning_rate is None:
        return learning_rate_1d
    factor = hp.as_scalar(learning_rate_1d) / hp.as_scalar(base_learning_rate)
    if callable(learning_rate):
        return lambda count: hp.as_scalar(learning_rate(count)) * factor
    return learning_rate * factor


def _peak(schedule: Callable[[Any], Any]) -> Array:
    """The largest value of a schedule, of a linear warm-up's peak 98% at least; 1 if that is 0."""
    counts = np.unique(np.append(0, np.geomspace(1, 1e6, 700)).astype(np.int32))
    rates = jax.vmap(lambda count: jnp.asarray(hp.resolve({"rate": schedule}, count)["rate"]))(counts)
    return jnp.where(jnp.max(rates) > 0, jnp.max(rates), 1.0)


PAPER = register(
    Paper(
        name="mars",
        title="MARS: Unleashing the Power of Variance Reduction for Training Large Models",
        authors=("Yuan, Huizhuo", "Liu, Yifeng", "Wu, Shuang", "Zhou, Xun", "Gu, Quanquan"),
        year=2024,
        arxiv="2411.10438",
        make=mars,
        transform=scale_by_mars,
        states=(MarsState,),
        needs=("params",),
        floats_per_parameter=3,
        elementwise=False,
        relative_learning_rate=3.0,
        peak_argument="base_learning_rate",
        golden=("mars.adamw", "mars.lion", "mars.shampoo", "mars.exact_adamw"),
    )
)
