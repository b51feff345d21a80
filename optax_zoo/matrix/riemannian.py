"""Riemannian Adaptive Optimization Methods: Riemannian Adam, AMSGrad and AdaGrad.

Gary Bécigneul, Octavian-Eugen Ganea, 2018 (ICLR 2019), arXiv:1810.00760, Algorithm 1.
Parameters are points of a product of manifolds. Each point has one adaptive step size, because entries mean nothing
without coordinates; the step follows a geodesic, or a retraction, and the momentum is transported along with it.

Differs from the authors' code: there is none. `riemannian_adam` is geoopt's (bias correction, coupled weight decay,
on the sphere the tangent projection as transport), `riemannian_amsgrad` and `riemannian_adagrad` are the paper's,
whose maps are the exact ones: `PoincareBall(exact=True)`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.averages import steps
from optax_zoo._core.hyper import ScalarOrSchedule, debias, ema, whole_number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerLeaf, PerParameter, zeros
from optax_zoo.matrix._points import Manifolds, RowsOn, manifold_of_each, per_point, with_whole_points
from optax_zoo.matrix.manifolds import Manifold, PoincareBall


class RiemannianAdamState(NamedTuple):
    """Momentum in tangent spaces, and second moments of points."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerLeaf  # second moment
    vmax: PerLeaf  # its largest value


class RiemannianAdagradState(NamedTuple):
    """What the step sizes are made of."""

    count: Array  # steps taken
    a: PerLeaf  # sum of squares


@method
def riemannian_adam(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    manifolds: Manifolds,
    amsgrad: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    stabilize: int | Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Riemannian Adam (arXiv:1810.00760) in geoopt's form.

    The last axis of a leaf is a point x of its manifold, the leading axes are a batch of points. With the Riemannian
    gradient g: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) |g|^2 for each point, u = m / (sqrt(v) + eps) with both
    corrected for their start at 0, and x <- R_x(-learning_rate u), m <- the transported m. On `Euclidean()` leaves v
    is kept for each entry, which is Adam.

    Gradients are Euclidean, as `jax.grad` gives them. Points off their manifold are projected first, so that the step
    brings them back. The update is the difference of two points and may not be scaled afterwards. Inside
    `jax.shard_map` the last axis of a curved leaf must be whole on every device; pass the parameters' PartitionSpecs,
    `update(grads, state, params, param_specs=specs)`, to have this checked.

    Args:
      learning_rate: step size in the metric, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root; 0 is allowed, then a point without gradients does not move.
      manifolds: where points lie: a `PoincareBall`, `Sphere`, `Euclidean` or `Product`, a (prefix) tree of them, a
        function of (path, leaf) with a path such as "embed/items", or `RowsOn(manifold)`.
      amsgrad: divide by the largest second moment so far.
      weight_decay: coupled: weight_decay * x is added to the Euclidean gradient.
      stabilize: every so many steps, project the points and the momentum once more; None: never.

    Returns:
      The optimizer, which needs params; one number of state per parameter and one per point, with `amsgrad` two per
      point.

    Raises:
      ValueError: a number out of its range; in `init` and `update`, a leaf that does not fit its manifold; in `init`,
        a zero row on the sphere (one that `jax.jit` hides leaves along its first gradient); in `update`, a last axis
        that is cut.
      TypeError: an entry of `manifolds` that is no manifold; in `init`, a complex leaf.
    """
    return _adam(learning_rate, b1, b2, eps, manifolds, amsgrad, weight_decay, stabilize)


@method
def riemannian_amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    manifolds: Manifolds,
) -> optax.GradientTransformationExtraArgs:
    """RAMSGrad (arXiv:1810.00760, Algorithm 1): no bias correction, the largest second moment, parallel transport.

    Args:
      learning_rate, b1, b2, eps, manifolds: as in `riemannian_adam`; the paper's maps are those of `exact=True`.

    Returns:
      The optimizer, which needs params; one number of state per parameter and two per point.

    Raises:
      ValueError, TypeError: as `riemannian_adam`.
    """
    return _adam(learning_rate, b1, b2, eps, manifolds, amsgrad=True, of_the_paper=True)


def _adam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    manifolds: Manifolds,
    amsgrad: bool,
    weight_decay: ScalarOrSchedule = 0.0,
    stabilize: int | Array | None = None,
    of_the_paper: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam in geoopt's form, or without bias correction and with parallel transport."""
    every = {} if stabilize is None else {"stabilize": stabilize}
    if stabilize is not None:
        whole_number("stabilize", stabilize)

    def step(h: Any, s: RiemannianAdamState) -> dict[str, Any]:
        biases = (1.0, 1.0) if of_the_paper else (debias(h.b1, h.t), debias(h.b2, h.t))
        stabilizes = (h.count + 1) % steps(h.stabilize) == 0 if every else False
        return {"bias1": biases[0], "bias2": biases[1], "stabilizes": stabilizes}

    @leafwise(
        RiemannianAdamState,
        hyper={"learning_rate": learning_rate, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay, **every},
        step=step,
        static={"manifold": manifold_of_each(manifolds)},
        real_only=True,
        m=zeros(),
        v=per_point(manifolds),
        vmax=per_point(manifolds) if amsgrad else None,
    )
    def rule(
        g: Array, s: RiemannianAdamState, h: Any, p: Array, *, manifold: Manifold
    ) -> tuple[Array, RiemannianAdamState]:
        x = manifold.proj(p)
        g = manifold.egrad2rgrad(x, g + h.weight_decay * x)
        m = ema(s.m, g, h.b1)
        v = ema(s.v, manifold.squares(x, g), h.b2)
        vmax = jnp.maximum(s.vmax, v) if amsgrad else v
        u = _over(m / h.bias1, manifold.spread(jnp.sqrt(vmax / h.bias2) + h.eps))
        y = manifold.retract(x, -h.learning_rate * u)
        m = (manifold.parallel_transport if of_the_paper else manifold.transport)(x, y, m)
        if every:
            y = jnp.where(h.stabilizes, manifold.proj(y), y)
            m = jnp.where(h.stabilizes, manifold.proju(y, m), m)
        return y - p, s._replace(m=m, v=v, vmax=vmax if amsgrad else None)

    return with_whole_points(rule, manifolds, "v")


def _over(x: Array, y: Array) -> Array:
    """x / y, and 0 where y is 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


@method
def riemannian_adagrad(
    learning_rate: ScalarOrSchedule,
    *,
    manifolds: Manifolds,
    eps: ScalarOrSchedule = 0.0,
    initial_accumulator_value: ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Riemannian AdaGrad (arXiv:1810.00760): a = a + |g|^2 and x <- R_x(-learning_rate g / (sqrt(a) + eps)).

    Args:
      learning_rate: step size in the metric, >= 0.
      manifolds: as in `riemannian_adam`, as is the use inside `jax.shard_map`; the paper's maps are those of
        `exact=True`.
      eps: added to the root; with 0 a point without gradients does not move, nor one whose squared gradients vanish in
        float32 (below 1e-22).
      initial_accumulator_value: beside the sum of squares, >= 0.

    Returns:
      The optimizer, which needs params; one number of state per point.

    Raises:
      ValueError, TypeError: as `riemannian_adam`.
    """

    @leafwise(
        RiemannianAdagradState,
        hyper={
            "learning_rate": learning_rate,
            "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
        },
        ranges={"initial_accumulator_value": "[0, inf)"},
        static={"manifold": manifold_of_each(manifolds)},
        real_only=True,
        a=per_point(manifolds),
    )
    def rule(
        g: Array, s: RiemannianAdagradState, h: Any, p: Array, *, manifold: Manifold
    ) -> tuple[Array, RiemannianAdagradState]:
        x = manifold.proj(p)
        g = manifold.egrad2rgrad(x, g)
        a = s.a + manifold.squares(x, g)
        u = _over(g, manifold.spread(jnp.sqrt(h.initial_accumulator_value + a) + h.eps))
        return manifold.retract(x, -h.learning_rate * u) - p, s._replace(a=a)

    return with_whole_points(rule, manifolds, "a")


PAPER = register(
    Paper(
        name="riemannian_adam",
        title="Riemannian Adaptive Optimization Methods",
        authors=("Becigneul, Gary", "Ganea, Octavian-Eugen"),
        year=2018,
        arxiv="1810.00760",
        algorithm="Algorithm 1, geoopt's form",
        make=riemannian_adam,
        states=(RiemannianAdamState,),
        needs=("params",),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=16.0,
        example={"manifolds": RowsOn(PoincareBall(c=0.1))},
        golden=("riemannian_adam.poincare", "riemannian_adam.mixed_amsgrad"),
    )
)
AMSGRAD = register(
    dataclasses.replace(
        PAPER,
        name="riemannian_amsgrad",
        algorithm="Algorithm 1",
        make=riemannian_amsgrad,
        relative_learning_rate=4.0,
        example={"manifolds": RowsOn(PoincareBall(c=0.1, exact=True))},
        golden=("riemannian_amsgrad.default",),
    )
)
ADAGRAD = register(
    dataclasses.replace(
        AMSGRAD,
        name="riemannian_adagrad",
        algorithm="RADAGRAD",
        make=riemannian_adagrad,
        states=(RiemannianAdagradState,),
        floats_per_parameter=0,
        relative_learning_rate=100.0,
        golden=("riemannian_adagrad.default",),
    )
)
