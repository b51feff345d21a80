"""An Optimistic Acceleration of AMSGrad for Nonconvex Optimization.

Jun-Kun Wang, Xiaoyun Li, Belhal Karimi, Ping Li, 2019, arXiv:1903.01435.
AMSGrad that steps a second time, with a guess of the next gradient, before it has seen it; the guess extrapolates the
last gradients by a weighted average of them whose weights would make the differences cancel.

Differs from the authors' code: their code extrapolates weights in the place of gradients and asks a second network for
its gradient there, with a history that it never refreshes. The published algorithm is the default; their step is
`second_moment="error", bias_correction=True` with the second network's gradient as `prediction`. Without `prediction`
the error is that of the guess made one step earlier, which the code does not have. The paper leaves open what v_max
starts at (eps, like v) and what to guess before there are enough gradients (the last one).
"""

import itertools
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer

from optax_zoo._core import mesh
from optax_zoo._core.finish import add_decay
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, abs_sq, choice, debias, ema, is_zero, number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, at_least_float32, squares, wide_zeros, zeros

Predictor = Literal["extrapolation", "last", "zero"]
SecondMoment = Literal["gradient", "error"]


class OptAmsgradState(NamedTuple):
    """AMSGrad's moments, the second step taken, and the past."""

    count: Array  # steps taken
    theta: PerParameter  # first moment
    v: PerParameter  # second moment
    v_max: PerParameter  # its maximum
    off: PerParameter  # parameters minus w_aux
    guess: PerParameter  # last prediction (error)
    history: tuple[PerParameter, ...]  # gradients, newest last


@method
def opt_amsgrad(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    predictor: Predictor = "extrapolation",
    span: int = 5,
    extrapolation_reg: ScalarOrSchedule = 1e-3,
    second_moment: SecondMoment = "gradient",
    bias_correction: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """OPT-AMSGrad (arXiv:1903.01435).

    w_aux <- w_aux - k theta / d is AMSGrad; the parameters are w_aux - k (b1 theta_old + (1 - b1) m) / d, with m the
    guess of the next gradient and k the learning rate.

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: "gradient": what v and its maximum start at, nothing more; "error": added to the root. >= 0.
      predictor: m is an "extrapolation" of the last gradients, leaf by leaf, or the "last" one, or "zero".
      span: r >= 1; the extrapolation weighs the last r gradients and remembers r + 1.
      extrapolation_reg: see `minimal_polynomial_extrapolation`, >= 0, in units of a squared gradient.
      second_moment: v averages the squares of the "gradient", or of the "error" of its prediction.
      bias_correction: k = lr sqrt(1 - b2^t) / (1 - b1^t).
      weight_decay: decay coefficient, added to the gradient; then params are needed.

    Returns:
      The optimizer; span + 5 numbers of state per parameter, four with another predictor, and one more with "error"
      but "zero". `update(grads, state, params, prediction=m)` overrides the predictor; m is a tree like grads.

    Raises:
      ValueError: a number out of its range, an unknown `predictor` or `second_moment`.
      TypeError: `span` is no whole number, or not known when `init` runs.
    """
    choice("predictor", predictor, Predictor)
    choice("second_moment", second_moment, SecondMoment)
    name, length = speaker(), _history_length(span)
    extrapolates, on_error = predictor == "extrapolation", second_moment == "error"

    def step(h: Any, s: OptAmsgradState) -> dict[str, Any]:
        correction = jnp.sqrt(debias(h.b2, h.t)) / debias(h.b1, h.t) if bias_correction else 1.0
        return {"k": h.learning_rate * correction}

    @leafwise(
        OptAmsgradState,
        hyper={
            "learning_rate": learning_rate,
            "b1": b1,
            "b2": b2,
            "eps": eps,
            "extrapolation_reg": extrapolation_reg,
        },
        ranges={"extrapolation_reg": "[0, inf)"},
        step=step,
        theta=zeros(),
        v=squares(),
        v_max=squares(),
        off=wide_zeros(),
        guess=zeros() if on_error and predictor != "zero" else None,
        history=(zeros(),) * (length if extrapolates else 0),
    )
    def rule(g: Array, s: OptAmsgradState, h: Any, prediction: Array | None = None) -> tuple[Array, OptAmsgradState]:
        history, start, v_max = s.history, s.v, s.v_max
        if extrapolates:
            if len(history) < 2:
                raise TypeError(f"{name}: span must be known when init runs; name it in static_args")
            history = (*history[1:], g)
        m = predicted(g, history, h) if prediction is None else prediction
        compared = g
        if on_error:
            compared = g - (s.guess if prediction is None and s.guess is not None else m)
        else:
            start, v_max = (jnp.where(h.count == 0, h.eps, x) for x in (start, v_max))
        v = ema(start, abs_sq(compared), h.b2)
        v_max = jnp.maximum(v_max, v)
        root = jnp.sqrt(v_max) + (h.eps if on_error else 0.0)
        rate = h.k / jnp.where(root > 0, root, jnp.inf)
        theta = ema(s.theta, g, h.b1)
        off = -rate * ema(s.theta, m, h.b1)
        new = s._replace(theta=theta, v=v, v_max=v_max, off=off, history=history)
        return off - s.off - rate * theta, new if s.guess is None else new._replace(guess=m)

    def predicted(g: Array, history: tuple[Array, ...], h: Any) -> Array:
        if not extrapolates:
            return g if predictor == "last" else jnp.zeros_like(g)
        weights = minimal_polynomial_extrapolation(history, h.extrapolation_reg)
        newest = jnp.zeros_like(weights).at[-1].set(1)
        weights = jnp.where(h.count >= len(weights), weights, newest)
        return sum((c * past for c, past in zip(weights, history[1:], strict=True)), start=jnp.zeros_like(g))

    return rule if is_zero(weight_decay) else optax.chain(add_decay(weight_decay, None), rule)


def _history_length(span: int) -> int:
    """span + 1; 0 for a traced span, where the state knows."""
    if isinstance(span, Tracer):
        return 0
    number("span", span, "[1, inf)")
    try:
        return operator.index(span) + 1
    except TypeError:
        raise TypeError(f"{speaker()}: span must be a whole number, got {span!r}") from None


@method
def minimal_polynomial_extrapolation(history: Sequence[Array], reg: Scalar = 1e-3) -> Array:
    """The weights c with which a sequence x_0, ..., x_r is extrapolated to its limit, sum_i c_i x_(i+1).

    They add up to 1 and minimise |sum_i c_i u_i|^2 + reg |c|^2 with u_i = x_(i+1) - x_i. The limit of x_i = x + rho^i d
    is found from r = 2 on.

    Args:
      history: at least two arrays of one shape, real or complex, the newest last; inside `jax.shard_map` they may be
        one device's blocks.
      reg: >= 0, in units of |u|^2. Rounding is regularised away in any case.

    Returns:
      r real weights, float32 or better.

    Raises:
      ValueError: fewer than two arrays, or `reg` out of its range.
    """
    number("reg", reg, "[0, inf)")
    if len(history) < 2:
        raise ValueError(f"{speaker()}: history must hold two arrays or more, got {len(history)}")
    points = [jnp.asarray(x, at_least_float32(x.dtype)) for x in history]
    u = [after - before for before, after in itertools.pairwise(points)]
    r = range(len(u))
    inner = {(i, j): jnp.sum(jnp.real(u[i] * jnp.conj(u[j]))) for i in r for j in r if i <= j}
    gram = jnp.stack([jnp.stack([inner[min(i, j), max(i, j)] for j in r]) for i in r])
    gram = mesh.sum_leaves([{"gram": gram}])["gram"]
    size = jnp.trace(gram)
    size = jnp.where(size > 0, size, 1.0)
    ridge = jnp.maximum(jnp.asarray(reg, gram.dtype) / size, len(u) * jnp.finfo(gram.dtype).eps)
    z = jnp.linalg.solve(gram / size + ridge * jnp.eye(len(u), dtype=gram.dtype), jnp.ones(len(u), gram.dtype))
    return z / jnp.sum(z)


PAPER = register(
    Paper(
        name="opt_amsgrad",
        title="An Optimistic Acceleration of AMSGrad for Nonconvex Optimization",
        authors=("Wang, Jun-Kun", "Li, Xiaoyun", "Karimi, Belhal", "Li, Ping"),
        year=2019,
        arxiv="1903.01435",
        make=opt_amsgrad,
        states=(OptAmsgradState,),
        floats_per_parameter=10,
        relative_learning_rate=0.2,
        elementwise=False,
        golden=("opt_amsgrad.author_code",),
    )
)
