"""Norms for the leaves of a network, and the gradients' directions that are steepest under them.

Of each role: the norm of an update D, the direction T(G) of norm 1 with the largest <G, T>, and the dual norm of a
gradient G, which is <G, T(G)>. Kernels are in Flax's layout, (in, out); k is the number of a convolution's positions.

| role   | norm of an update               | T(G)                             | dual norm of a gradient         |
|--------|---------------------------------|----------------------------------|---------------------------------|
| linear | sqrt(in/out) sigma_max          | sqrt(out/in) U V^T               | sqrt(out/in) sum of sigma       |
| conv   | k max over positions of linear  | linear at each position, over k  | sum of the positions', over k   |
| embed  | max over rows of their RMS      | rows of RMS 1                    | sqrt(d) sum of the rows' norms  |
| vector | RMS                             | RMS 1                            | sqrt(d) norm                    |
| sign   | largest entry                   | sign                             | sum of sizes                    |

The rows are those of Modular Duality (arXiv:2410.21265) and Old Optimizer, New Norm (arXiv:2409.20325), but for
"vector", which is the usual choice. UNVERIFIED: "conv" is as in later code, jxbz/modula and LIONS-EPFL/scion.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import keystr

from optax_zoo._core.blocks import Block
from optax_zoo._core.hyper import Scalar, abs_sq
from optax_zoo._core.layouts import layout
from optax_zoo._core.naming import suggestion
from optax_zoo._core.norms import divisible, norm, root
from optax_zoo._core.rules import ATTENTION, CONVOLUTION, EMBEDDINGS, HEADS, VECTORS, fits, mentions
from optax_zoo._core.slots import at_least_float32
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import Choice, MatrixView, choose, is_view

Role: TypeAlias = Literal["linear", "embed", "conv", "vector", "sign"]
"""Or a `MatrixView`: linear, read as matrices in this way."""

Roles: TypeAlias = Choice
"""A role for all leaves, a (prefix) tree of them, `f(path, shape)` with a path such as "block/kernel", `f(tree)` ->
tree, or "flax", `dual_roles()`."""

FLAX = "flax"
"""`Roles` in one word."""

Shape: TypeAlias = tuple[int, ...]


def gain(fan_in: int, fan_out: int) -> float:
    """The factor of U V^T that makes its RMS-to-RMS operator norm 1."""
    return math.sqrt(max(fan_out, 1) / max(fan_in, 1))


@dataclasses.dataclass(frozen=True)
class Spectral:
    """RMS-to-RMS operator norm of a leaf's matrices, the largest of them, `window` times."""

    view: Any  # how the leaf is read as matrices
    window: float = 1.0

    def _by_matrix(self, x: Array) -> list[tuple[float, Array]]:
        blocks = layout(self.view, x.shape, "the leaf").blocks(x)
        return [(gain(*b.shape[-2:]), jnp.linalg.svd(b, compute_uv=False)) for b in blocks]

    def norm(self, x: Array) -> Array:
        """Of an update."""
        sizes = [jnp.max(s, initial=0.0) / scale for scale, s in self._by_matrix(x)]
        return self.window * functools.reduce(jnp.maximum, sizes)

    def dual_norm(self, x: Array) -> Array:
        """Of a gradient."""
        return functools.reduce(jnp.add, [scale * jnp.sum(s) for scale, s in self._by_matrix(x)]) / self.window


@dataclasses.dataclass(frozen=True)
class RootMeanSquare:
    """RMS over some axes, the largest along the others."""

    over: tuple[int, ...]

    def direction(self, g: Array, block: Block, eps: Scalar) -> Array:
        """`g` over its norm, whatever its scale; 0 where that is 0."""
        top = divisible(block.largest(jnp.abs(g), self.over))
        unit = g / top
        divisor = root(block.sum(abs_sq(unit), self.over)) + eps / top
        size = math.prod(block.whole[axis] for axis in self.over)
        return unit / jnp.where(divisor == 0, jnp.ones_like(divisor), divisor) * math.sqrt(size)

    def _lengths(self, x: Array) -> tuple[float, Array]:
        return math.sqrt(math.prod(x.shape[axis] for axis in self.over)), norm(x, self.over)

    def norm(self, x: Array) -> Array:
        """Of an update."""
        root, lengths = self._lengths(x)
        return jnp.max(lengths, initial=0.0) / max(root, 1.0)

    def dual_norm(self, x: Array) -> Array:
        """Of a gradient."""
        root, lengths = self._lengths(x)
        return root * jnp.sum(lengths)


@dataclasses.dataclass(frozen=True)
class LargestEntry:
    """Largest entry, `weight` times."""

    weight: float = 1.0

    def direction(self, g: Array, block: Block, eps: Scalar) -> Array:
        """The sign of every entry; of a complex one its phase."""
        return jnp.sign(g) / self.weight

    def norm(self, x: Array) -> Array:
        """Of an update."""
        return self.weight * jnp.max(jnp.abs(x), initial=0.0)

    def dual_norm(self, x: Array) -> Array:
        """Of a gradient."""
        return jnp.sum(jnp.abs(x)) / self.weight


Atom: TypeAlias = Spectral | RootMeanSquare | LargestEntry


class Row(NamedTuple):
    """One role of the table."""

    atom: Callable[[Shape], Atom]  # from a fitting shape
    wanted: str = "any shape"
    fewest: int = 0  # axes
    most: float = math.inf
    local: bool = False  # whether a block of the leaf is all that its direction depends on


def _conv(shape: Shape) -> Spectral:
    *window, fan_in, fan_out = range(len(shape))
    return Spectral(MatrixView(fan_in, fan_out, tuple(window)), math.prod(shape[:-2]))


TABLE: Mapping[str, Row] = {
    "linear": Row(lambda shape: Spectral(MatrixView()), "shape (in, out)", 2, 2),
    "embed": Row(lambda shape: RootMeanSquare((1,)), "shape (vocabulary, d)", 2, 2),
    "conv": Row(_conv, "shape (height, width, in, out)", 3),
    "vector": Row(lambda shape: RootMeanSquare(tuple(range(len(shape))))),
    "sign": Row(lambda shape: LargestEntry(), local=True),
}


def atom_of(role: Any, shape: Shape, where: str, table: Mapping[str, Row] = TABLE) -> Atom:
    """The norm that a role means for a leaf of this shape.

    Args:
      role: a word of the table or a `MatrixView`.
      shape: of the whole leaf.
      where: the beginning of an error, such as "dualize: the leaf at ['w']".
      table: the roles there are.

    Raises:
      ValueError: no role, an unknown one, or one that does not fit the shape.
    """
    if is_view(role):
        layout(role, shape, where)
        return Spectral(role)
    named = f"{where} of shape {shape}"
    if role is None:
        raise ValueError(f"{named} has no role; give it one of {', '.join(map(repr, table))} or a MatrixView")
    if not isinstance(role, str) or role not in table:
        hint = suggestion(role, table) if isinstance(role, str) else ""
        raise ValueError(f"{named} must have one of the roles {', '.join(map(repr, table))}, got {role!r}{hint}")
    row = table[role]
    if not row.fewest <= len(shape) <= row.most:
        raise ValueError(f"{named} has the role {role!r}, which is for leaves of {row.wanted}")
    return row.atom(shape)


def roles_of(speaker: str, roles: Roles, tree: PyTree, preset: Choice | None = None) -> list[tuple[str, Any, Any]]:
    """(beginning of an error, leaf, role) of every leaf; `preset` is what "flax" means."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    if not flat:
        return []
    if isinstance(roles, str) and roles == FLAX:
        roles = preset or dual_roles()
    chosen = choose(speaker, "roles", roles, tree, is_view, seen=jnp.shape)
    where = [f"{speaker}: the leaf at {keystr(path) or 'the root'}" for path, _ in flat]
    return [(place, x, role) for place, (_, x), role in zip(where, flat, chosen, strict=True)]


def dual_roles(
    rules: Mapping[str, Any] | None = None, *, embeddings: str | Sequence[str] = EMBEDDINGS
) -> Callable[[str, Shape], Any]:
    """`roles` by names and numbers of axes, for layouts like Flax's.

    Args:
      rules: roles by pattern as in `matrix_rules`; the first that fits wins, before everything else:
        `{"*head/kernel": "sign"}`.
      embeddings: a shell pattern, or several, of embeddings, compared without case with each part of a path.

    Returns:
      A function of (path, shape): matrices are "linear", embeddings among them "embed", attention's projections
      matrices of all heads, convolutions and kernels of four axes "conv", biases, scales and leaves of at most one axis
      "vector". Other leaves have no role, which is an error that names them.
    """
    ruled = (*(rules or {}).items(), *((name, "vector") for name in VECTORS), *ATTENTION)

    def role(path: str, shape: Shape) -> Any:
        ndim = len(shape)
        for pattern, found, *axes in ruled:
            if fits(path, pattern) and ndim in (axes or (ndim,)):
                return found
        if ndim == 2:
            return "embed" if mentions(path, embeddings) and not mentions(path, HEADS) else "linear"
        return "vector" if ndim < 2 else "conv" if ndim == 4 or fits(path, CONVOLUTION) else None

    return role


def atom_norm(update: Array, role: Role | MatrixView) -> Array:
    """The norm of an update by the role of its leaf: 1 for the output of `dualize` with `method="svd"`.

    Args:
      update: of one leaf.
      role: "linear", "embed", "conv", "vector", "sign" or a `MatrixView`.

    Returns:
      A real scalar, float32 or better.

    Raises:
      ValueError: an unknown role, or one that does not fit the shape.
    """
    update = _wide(update)
    return atom_of(role, update.shape, "atom_norm: update").norm(update)


def atom_dual_norm(gradient: Array, role: Role | MatrixView) -> Array:
    """The largest inner product of a gradient with an update of norm 1.

    Args:
      gradient: of one leaf.
      role: as in `atom_norm`, as are what is returned and the errors.
    """
    gradient = _wide(gradient)
    return atom_of(role, gradient.shape, "atom_dual_norm: gradient").dual_norm(gradient)


def _wide(x: Array) -> Array:
    x = jnp.asarray(x)
    return x.astype(at_least_float32(x.dtype))
