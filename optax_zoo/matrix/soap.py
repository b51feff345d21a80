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

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import PartitionSpec

from optax_zoo._core import mesh
from optax_zoo._core.blocks import Block
from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import (
    ScalarOrSchedule,
    abs_sq,
    check_range,
    debias,
    ema,
    is_zero,
    resolve,
    structural,
    whole_number,
)
from optax_zoo._core.layouts import Layout, Matrices, layout
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.norms import divisible, root
from optax_zoo._core.notes import note
from optax_zoo._core.occasion import replaced
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerLeaf, PerParameter, Statistic, real_at_least_float32, squares, zeros
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import FALLBACK, DimensionNumbers, choose_views, is_fallback, is_view, path_name
from optax_zoo.matrix._eigenbases import eigenbasis, refreshed

Factors: TypeAlias = Mapping[int, Array]
"""Of one part of a leaf, a square matrix for each axis that has one."""

Kept: TypeAlias = tuple[Array, ...]
"""The factors of all parts of a leaf, one after the other."""

_LARGEST = structural(10_000)

WHOLE = "whole"
"""A leaf each of whose axes has a factor."""

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
    reader = _Reader(speaker(), _structural("max_precond_dim", max_precond_dim), merge_dims, precondition_1d)

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
        grams, bases = (_by_part(kept, axes) for kept in (s.factors, s.bases))

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
        kept = {"factors": _kept_like(s.factors, grams), "bases": _kept_like(s.bases, bases)}
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


class _Parts(NamedTuple):
    """A leaf as arrays whose axes have factors, and the way back."""

    arrays: Sequence[Array]
    whole: Callable[[Sequence[Array]], Array]


class _Reader(NamedTuple):
    """How leaves are read."""

    name: str
    largest: int
    merges: bool
    rotates_vectors: bool

    def views(self, dimension_numbers: DimensionNumbers) -> Callable[[PyTree], PyTree]:
        """Of each leaf a layout, "fallback" for no rotation, or "whole": as it is."""

        def of(tree: PyTree) -> PyTree:
            flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
            chosen = choose_views(self.name, dimension_numbers, tree)
            return jax.tree.unflatten(
                treedef, [self._view(*pair, view) for pair, view in zip(flat, chosen, strict=True)]
            )

        return of

    def _view(self, path: Any, leaf: Any, view: Any) -> Layout | str:
        known = is_view(view) and len(leaf.shape) >= 2
        where = f"{self.name}: the leaf at {jax.tree_util.keystr(path) or 'the root'}"
        read = layout(view, leaf.shape, where) if known else FALLBACK if is_fallback(view) else WHOLE
        sizes = sorted({n for x in self._shapes(leaf.shape, read) for _, n in self.rotated(x, read, len(leaf.shape))})
        note(self.name, path_name(path), leaf.shape, f"rotated, axes of {sizes}" if sizes else "not rotated")
        return read

    def _shapes(self, shape: Sequence[int], view: Layout | str) -> list[tuple[int, ...]]:
        """Of the parts of a leaf, a number of equal matrices in front."""
        if isinstance(view, Layout):
            return [fans if view.batch or view.heads > 1 else fans[1:] for fans in view.fans(shape)]
        return [merged(shape, self.largest) if self.merges else tuple(shape)]

    def rotated(self, shape: Sequence[int], view: Layout | str, ndim: int) -> list[tuple[int, int]]:
        """(axis, size) of the axes of a part that have factors, in a leaf of so many axes; those of a matrix behind the
        number of matrices."""
        inner = shape[-2:] if isinstance(view, Layout) else shape
        if is_fallback(view) or (ndim < 2 and not self.rotates_vectors):
            return []
        return [(axis, n) for axis, n in enumerate(inner) if 1 < n <= self.largest]

    def _factor_shapes(self, shapes: Sequence[Sequence[int]], view: Layout | str, ndim: int) -> list[tuple[int, ...]]:
        return [
            (*(shape[:-2] if isinstance(view, Layout) else ()), n, n)
            for shape in shapes
            for _, n in self.rotated(shape, view, ndim)
        ]

    def no_factors(self, leaf: Array, *, view: Layout | str) -> Kept:
        """Zeros for each axis of each part that has a factor; of several matrices, for each."""
        dtype = real_at_least_float32(leaf.dtype)
        shapes = self._factor_shapes(self._shapes(leaf.shape, view), view, leaf.ndim)
        return tuple(jnp.zeros(shape, dtype) for shape in shapes)

    def check(self, kept: PyTree, parts: _Parts, view: Layout | str, g: Array) -> None:
        """Raises a ValueError if the state keeps factors of other shapes, but for rows that shard_map has cut."""
        wanted = self._factor_shapes([x.shape for x in parts.arrays], view, g.ndim)
        found = [x.shape for x in jax.tree.leaves(kept)]
        if [(len(shape), shape[-1]) for shape in found] != [(len(shape), shape[-1]) for shape in wanted]:
            raise ValueError(
                f"{self.name}: a leaf of shape {g.shape} needs factors of the shapes {tuple(wanted)}, the state has"
                f" {tuple(found)}; make the state of whole leaves, with the same arguments"
            )

    def parts(self, x: Array, view: Layout | str, spec: PartitionSpec | None) -> _Parts:
        """The leaf, or an array like it, in parts of whole axes."""
        if isinstance(view, Layout):
            matrices = Matrices.of(x, view, spec)
            return _Parts(matrices.blocks, matrices.restore)
        block = Block.of(x, spec, f"{self.name}: a leaf of shape {x.shape}", "its axes must be whole")
        (shape,) = self._shapes(block.whole, view)
        whole = block.assemble(x).reshape(shape)
        return _Parts([whole], lambda parts: block.of_whole(parts[0].reshape(block.whole)))


def merged(shape: Sequence[int], largest: int) -> tuple[int, ...]:
    """Neighbouring axes taken together as long as their product is at most `largest`, those of size 1 dropped."""
    out: list[int] = []
    run = 1
    for n in shape:
        if run * n <= largest:
            run *= n
        elif run > 1:
            out, run = [*out, run], n
        else:
            out.append(n)
    return (*out, run) if run > 1 or not out else tuple(out)


def _by_part(kept: PyTree, axes: Sequence[Sequence[int]]) -> list[dict[int, Array]]:
    """The factors of each part by its axes, whole where shard_map has cut them by rows; nnx changes their container."""

    def whole(x: Array) -> Array:
        cut = x.ndim == 2 and len(x) < x.shape[-1]
        return mesh.gathered(x, mesh.varying_axes(x), 0) if cut else x

    factors = map(whole, jax.tree.leaves(kept))
    return [{axis: next(factors) for axis in part} for part in axes]


def _kept_like(old: PyTree, new: Sequence[Factors]) -> PyTree:
    """The parts' factors in the form of the state, cut by rows where they were."""

    def cut(x: Array, before: Array) -> Array:
        if x.shape == before.shape:
            return x
        row = lax.axis_index(mesh.varying_axes(before)) * len(before)
        return lax.dynamic_slice_in_dim(x, row, len(before))

    kept, container = jax.tree.flatten(old)
    return container.unflatten(map(cut, (x for factors in new for x in factors.values()), kept))


def _structural(name: str, value: Any) -> int:
    """An integer that is known when the state is made."""
    if isinstance(value, Array):
        raise TypeError(
            f"{speaker()}: {name} must be known when the state is made; name it in the static_args of"
            " optax.inject_hyperparams"
        )
    check_range(name, int(value) if isinstance(value, np.integer) else value, "[0, inf)")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{speaker()}: {name} must be an integer, got {value!r}") from None


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
        relative_learning_rate=3.0,
        probe={"precondition_frequency": 2},
        golden=("soap.default",),
    )
)
