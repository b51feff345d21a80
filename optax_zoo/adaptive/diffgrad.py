"""diffGrad: An Optimization Method for Convolutional Neural Networks.

Shiv Ram Dubey, Soumendu Chakraborty, Swalpa Kumar Roy, Snehasis Mukherjee, Satish Kumar Singh,
Bidyut Baran Chaudhuri, 2019, arXiv:1909.11015.
Adam with friction: an entry whose gradient hardly changes, as at a minimum, takes half a step, one whose gradient
changes a lot nearly a whole one.

Differs from the authors' code: nothing in its second version. The first keeps an alias in the place of the previous
gradient and so takes half a step everywhere.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, debias, ema
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerParameter, squares, zeros


class DiffgradState(NamedTuple):
    """Adam's moments and the gradient to compare with."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerParameter  # second moment
    g: PerParameter  # the previous gradient


@method
def scale_by_diffgrad(
    b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999, eps: ScalarOrSchedule = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """The diffGrad direction; arguments as in `diffgrad`."""

    def step(h: Any, s: DiffgradState) -> dict[str, Array]:
        return {"gain": jnp.sqrt(debias(h.b2, h.t)) / debias(h.b1, h.t)}

    @leafwise(DiffgradState, hyper={"b1": b1, "b2": b2, "eps": eps}, step=step, m=zeros(), v=squares(), g=zeros())
    def rule(g: Array, s: DiffgradState, h: Any) -> tuple[Array, DiffgradState]:
        m = ema(s.m, g, h.b1)
        v = ema(s.v, abs_sq(g), h.b2)
        friction = 1 + jnp.exp(-jnp.abs(s.g - g))
        return h.gain * m / (friction * (jnp.sqrt(v) + h.eps)), s._replace(m=m, v=v, g=g)

    return rule


@method
def diffgrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """diffGrad (arXiv:1909.11015).

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the uncorrected root.
      weight_decay: decay coefficient, added to the gradient.
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; three numbers of state per parameter. The friction depends on the scale of the loss: gradients
      much smaller than 1 all take half a step.

    Raises:
      ValueError: a number out of its range.
    """
    return finish(scale_by_diffgrad(b1, b2, eps), learning_rate, weight_decay, mask, decay="l2")


PAPER = register(
    Paper(
        name="diffgrad",
        title="diffGrad: An Optimization Method for Convolutional Neural Networks",
        authors=(
            "Dubey, Shiv Ram",
            "Chakraborty, Soumendu",
            "Roy, Swalpa Kumar",
            "Mukherjee, Snehasis",
            "Singh, Satish Kumar",
            "Chaudhuri, Bidyut Baran",
        ),
        year=2019,
        arxiv="1909.11015",
        make=diffgrad,
        transform=scale_by_diffgrad,
        states=(DiffgradState,),
        floats_per_parameter=3,
        relative_learning_rate=2.0,
        golden=("diffgrad.default", "diffgrad.wd"),
    )
)
