"""Optimal Stochastic Non-smooth Non-convex Optimization through Online-to-Non-convex Conversion.

Ashok Cutkosky, Harsh Mehta, Francesco Orabona, 2023, arXiv:2302.03775, Algorithm 1; with other scales than uniform
ones the exponentiated form of arXiv:2405.09742 (see `random_scaling`).
An online learner plays the steps Delta against gradients that are taken at a random point of each step, where they
add up to the decrease of the loss, however rough it is.

Differs from the authors' code: there is none. Algorithm and constants were read in later papers that restate them,
not in the paper itself: UNVERIFIED.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.averages import approach
from optax_zoo._core.hyper import RANGES, ScalarOrSchedule, abs_sq, check_range, choice, number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy, wide_zeros
from optax_zoo._core.trees import PyTree
from optax_zoo.adaptive.random_scaling import draw, random_scaling

Learner = Literal["ogd_ball", "ogd_beta"]
Scaling = Literal["uniform", "exponential", "uniform02", "none"]


class OnlineLearner(NamedTuple):
    """An online linear optimizer, which plays Delta = 0 first.

    `init(params)` -> state; `update(grads, state, params)` -> (next Delta, a tree like params; state).
    """

    init: Callable[[PyTree], Any]
    update: Callable[..., tuple[PyTree, Any]]


class OnlineGradientDescentState(NamedTuple):
    """The learner's play."""

    count: Array  # steps taken
    delta: PerParameter  # current play Delta


class OnlineToNonconvexState(NamedTuple):
    """The last step's remainder."""

    count: Array  # steps taken
    rest: PerParameter  # Delta not applied


class EpochMeanState(NamedTuple):
    """The mean of the points played in an epoch, and the learner before it."""

    count: Array  # steps taken
    mean_w: PerParameter  # this epoch's mean
    inner_state: optax.OptState  # of the rest

    AVERAGED = "mean_w"

    def eval_params(self, params: PyTree) -> PyTree:
        """The mean of the points of the current epoch at which gradients were taken."""
        del params
        return self.mean_w


@method
def online_to_nonconvex(
    learning_rate: ScalarOrSchedule | None = None,
    radius: ScalarOrSchedule | None = None,
    learner: Learner | OnlineLearner = "ogd_ball",
    seed: int = 0,
    scaling: Scaling = "uniform",
    beta: ScalarOrSchedule = 0.99,
    mu: ScalarOrSchedule = 100.0,
    epoch: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Online-to-nonconvex conversion (arXiv:2302.03775, Algorithm 1) and its exponentiated form (arXiv:2405.09742).

    The learner's plays Delta_n move x_n = x_(n-1) + Delta_n, and gradients are taken on the way, at
    w_n = x_(n-1) + s_n Delta_n with s_n uniform in [0, 1]: the parameters are w. With another `scaling` they are
    x_n = x_(n-1) + s_n Delta_n itself.

    Constants of the guarantee for N gradients of size G and points within delta: epochs of
    T = min(ceil((G N delta / (F(x_0) - inf F))^(2/3)), ceil(N/2)) steps, radius D = delta / T, rate D / (G sqrt(T)).
    Of the exponentiated form: beta = 1 - O(eps^2), rate 2 D sqrt(1 - beta) / (G + sigma); its output is the
    beta-EMA of the points, `with_ema(tx, beta, init="zeros", debias=True)`.

    Args:
      learning_rate: eta of the built-in learners, >= 0.
      radius: ogd_ball: D, the largest norm of a play over the whole tree, > 0; None: no bound.
      learner: "ogd_ball": Delta <- P(Delta - eta g), P the projection on the ball; "ogd_beta":
        Delta <- beta / (1 + eta mu) (Delta - eta g); or an `OnlineLearner`, which has its own rate.
      seed: of the scales, >= 0.
      scaling: of the plays: "uniform", or as in `random_scaling`.
      beta: ogd_beta: decay of the play, in [0, 1].
      mu: ogd_beta: strength of its pull to 0, >= 0.
      epoch: T, steps after which a built-in learner starts again at 0, >= 1; `eval_params` gives the mean of the w
        of the current epoch then, which is complete after T steps and is to be saved there. None: one endless
        epoch, without the mean.

    Returns:
      The optimizer; two numbers of state per parameter, three with `epoch`, one less unless `scaling="uniform"`.

    Raises:
      ValueError: a number out of its range, an unknown word, a built-in learner without `learning_rate`; in
        `update`, params are missing with `epoch`.
      TypeError: `learner` is neither a word nor an `OnlineLearner`.
    """
    choice("scaling", scaling, Scaling)
    number("seed", seed, RANGES["seed"])
    if epoch is not None:
        number("epoch", epoch, "[1, inf)")
    play = _learner(learner, learning_rate, radius, beta, mu, epoch)
    tx = optax.chain(play, _between(seed)) if scaling == "uniform" else random_scaling(scaling, seed, inner=play)
    return tx if epoch is None else _epoch_mean(tx, epoch)


def _learner(
    learner: Learner | OnlineLearner,
    learning_rate: ScalarOrSchedule | None,
    radius: ScalarOrSchedule | None,
    beta: ScalarOrSchedule,
    mu: ScalarOrSchedule,
    epoch: int | None,
) -> optax.GradientTransformationExtraArgs:
    ranges = {"learning_rate": "[0, inf)", "radius": "(0, inf)", "beta": "[0, 1]", "mu": "[0, inf)"}
    given = {"learning_rate": learning_rate, "radius": radius, "beta": beta, "mu": mu}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        check_range(name, value, ranges[name])
    if isinstance(learner, OnlineLearner):
        return _transformation(learner)
    if not isinstance(learner, str):
        raise TypeError(f"{speaker()}: learner must be a word or an OnlineLearner, got {learner!r}")
    choice("learner", learner, Learner)
    if learning_rate is None:
        raise ValueError(f"{speaker()}: learner={learner!r} needs learning_rate")
    projects = learner == "ogd_ball" and radius is not None

    def sums(g: Array, s: OnlineGradientDescentState, h: Any) -> dict[str, Array]:
        return {"square": jnp.sum(abs_sq(s.delta - h.learning_rate * g))}

    def step(h: Any, s: OnlineGradientDescentState) -> dict[str, Any]:
        keep = jnp.ones(())
        if projects:
            keep = h.radius / jnp.maximum(jnp.sqrt(getattr(h, "square", jnp.zeros(()))), h.radius)
        elif learner == "ogd_beta":
            keep = jnp.asarray(h.beta / (1.0 + h.learning_rate * h.mu))
        keep = keep if epoch is None else jnp.where((h.count + 1) % epoch == 0, 0.0, keep)
        return {"keep": keep, "push": keep * h.learning_rate}

    @leafwise(
        OnlineGradientDescentState,
        hyper=given,
        ranges=ranges,
        sums=sums if projects else None,
        step=step,
        delta=wide_zeros(),
    )
    def rule(g: Array, s: OnlineGradientDescentState, h: Any) -> tuple[Array, OnlineGradientDescentState]:
        delta = h.keep * s.delta - h.push * g
        return delta, s._replace(delta=delta)

    return rule


def _transformation(learner: OnlineLearner) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> Any:
        return learner.init(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        del extra
        return learner.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _between(seed: int) -> optax.GradientTransformationExtraArgs:
    """From w_n = x_(n-1) + s_n Delta_n to w_(n+1), given Delta_(n+1)."""

    def step(h: Any, s: OnlineToNonconvexState) -> dict[str, Array]:
        return {"part": draw("uniform", seed, h.count)}

    @leafwise(OnlineToNonconvexState, step=step, rest=wide_zeros())
    def rule(delta: Array, s: OnlineToNonconvexState, h: Any) -> tuple[Array, OnlineToNonconvexState]:
        return s.rest + h.part * delta, s._replace(rest=(1 - h.part) * delta)

    return rule


def _epoch_mean(inner: optax.GradientTransformation, epoch: int) -> optax.GradientTransformationExtraArgs:
    """`inner`, and the mean of the parameters its gradients were taken at since the epoch began."""
    name = speaker()
    inner = optax.with_extra_args_support(inner)

    def step(h: Any, s: EpochMeanState) -> dict[str, Array]:
        return {"take": 1.0 / (h.count % epoch + 1).astype(h.t.dtype)}

    @leafwise(EpochMeanState, step=step, copy_integers=True, mean_w=copy())
    def watch(w: Array, s: EpochMeanState, h: Any) -> tuple[Array, EpochMeanState]:
        return w, s._replace(mean_w=approach(s.mean_w, w, h.take))

    def init(params: PyTree) -> Any:
        own: Any = watch.init(params)
        return own._replace(inner_state=inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError(f"{name}: needs params for the mean of an epoch; call update(grads, state, params)")
        own: Any
        _, own = watch.update(params, state)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        return updates, own._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


PAPER = register(
    Paper(
        name="online_to_nonconvex",
        title="Optimal Stochastic Non-smooth Non-convex Optimization through Online-to-Non-convex Conversion",
        authors=("Cutkosky, Ashok", "Mehta, Harsh", "Orabona, Francesco"),
        year=2023,
        arxiv="2302.03775",
        algorithm="Algorithm 1",
        make=online_to_nonconvex,
        states=(OnlineGradientDescentState, OnlineToNonconvexState),
        floats_per_parameter=2,
        relative_learning_rate=4.0,
        probe={"learner": "ogd_beta", "mu": 1.0},
    )
)
