"""Accelerated Gradient Methods for Sparse Statistical Learning with Nonconvex Penalties.

Kai Yang, Masoud Asgharian, Sahir Bhatnagar, 2020, arXiv:2009.10629.
Accelerated proximal gradient descent on a smooth loss plus SCAD or MCP: the concave part of the penalty is treated as
smooth, its other part lam |x| by soft thresholding; with the paper's damping sequence and speed restarts.

Differs from the authors' code (their notebooks): nothing. The package in the same repository is another algorithm: it
adds the gradient of the concave part with the wrong sign and replaces the scheme by FISTA.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core import mesh
from optax_zoo._core.finish import Mask, flags
from optax_zoo._core.hyper import ScalarOrSchedule, choice, scalar_dtype
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, at_least_float32, copy
from optax_zoo._core.trees import PyTree
from optax_zoo.adaptive.penalties import soft

Penalty = Literal["scad", "mcp"]


class NonconvexAgState(NamedTuple):
    """The two sequences whose mixture the parameters are."""

    count: Array  # steps taken
    alpha: Array  # next step's damping
    speed: Array  # last move's norm
    old_speed: Array  # the one before
    since_restart: Array  # steps, from -1
    b: PerParameter  # fast sequence
    b_ag: PerParameter  # sparse solution

    AVERAGED = "b_ag"

    def eval_params(self, params: PyTree) -> PyTree:
        """The solution, with exact zeros."""
        del params
        return self.b_ag


@method
def nonconvex_ag(
    learning_rate: ScalarOrSchedule,
    penalty: Penalty = "scad",
    lam: ScalarOrSchedule = 1e-2,
    a: ScalarOrSchedule = 3.7,
    gamma: ScalarOrSchedule = 2.0,
    restart: bool = True,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Accelerated gradient method for SCAD and MCP penalties (arXiv:2009.10629).

    Gradients are those of the smooth loss, without penalty, at the parameters, which are extrapolated points. The
    solution, whose zeros are exact, is `optax_zoo.eval_params(state, params)` or `nonconvex_ag_params(state)`.

    Args:
      learning_rate: step size, >= 0; the authors use 0.99 / max(L, 1 / (a - 1)) for SCAD and 0.99 / max(L, 1 / gamma)
        for MCP, with L the Lipschitz constant of the gradient.
      penalty: "scad" or "mcp".
      lam: strength of the penalty, >= 0.
      a: of SCAD, > 2; entries larger than a * lam are not shrunk.
      gamma: of MCP, > 0; entries larger than gamma * lam are not shrunk.
      restart: start the damping sequence anew when the parameters have slowed down.
      mask: which leaves are penalised; a (prefix) tree of bools or a function of the parameters. None: all.

    Returns:
      The optimizer, which needs params; two numbers of state per parameter. Its update must not be rescaled
      afterwards, and not be combined with weight decay.

    Raises:
      TypeError: in `update`, complex leaves.
      ValueError: a number out of its range or an unknown penalty; in `update`, params are missing.
    """
    choice("penalty", penalty, Penalty)

    def step(h: Any, s: NonconvexAgState) -> dict[str, Any]:
        since = s.since_restart + 1
        slower = (s.old_speed > s.speed) & (since >= 3) if restart else jnp.zeros((), bool)
        return {
            "rate": h.learning_rate / s.alpha,
            "bend": 1 / (h.a - 1) if penalty == "scad" else 1 / h.gamma,
            "alpha": jnp.where(slower, 1.0, _damped(s.alpha)),
            "since_restart": jnp.where(slower, 0.0, since),
        }

    @leafwise(
        NonconvexAgState,
        hyper={"learning_rate": learning_rate, "lam": lam, "a": a, "gamma": gamma},
        ranges={"lam": "[0, inf)", "a": "(2, inf)", "gamma": "(0, inf)"},
        static={"mask": flags(mask)},
        step=step,
        real_only=True,
        alpha=(math.sqrt(5) - 1) / 2,  # damping after 1
        speed=0.0,
        old_speed=1.0,
        since_restart=1.0,
        b=copy(),
        b_ag=copy(),
    )
    def rule(g: Array, s: NonconvexAgState, h: Any, p: Array, *, mask: bool) -> tuple[Array, NonconvexAgState]:
        b, b_ag = s.b - h.rate * g, p - h.learning_rate * g
        if mask:
            outer = soft(p, h.lam) if penalty == "scad" else p
            concave = jnp.clip(h.bend * outer, -h.lam, h.lam)
            b = soft(b + h.rate * concave, h.rate * h.lam)
            b_ag = soft(b_ag + h.learning_rate * concave, h.learning_rate * h.lam)
        return (1 - h.alpha) * b_ag + h.alpha * b - p, s._replace(b=b, b_ag=b_ag)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        old_speed = state.speed
        move, state = rule.update(updates, state, params)
        return move, state._replace(speed=_norm(move), old_speed=old_speed)

    return optax.GradientTransformationExtraArgs(rule.init, update)


@method
def nonconvex_ag_params(state: optax.OptState) -> PyTree:
    """The sparse solution in a state of `nonconvex_ag`, or in one that contains such a state.

    Raises:
      ValueError: there is none.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, NonconvexAgState))
    for node in nodes:
        if isinstance(node, NonconvexAgState):
            return node.b_ag
    raise ValueError("nonconvex_ag_params: no state of nonconvex_ag in this optimizer state")


def _damped(alpha: Array) -> Array:
    return 2 / (1 + jnp.sqrt(1 + 4 / (alpha * alpha)))


def _norm(tree: PyTree) -> Array:
    leaves = [leaf.astype(at_least_float32(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    total = mesh.sum_leaves({"squares": jnp.sum(leaf * leaf).astype(scalar_dtype())} for leaf in leaves)
    return jnp.sqrt(total.get("squares", 0.0))


PAPER = register(
    Paper(
        name="nonconvex_ag",
        title="Accelerated Gradient Methods for Sparse Statistical Learning with Nonconvex Penalties",
        authors=("Yang, Kai", "Asgharian, Masoud", "Bhatnagar, Sahir"),
        year=2020,
        arxiv="2009.10629",
        make=nonconvex_ag,
        states=(NonconvexAgState,),
        needs=("params",),
        floats_per_parameter=2,
        elementwise=False,
        relative_learning_rate=20.0,
        golden=("nonconvex_ag.scad", "nonconvex_ag.mcp"),
    )
)
