"""SOAP: Improving and Stabilizing Shampoo using Adam.

Nikhil Vyas, Depen Morwani, Rosie Zhao, Mujin Kwun, Itai Shapira, David Brandfonbrener, Lucas Janson, Sham Kakade, 2024,
arXiv:2409.11321; code in nikhilvyas/SOAP.
Adam in the slowly turning eigenbasis of Shampoo's preconditioner: each axis of a gradient has a Kronecker factor, the
average of its Gram matrix, and moments are kept in the basis of the factors' eigenvectors.

Differs from the authors' code: where a factor does not have full rank, the basis of its null space, which there depends
on rounding errors, is a function of the rest at first and later stays where it was; leaves are in JAX's layout, so
`merge_dims` merges other neighbours than in PyTorch's; `dimension_numbers` may say that a leaf is several matrices,
each of which gets factors of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import PartitionSpec

from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import (
    ScalarOrSchedule,
    abs_sq,
    check_range,
    debias,
    ema,
    is_zero,
    known_integer,
    resolve,
    structural,
    whole_number,
)
from optax_zoo._core.layouts import Layout
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.norms import divisible, root
from optax_zoo._core.occasion import replaced
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerLeaf, PerParameter, Statistic, squares, zeros
from optax_zoo._core.views import DimensionNumbers
from optax_zoo.matrix._eigenbases import eigenbasis, refreshed
from optax_zoo.matrix._kronecker import Factors, Reader, by_part, kept_like

_LARGEST = structural(10_000)

_TINY = 1e-30  # beside root mean squares


class SoapState(NamedTuple):
    """State of `scale_by_soap`."""

    count: Array  # calls so far
    m: PerParameter  # first moment, rotated
    v: PerParameter  # second moment, rotated
    factors: PerLeaf  # of rotated axes
    bases: PerLeaf  # their eigenvectors


@method
def scale_by_soap(
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    *,
    shampoo_beta: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int | np.integer = _LARGEST,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    correct_bias: bool = True,
    dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    """The SOAP direction (arXiv:2409.11321); arguments as in `soap`.

    Returns:
      The transformation; its state is that of `soap`.

    Raises:
      ValueError, TypeError: as `soap`.
    """
    whole_number("precondition_frequency", precondition_frequency)
    largest = known_integer("max_precond_dim", max_precond_dim, "[0, inf)")
    reader = Reader(speaker(), largest, merge_dims, precondition_1d)

    def step(h: Any, s: SoapState) -> dict[str, Any]:
        t = jnp.maximum(h.count, 1).astype(h.t.dtype)
        begun = h.count > 0
        turn = begun & (h.count % jnp.asarray(h.precondition_frequency).astype(h.count.dtype) == 0)
        gain = jnp.sqrt(debias(h.b2, t)) / debias(h.b1, t) if correct_bias else 1.0
        return {"begun": begun, "turn": turn, "gain": gain}

    @leafwise(
        SoapState,
        hyper={
            "b1": b1,
            "b2": b2,
            "shampoo_beta": b2 if shampoo_beta is None else shampoo_beta,
            "eps": eps,
            "precondition_frequency": precondition_frequency,
        },
        ranges={"shampoo_beta": "[0, 1)", "precondition_frequency": "[1, inf)"},
        step=step,
        static={"view": reader.views(dimension_numbers)},
        real_only=True,
        m=zeros(),
        v=squares(),
        factors=Statistic(reader.no_factors),
        bases=Statistic(reader.no_factors),
    )
    def rule(
        g: Array, s: SoapState, h: Any, *, view: Layout | str, spec: PartitionSpec | None
    ) -> tuple[Array, SoapState]:
        gradients, moments, moments_sq = (reader.parts(x, view, spec) for x in (g, s.m, s.v))
        axes = [[axis for axis, _ in reader.rotated(x.shape, view, g.ndim)] for x in gradients.arrays]
        reader.check(s.factors, gradients, view, g)
        grams, bases = (by_part(kept, axes) for kept in (s.factors, s.bases))

        def one(g: Array, m: Array, v: Array, gram: Factors, basis: Factors) -> tuple[Any, ...]:
            rotated = _rotated(g, basis)
            m = jnp.where(h.begun, ema(m, rotated, h.b1), m)
            v = jnp.where(h.begun, ema(v, abs_sq(rotated), h.b2), v)
            u = _rotated_back(m / (jnp.sqrt(v) + h.eps), basis)
            if normalize_grads:
                u = u / _root_mean_square(u)
            u = jnp.where(h.begun, h.gain * u, jnp.zeros_like(u))

            gram = {axis: ema(factor, _gram(g, axis), h.shampoo_beta) for axis, factor in gram.items()}
            if gram:
                old = replaced(basis, ~h.begun, lambda: {axis: eigenbasis(factor) for axis, factor in gram.items()})
                columns = {axis: (q, lax.iota(jnp.int32, len(q))) for axis, q in old.items()}
                turned = replaced(columns, h.turn, lambda: {axis: refreshed(gram[axis], q) for axis, q in old.items()})
                basis = {axis: q for axis, (q, _) in turned.items()}

                def follow(m: Array, v: Array) -> tuple[Array, Array]:
                    for axis, (_, order) in turned.items():
                        v = jnp.take(v, order, axis=axis)
                    return _rotated(_rotated_back(m, old), basis), v

                m, v = lax.cond(h.turn, follow, lambda m, v: (m, v), m, v)
            return u, m, v, gram, basis

        stacked = isinstance(view, Layout) and gradients.arrays[0].ndim > 2
        columns = zip(gradients.arrays, moments.arrays, moments_sq.arrays, grams, bases, strict=True)
        out = [(jax.vmap(one) if stacked else one)(*part) for part in columns]
        us, ms, vs, grams, bases = zip(*out, strict=True)
        kept = {"factors": kept_like(s.factors, grams), "bases": kept_like(s.bases, bases)}
        return gradients.whole(us), s._replace(m=moments.whole(ms), v=moments_sq.whole(vs), **kept)

    return rule


def _gram(g: Array, axis: int) -> Array:
    """Inner products of the slices along an axis."""
    rows = jnp.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return jnp.matmul(rows, rows.T, precision=lax.Precision.HIGHEST)


def _rotated(x: Array, basis: Factors) -> Array:
    """Coordinates of x in the basis."""
    for axis, q in basis.items():
        turned = jnp.tensordot(x, q, ((axis,), (0,)), precision=lax.Precision.HIGHEST)
        x = jnp.moveaxis(turned, -1, axis)
    return x


def _rotated_back(x: Array, basis: Factors) -> Array:
    """What has the coordinates x."""
    return _rotated(x, {axis: q.T for axis, q in basis.items()})


def _root_mean_square(x: Array) -> Array:
    """Whatever the scale of x; 1 for zeros."""
    top = divisible(jnp.max(jnp.abs(x), initial=0.0))
    size = root(jnp.mean(abs_sq(x / top)))
    return jnp.where(size == 0, jnp.ones_like(size), top * size + _TINY)


@method
def soap(
    learning_rate: ScalarOrSchedule = 3e-3,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    *,
    shampoo_beta: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask | None = None,
    precondition_frequency: int = 10,
    max_precond_dim: int | np.integer = _LARGEST,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    correct_bias: bool = True,
    dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner (arXiv:2409.11321).

    The first call only makes the first basis and moves nothing; schedules are read at the count of calls.

    Inside `jax.shard_map` a sharded leaf is made whole first: pass the parameters' PartitionSpecs,
    `update(grads, state, params, param_specs=specs)`. Under `jax.jit` nothing is needed.

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      shampoo_beta: decay of the Kronecker factors, in [0, 1); None: b2.
      eps: added to the uncorrected root of the second moment.
      weight_decay: decay of the new weights, multiplied by the learning rate: p <- (p - lr u) (1 - lr wd).
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.
      precondition_frequency: calls from one basis to the next, >= 1.
      max_precond_dim: longer axes are not rotated; 0 is Adam.
      merge_dims: whether neighbouring axes become one as long as it is no longer than `max_precond_dim`.
      precondition_1d: whether vectors are rotated too.
      normalize_grads: whether a leaf's direction is divided by its root mean square.
      correct_bias: whether the step is corrected for moments that start at 0.
      dimension_numbers: None: every axis of a leaf has a factor; as in `muon` for leaves that are matrices, or
        several; "fallback" for a leaf that is not rotated.

    Returns:
      The optimizer; two numbers of state per parameter and 2 n^2 for each rotated axis of size n.

    Raises:
      ValueError: a number out of its range; dimension numbers that do not fit.
      TypeError: a complex leaf; a traced `max_precond_dim`.
    """
    direction = scale_by_soap(
        b1,
        b2,
        shampoo_beta=shampoo_beta,
        eps=eps,
        precondition_frequency=precondition_frequency,
        max_precond_dim=max_precond_dim,
        merge_dims=merge_dims,
        precondition_1d=precondition_1d,
        normalize_grads=normalize_grads,
        correct_bias=correct_bias,
        dimension_numbers=dimension_numbers,
    )
    return finish(direction, learning_rate, _after_the_first_call(weight_decay), mask, decay="after")


def _after_the_first_call(weight_decay: ScalarOrSchedule) -> ScalarOrSchedule:
    check_range("weight_decay", weight_decay, "[0, inf)")
    if is_zero(weight_decay):
        return weight_decay
    return lambda count: jnp.where(count > 0, resolve({"weight_decay": weight_decay}, count)["weight_decay"], 0.0)


PAPER = register(
    Paper(
        name="soap",
        title="SOAP: Improving and Stabilizing Shampoo using Adam",
        authors=(
            "Vyas, Nikhil",
            "Morwani, Depen",
            "Zhao, Rosie",
            "Kwun, Mujin",
            "Shapira, Itai",
            "Brandfonbrener, David",
            "Janson, Lucas",
            "Kakade, Sham",
        ),
        year=2024,
        arxiv="2409.11321",
        make=soap,
        transform=scale_by_soap,
        states=(SoapState,),
        needs=("params",),
        floats_per_parameter=6,
        elementwise=False,
        relative_learning_rate=2.0,
        probe={"precondition_frequency": 2},
        golden=("soap.default",),
    )
)
