"""NAG-GS: Semi-Implicit, Accelerated and Robust Stochastic Optimizer.

Valentin Leplat, Daniil Merkulov, Aleksandr Katrutsa, Daniel Bershatsky, Olga Tsymboi, Ivan Oseledets, 2022,
arXiv:2209.14937, Algorithm 1.
Nesterov's accelerated flow x' = v - x, v' = (mu (x - v) - grad f(x)) / gamma, gamma' = mu - gamma, discretised
semi-implicitly (Gauss-Seidel), which allows larger steps than explicit momentum.

Differs from the authors' code (JAX): gamma is kept in the widest float. Their PyTorch class `NAGGS` computes a new
gamma and stores the old one, which makes it `NAG4`, the method of constant gamma: `update_gamma=False` here.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.hyper import ScalarOrSchedule
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, copy


class NagGsState(NamedTuple):
    """The second point of the flow; gamma is 0 before the first step."""

    count: Array  # steps taken
    gamma: Array  # velocity's scale
    v: PerParameter  # where gradients act


@method
def nag_gs(
    learning_rate: ScalarOrSchedule = 0.05,
    mu: ScalarOrSchedule = 1.0,
    gamma: ScalarOrSchedule = 1.5,
    skip_first: bool = True,
    update_gamma: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """NAG-GS (arXiv:2209.14937, Algorithm 1).

    Args:
      learning_rate: step size of the flow, >= 0; alpha in the paper.
      mu: strong convexity, >= 0.
      gamma: scale of the velocity, > 0; its first value with `update_gamma`, of a schedule that at count 0.
      skip_first: throw the first gradient away, as the authors' JAX code does: the parameters stay at step 1. Without
        effect unless `update_gamma`.
      update_gamma: let gamma approach mu; False is the authors' constant-gamma method, NAG4.

    Returns:
      The optimizer, which needs params; one number of state per parameter.

    Raises:
      ValueError: a number out of its range; in `update`, params are missing.
    """

    def step(h: Any, s: NagGsState) -> dict[str, Any]:
        first = h.count == 0
        a, scale = h.learning_rate, jnp.where(first, h.gamma, s.gamma) if update_gamma else h.gamma
        after = (scale + a * h.mu) / (1 + a) if update_gamma else scale
        return {"gain": a / (scale + a * h.mu), "pull": a / (1 + a), "first": first, "gamma": after}

    @leafwise(
        NagGsState,
        hyper={"learning_rate": learning_rate, "mu": mu, "gamma": gamma},
        ranges={"mu": "[0, inf)", "gamma": "(0, inf)"},
        step=step,
        gamma=0.0,
        v=copy(),
    )
    def rule(g: Array, s: NagGsState, h: Any, p: Array) -> tuple[Array, NagGsState]:
        v = s.v + h.gain * (h.mu * (p - s.v) - g)
        if skip_first and update_gamma:
            v = jnp.where(h.first, s.v, v)
        return h.pull * (v - p), s._replace(v=v)

    return rule


PAPER = register(
    Paper(
        name="nag_gs",
        title="NAG-GS: Semi-Implicit, Accelerated and Robust Stochastic Optimizer",
        authors=(
            "Leplat, Valentin",
            "Merkulov, Daniil",
            "Katrutsa, Aleksandr",
            "Bershatsky, Daniel",
            "Tsymboi, Olga",
            "Oseledets, Ivan",
        ),
        year=2022,
        arxiv="2209.14937",
        algorithm="Algorithm 1",
        make=nag_gs,
        states=(NagGsState,),
        needs=("params",),
        floats_per_parameter=1,
        relative_learning_rate=300.0,
        golden=("nag_gs.default", "nag_gs.torch_naggs", "nag_gs.constant_gamma"),
    )
)
