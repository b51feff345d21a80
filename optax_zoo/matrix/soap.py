"""SOAP: Improving and Stabilizing Shampoo using Adam.

Nikhil Vyas, Depen Morwani, Rosie Zhao, Mujin Kwun, Itai Shapira, David Brandfonbrener, Lucas Janson, Sham Kakade, 2024,
arXiv:2409.11321; code in nikhilvyas/SOAP.
Adam in the slowly turning eigenbasis of Shampoo's preconditioner: each axis of a gradient has a Kronecker factor, the
average of its Gram matrix, and moments are kept in the basis of the factors' eigenvectors.

Differs from the authors' code: leaves are in JAX's layout, so `merge_dims` merges other neighbours than in PyTorch's;
`dimension_numbers` may say that a leaf is several matrices, of which each gets factors of its own.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from optax_zoo._core import mesh
from optax_zoo._core.blocks import Block
from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, check_range, debias, ema, is_zero, resolve
from optax_zoo._core.layouts import Layout, Matrices, layout
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.notes import note
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerLeaf, PerParameter, Statistic, real_at_least_float32, squares, zeros
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import FALLBACK, DimensionNumbers, choose, is_fallback, is_view, path_name

Factors: TypeAlias = Mapping[str, Array]
"""A square matrix, or one for each of several matrices, by the block of a leaf and its axis."""

TEN_THOUSAND = np.int64(10000)
"""A default that `optax.inject_hyperparams` leaves alone; it would make an array of Python's own number."""

WHOLE = "whole"
"""A leaf each of whose axes has a factor."""

_TINY = 1e-30  # beside root mean squares and eigenvalues, as in the authors' code


class SoapState(NamedTuple):
    """State of `scale_by_soap`."""

    count: Array  # calls so far
    m: PerParameter  # first moment, rotated
    v: PerParameter  # second moment, rotated
    gram: PerLeaf  # factors of axes
    basis: PerLeaf  # their eigenvectors


@method
def scale_by_soap(
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    *,
    shampoo_beta: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    precondition_frequency: int | Array = 10,
    max_precond_dim: int | np.integer = TEN_THOUSAND,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    correct_bias: bool = True,
    dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    """The SOAP direction (arXiv:2409.11321); arguments as in `soap`."""
    check_range("precondition_frequency", precondition_frequency, "[1, inf)")
    reader = _Reader(speaker(), _structural("max_precond_dim", max_precond_dim), merge_dims, precondition_1d)

    def step(h: Any, s: SoapState) -> dict[str, Any]:
        t = jnp.maximum(h.count, 1).astype(h.t.dtype)
        turn = (h.count > 0) & (h.count % jnp.asarray(precondition_frequency, h.count.dtype) == 0)
        return {"gain": jnp.sqrt(debias(h.b2, t)) / debias(h.b1, t) if correct_bias else 1.0, "turn": turn}

    @leafwise(
        SoapState,
        hyper={"b1": b1, "b2": b2, "shampoo_beta": b2 if shampoo_beta is None else shampoo_beta, "eps": eps},
        ranges={"shampoo_beta": "[0, 1)"},
        step=step,
        static={"view": reader.views(dimension_numbers)},
        real_only=True,
        m=zeros(),
        v=squares(),
        gram=Statistic(reader.no_factors),
        basis=Statistic(reader.no_factors),
    )
    def rule(
        g: Array, s: SoapState, h: Any, *, view: Layout | str, spec: PartitionSpec | None
    ) -> tuple[Array, SoapState]:
        gradients, moments, moments_sq = (reader.parts(x, view, spec) for x in (g, s.m, s.v))
        grams, bases = (_of_parts(factors, gradients) for factors in (s.gram, s.basis))

        def first(g: Array, m: Array, v: Array, gram: Factors, basis: Factors) -> tuple[Any, ...]:
            gram = {axis: (1 - h.shampoo_beta) * _gram(g, axis) for axis in gram}
            return jnp.zeros_like(g), m, v, gram, {axis: _eigenvectors(matrix) for axis, matrix in gram.items()}

        def later(g: Array, m: Array, v: Array, gram: Factors, basis: Factors) -> tuple[Any, ...]:
            rotated = _rotated(g, basis)
            m = ema(m, rotated, h.b1)
            v = ema(v, abs_sq(rotated), h.b2)
            u = _rotated_back(m / (jnp.sqrt(v) + h.eps), basis)
            if normalize_grads:
                u = u / (_TINY + jnp.sqrt(jnp.mean(abs_sq(u))))
            gram = {axis: ema(matrix, _gram(g, axis), h.shampoo_beta) for axis, matrix in gram.items()}
            m, v, basis = lax.cond(h.turn, _turned, lambda m, v, basis, _: (m, v, basis), m, v, basis, gram)
            return h.gain * u, m, v, gram, basis

        def one(*leaf: Any) -> tuple[Any, ...]:
            return lax.cond(h.count == 0, first, later, *leaf)

        stacked = isinstance(view, Layout) and gradients.arrays[0].ndim > 2
        columns = zip(gradients.arrays, moments.arrays, moments_sq.arrays, grams, bases, strict=True)
        out = [(jax.vmap(one) if stacked else one)(*part) for part in columns]
        us, ms, vs, grams, bases = zip(*out, strict=True)
        gram, basis = (_like(old, new) for old, new in ((s.gram, grams), (s.basis, bases)))
        return gradients.whole(us), s._replace(m=moments.whole(ms), v=moments_sq.whole(vs), gram=gram, basis=basis)

    return rule


def _gram(g: Array, axis: str) -> Array:
    """Inner products of the slices along an axis."""
    rows = jnp.moveaxis(g, _number(axis), 0).reshape(g.shape[_number(axis)], -1)
    return rows @ rows.T


def _rotated(x: Array, basis: Factors) -> Array:
    """Coordinates of x in the basis."""
    for axis, q in basis.items():
        x = jnp.moveaxis(jnp.tensordot(x, q, axes=((_number(axis),), (0,))), -1, _number(axis))
    return x


def _rotated_back(x: Array, basis: Factors) -> Array:
    """What has the coordinates x."""
    return _rotated(x, {axis: q.T for axis, q in basis.items()})


def _eigenvectors(gram: Array) -> Array:
    """In descending order of their eigenvalues."""
    return jnp.flip(jnp.linalg.eigh(gram + _TINY * jnp.eye(len(gram), dtype=gram.dtype))[1], axis=1)


def _turned(m: Array, v: Array, basis: Factors, gram: Factors) -> tuple[Array, Array, Factors]:
    """Moments in the basis after one step of orthogonal iteration, its vectors in descending order of eigenvalues."""
    still, new = _rotated_back(m, basis), {}
    for axis, q in basis.items():
        product = gram[axis] @ q
        order = jnp.argsort(-jnp.sum(q * product, axis=0))
        v = jnp.take(v, order, axis=_number(axis))
        new[axis] = jnp.linalg.qr(product[:, order])[0]
    return _rotated(still, new), v, new


def _number(axis: str) -> int:
    return int(axis.rpartition("_")[2])


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
            chosen = choose(self.name, "dimension_numbers", dimension_numbers, tree, is_view)
            return jax.tree.unflatten(
                treedef, [self._view(*pair, view) for pair, view in zip(flat, chosen, strict=True)]
            )

        return of

    def _view(self, path: Any, leaf: Any, view: Any) -> Layout | str:
        known = is_view(view) and len(leaf.shape) >= 2
        where = f"{self.name}: the leaf at {jax.tree_util.keystr(path) or 'the root'}"
        read = layout(view, leaf.shape, where) if known else FALLBACK if is_fallback(view) else WHOLE
        sizes = sorted({n for shape in self._shapes(leaf.shape, read) for _, n in self._rotated_axes(shape, read)})
        note(self.name, path_name(path), leaf.shape, f"rotated, axes of {sizes}" if sizes else "not rotated")
        return read

    def _shapes(self, shape: Sequence[int], view: Layout | str) -> list[tuple[int, ...]]:
        """Of the parts of a leaf, a number of equal matrices in front."""
        if isinstance(view, Layout):
            return [fans if view.batch or view.heads > 1 else fans[1:] for fans in view.fans(shape)]
        return [merged(shape, self.largest) if self.merges else tuple(shape)]

    def _rotated_axes(self, shape: Sequence[int], view: Layout | str) -> list[tuple[int, int]]:
        """(axis, size) of the axes that have factors; those of a matrix behind the number of matrices."""
        inner = shape[-2:] if isinstance(view, Layout) else shape
        if is_fallback(view) or (len(inner) < 2 and not self.rotates_vectors):
            return []
        return [(axis, n) for axis, n in enumerate(inner) if 0 < n <= self.largest]

    def no_factors(self, leaf: Array, *, view: Layout | str) -> Factors:
        """A square matrix of zeros for each axis of each part that has factors."""
        dtype = real_at_least_float32(leaf.dtype)
        return {
            f"block_{i}_axis_{axis}": jnp.zeros((*(shape[:-2] if isinstance(view, Layout) else ()), n, n), dtype)
            for i, shape in enumerate(self._shapes(leaf.shape, view))
            for axis, n in self._rotated_axes(shape, view)
        }

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


def _of_parts(factors: Factors, parts: _Parts) -> Sequence[Factors]:
    """The factors of each part by the axis, whole where shard_map has cut them by rows."""
    out: list[dict[str, Array]] = [{} for _ in parts.arrays]
    for key, x in factors.items():
        block, axis = key.removeprefix("block_").split("_", 1)
        size = x.shape[-1]
        cut = x.ndim == 2 and len(x) < size
        out[int(block)][axis] = mesh.gathered(x, mesh.varying_axes(x), 0) if cut else x
    return out


def _like(old: Factors, new: Sequence[Factors]) -> Factors:
    """The parts' factors in the form of the state, cut by rows where they were."""
    found = {f"block_{i}_{axis}": x for i, factors in enumerate(new) for axis, x in factors.items()}

    def cut(x: Array, before: Array) -> Array:
        if x.shape == before.shape:
            return x
        row = lax.axis_index(mesh.varying_axes(before)) * len(before)
        return lax.dynamic_slice_in_dim(x, row, len(before))

    return {key: cut(found[key], before) for key, before in old.items()}


def _structural(name: str, value: Any) -> int:
    """An integer that is known when the state is made."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{speaker()}: {name} must be known when the state is made; name it in the static_args of"
            " optax.inject_hyperparams"
        )
    check_range(name, value, "[0, inf)")
    return operator.index(value)


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
    precondition_frequency: int | Array = 10,
    max_precond_dim: int | np.integer = TEN_THOUSAND,
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
        floats_per_parameter=2,
        elementwise=False,
        relative_learning_rate=3.0,
        probe={"precondition_frequency": 2},
        golden=("soap.default",),
    )
)
