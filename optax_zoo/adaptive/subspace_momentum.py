"""Lean and Mean Adaptive Optimization via Subset-Norm and Subspace-Momentum with Convergence Guarantees: momentum.

Thien Hang Nguyen, Huy Le Nguyen, 2024 (ICML 2025), arXiv:2411.07120.
Momentum only in a subspace of few dimensions, plain SGD outside of it, so that the buffer takes a fraction of the
weights; with Subset-Norm as second moment the state is about a fifth of Adam's.

Differs from the authors' code: the SVD is taken in the precision of the leaf, at least float32, where the authors
always take float32; "uniform" chooses alike in all leaves of the same length; the random projection "srht" is left
out.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jax.tree_util import keystr

from optax_zoo._core.blocks import Block, refuse_block
from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import RANGES, ScalarOrSchedule, abs_sq, choice, debias, ema, known_integer, number
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker, speaking_as
from optax_zoo._core.occasion import replaced
from optax_zoo._core.paper import register
from optax_zoo._core.slots import PerLeaf, Statistic, at_least_float32, zeros
from optax_zoo._core.trees import PyTree
from optax_zoo.adaptive import subset_norm
from optax_zoo.adaptive.subset_norm import SubsetSize

ProjType: TypeAlias = Literal["svd", "topk", "uniform"]
Reset: TypeAlias = Literal["reference", "clean", "keep"]
SecondMoment: TypeAlias = Literal["none", "adam", "sn"]


class SubspaceMomentumState(NamedTuple):
    """Momentum inside a subspace of each matrix, and whole momentum of other leaves."""

    count: Array  # steps taken
    projector: PerLeaf  # orthonormal rows, or indices
    exp_avg: PerLeaf  # momentum, in coordinates
    v: PerLeaf  # second moment, if any


@method
def scale_by_subspace_momentum(
    rank: int,
    b1: ScalarOrSchedule = 0.9,
    proj_type: ProjType = "svd",
    update_proj_gap: int = 200,
    reset: Reset = "reference",
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Momentum inside a subspace, plain SGD outside (arXiv:2411.07120); arguments as in `subspace_momentum`."""
    return _direction(rank, b1, proj_type, update_proj_gap, reset, seed)


def _direction(
    rank: int,
    b1: ScalarOrSchedule,
    proj_type: ProjType,
    update_proj_gap: int,
    reset: Reset,
    seed: int,
    second_moment: SecondMoment = "none",
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    subset_size: SubsetSize = None,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    choice("proj_type", proj_type, ProjType)
    choice("reset", reset, Reset)
    number("rank", rank, "[1, inf)")
    number("seed", seed, RANGES["seed"])
    name = speaker()
    divides = second_moment != "none"

    def step(h: Any, s: SubspaceMomentumState) -> dict[str, Any]:
        again = (h.count + 1) % h.update_proj_gap == 0
        scalars = {"fresh": again | (h.count == 0), "restarts": again & (h.count > 0)}
        if divides:
            return scalars | subset_norm.second_moment_scalars(h, bias_correction)
        return scalars | {"gain": 1 / debias(h.b1, h.t) if bias_correction else 1.0}

    @leafwise(
        SubspaceMomentumState,
        hyper={"b1": b1, "b2": b2, "eps": eps, "update_proj_gap": update_proj_gap},
        ranges={"b2": "[0, 1]", "update_proj_gap": "[1, inf)"},
        step=step,
        projector=Statistic(lambda leaf: _first_projector(leaf, proj_type, rank)),
        exp_avg=Statistic(lambda leaf: _first_momentum(leaf, proj_type, rank)),
        v=subset_norm.second_moment(subset_size) if divides else None,
    )
    def rule(
        g: Array, s: SubspaceMomentumState, h: Any, *, spec: PartitionSpec | None
    ) -> tuple[Array, SubspaceMomentumState]:
        where, why = f"{name}: a leaf of shape {g.shape}", "its momentum is of the whole"
        if s.projector is None:
            block = Block.beside(s.exp_avg, g, spec, where, why)
            projector, momentum = None, ema(s.exp_avg, block.assemble(g), h.b1)
            u = block.of_whole(momentum)
        else:
            refuse_block(s.exp_avg, where, why)
            block = Block.of(g, spec, where, why)
            space = Space(proj_type, *block.whole)
            still, key = lax.stop_gradient(g), jax.random.fold_in(_key(seed), h.count)
            projector = replaced(s.projector, h.fresh, lambda: space.choose(block, still, len(s.exp_avg), key))
            y = block.linear(lambda whole: space.project(projector, whole), g)
            nothing = jnp.zeros_like(y)
            before = jnp.where(h.restarts, nothing, s.exp_avg) if reset == "clean" else s.exp_avg
            momentum = ema(before, y, h.b1)
            u = g + block.of_whole(space.restore(projector, momentum - y))
            momentum = jnp.where(h.restarts, nothing, momentum) if reset == "reference" else momentum
        u, v = subset_norm.over_subset_norm(u, g, s.v, h, spec, name) if divides else (h.gain * u, None)
        return u, s._replace(projector=projector, exp_avg=momentum, v=v)

    def init(params: PyTree) -> Any:
        with speaking_as(name):
            known = known_integer("rank", rank, "[1, inf)", Tracer)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if _is_matrix(leaf) and known > (most := Space(proj_type, *leaf.shape).most):
                raise ValueError(
                    f"{name}: rank must be at most {most} for the leaf at {keystr(path) or 'the root'} of shape"
                    f" {leaf.shape}, got {known}"
                )
        return started.init(params)

    started = subset_norm.with_subsets(rule, subset_size) if divides else rule
    return optax.GradientTransformationExtraArgs(init, rule.update)


@dataclasses.dataclass(frozen=True)
class Space:
    """How subspaces of (rows, columns)-matrices are chosen, entered and left.

    Attributes:
      kind: "svd": spanned by singular vectors of the shorter side; "topk", "uniform": some of the rows of a tall
        matrix or of the columns of a wide one.
      rows, columns: of the matrix.
    """

    kind: ProjType
    rows: int
    columns: int

    @property
    def _turned(self) -> bool:
        """Whether coordinates are of the columns, so that the matrix is transposed first."""
        return (self.rows >= self.columns) == (self.kind == "svd")

    @property
    def most(self) -> int:
        """The largest rank."""
        return min(self.rows, self.columns) if self.kind == "svd" else max(self.rows, self.columns)

    @property
    def other(self) -> int:
        """The length of one coordinate's momentum."""
        return self.rows + self.columns - self.most

    def choose(self, block: Block, g: Array, rank: int, key: Array) -> Array:
        """The projector for the gradient g: (rank, most) with orthonormal rows, or (rank,) indices."""
        if self.kind == "uniform":
            return jax.random.permutation(key, self.most)[:rank].astype(jnp.int32)
        if self.kind == "topk":
            axis = 0 if self._turned else 1
            return lax.top_k(block.linear(lambda whole: jnp.sum(whole, axis), abs_sq(g)), rank)[1]
        left, _, right = jnp.linalg.svd(block.assemble(g), full_matrices=False)
        return jnp.conj(right[:rank] if self._turned else left[:, :rank].T)

    def project(self, projector: Array, whole: Array) -> Array:
        """The coordinates of a matrix, (rank, other)."""
        turned = whole.T if self._turned else whole
        return _product(projector, turned) if self.kind == "svd" else turned[projector]

    def restore(self, projector: Array, y: Array) -> Array:
        """The matrix in the subspace that has these coordinates."""
        if self.kind == "svd":
            turned = _product(jnp.conj(projector).T, y)
        else:
            turned = jnp.zeros((self.most, self.other), y.dtype).at[projector].set(y)
        return turned.T if self._turned else turned


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def _key(seed: Any) -> Array:
    return jax.random.key(jnp.asarray(seed).astype(jnp.uint32))


def _is_matrix(leaf: Any) -> bool:
    return jnp.ndim(leaf) == 2 and jnp.size(leaf) > 0


def _first_projector(leaf: Any, proj_type: ProjType, rank: Any) -> Array | None:
    if not _is_matrix(leaf):
        return None
    if proj_type != "svd":
        return jnp.zeros((int(rank),), jnp.int32)
    return jnp.zeros((int(rank), Space(proj_type, *leaf.shape).most), at_least_float32(jnp.result_type(leaf)))


def _first_momentum(leaf: Any, proj_type: ProjType, rank: Any) -> Array:
    if not _is_matrix(leaf):
        return zeros().init(leaf)
    return jnp.zeros((int(rank), Space(proj_type, *leaf.shape).other), jnp.result_type(leaf))


@method
def subspace_momentum(
    learning_rate: ScalarOrSchedule,
    rank: int,
    proj_type: ProjType = "svd",
    update_proj_gap: int = 200,
    b1: ScalarOrSchedule = 0.9,
    second_moment: SecondMoment = "none",
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    subset_size: SubsetSize = None,
    bias_correction: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    reset: Reset = "reference",
    seed: int = 0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Subspace-Momentum, alone, with Adam's second moment, or with Subset-Norm (arXiv:2411.07120).

    With P the projection of a matrix on the subspace and e the average of P g, the direction is P^T e + (g - P^T P g):
    momentum inside the subspace, plain SGD outside. All leaves but matrices get ordinary averages as momentum; for
    matrices that should too, pair it with `optax.partition`. Derivatives of an update take the subspace as given.

    Inside `jax.shard_map` the momentum is of the whole leaf, the same on every device; pass the parameters'
    PartitionSpecs, `update(grads, state, params, param_specs=specs)`. Under `jax.jit` nothing is needed.

    Args:
      learning_rate: step size, >= 0.
      rank: of the subspace, >= 1; at most the shorter side of every matrix for "svd", else the longer.
      proj_type: what spans the subspace: "svd", the first singular vectors of the gradient, on the shorter side;
        "topk", the rows of a tall matrix (the columns of a wide one) whose gradients are largest; "uniform", random
        ones.
      update_proj_gap: steps between choices of the subspace, >= 1; it is chosen at the first step and at its multiples.
      b1: decay of the momentum, in [0, 1).
      second_moment: what the direction is divided by: "none", nothing; "adam", the root of the average of squared
        gradients; "sn", that of squared norms of subsets, for a fifth of Adam's state.
      b2: decay of the second moment, in [0, 1]; 1 sums up as AdaGrad does, without bias correction.
      eps: added to the root.
      subset_size: of "sn", as in `adamw_sn`; None: -2.
      bias_correction: whether the moments are corrected for their start at 0, the momentum also outside the subspace.
      weight_decay: decay of the new weights, multiplied by the learning rate: p <- (p - lr u) (1 - lr wd).
      reset: what becomes of the momentum when a new subspace is chosen: "reference", as in the authors' code, read in
        the new coordinates for one more step, then 0; "clean", 0 from this step on; "keep", kept.
      seed: of "uniform", in [0, 2^32).
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; of an m x n matrix rank * (m + n) numbers of state for "svd", rank * (min(m, n) + 1) else; of
      other leaves one per parameter; and the second moment.

    Raises:
      ValueError: a number out of its range, an unknown word, a `subset_size` without "sn"; in `init`, a rank larger
        than a matrix.
      TypeError: in `init`, a rank that is no integer.
    """
    choice("second_moment", second_moment, SecondMoment)
    if subset_size is not None and second_moment != "sn":
        raise ValueError(f"{speaker()}: subset_size needs second_moment='sn', got {second_moment!r}")
    if second_moment == "sn" and subset_size is None:
        subset_size = subset_norm.HALF_ROOT
    moments = second_moment, b2, eps, subset_size, bias_correction
    direction = _direction(rank, b1, proj_type, update_proj_gap, reset, seed, *moments)
    return finish(direction, learning_rate, weight_decay, mask, decay="after")


PAPER = register(
    dataclasses.replace(
        subset_norm.PAPER,
        name="subspace_momentum",
        algorithm="Subspace-Momentum",
        make=subspace_momentum,
        transform=scale_by_subspace_momentum,
        relative_learning_rate=1.0,
        states=(SubspaceMomentumState,),
        floats_per_parameter=0.02,
        example={"rank": 1, "second_moment": "sn"},
        probe={"update_proj_gap": 5},
        golden=("subspace_momentum.topk", "subspace_momentum.topk_refresh_adam"),
    )
)
