"""Lean and Mean Adaptive Optimization via Subset-Norm and Subspace-Momentum with Convergence Guarantees: Subset-Norm.

Thien Hang Nguyen, Huy Le Nguyen, 2024 (ICML 2025), arXiv:2411.07120.
Adam and AdaGrad with one adaptive step size for each subset of entries, from the squared norm of the subset's
gradient, so that the second moment of n parameters takes about sqrt(n) numbers.

Differs from the authors' code: leaves of 1 to 3 entries, on which `subset_size=-2` fails there, get subsets of one
entry; `b2=0` divides by the norm of the present gradient, where one of the authors' classes does not divide at all.
"""

import dataclasses
import math
import operator
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer
from jax.sharding import PartitionSpec

from optax_zoo._core.blocks import Block
from optax_zoo._core.finish import Mask, finish
from optax_zoo._core.hyper import ScalarOrSchedule, abs_sq, check_range, debias, ema, is_zero, split_decay, structural
from optax_zoo._core.leafwise import leafwise
from optax_zoo._core.naming import method, speaker, suggestion
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import PerLeaf, PerParameter, Slot, Statistic, real_at_least_float32, squares, zeros
from optax_zoo._core.trees import Leaves, PyTree, stands_for_params
from optax_zoo._core.views import choose

SubsetSize: TypeAlias = Any
"""A positive k: the largest divisor of the leaf's size n up to k; a negative -j: up to sqrt(n) / j; "heuristics": the
rows of a tall matrix, the columns of a wide one; None: single entries. Or a (prefix) tree of these, `f(path, leaf)`
with a path such as "block/kernel", or `f(tree)` -> tree."""

HALF_ROOT = structural(-2)

Shape: TypeAlias = tuple[int, ...]


class SubsetNormState(NamedTuple):
    """Momentum, and a second moment with one number a subset."""

    count: Array  # steps taken
    m: PerParameter  # first moment
    v: PerLeaf  # of each subset


@method
def scale_by_subset_norm(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    subset_size: SubsetSize = HALF_ROOT,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The direction of Adam with subset norms (arXiv:2411.07120); arguments as in `adamw_sn`."""
    name = speaker()
    keeps = not is_zero(b1)

    @leafwise(
        SubsetNormState,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        ranges={"b2": "[0, 1]"},
        step=lambda h, s: second_moment_scalars(h, bias_correction),
        m=zeros() if keeps else None,
        v=second_moment(subset_size),
    )
    def rule(g: Array, s: SubsetNormState, h: Any, *, spec: PartitionSpec | None) -> tuple[Array, SubsetNormState]:
        m = ema(s.m, g, h.b1) if keeps else g
        u, v = over_subset_norm(m, g, s.v, h, spec, name)
        return u, s._replace(m=m, v=v)

    return with_subsets(rule, subset_size)


def second_moment_scalars(h: Any, bias_correction: bool) -> dict[str, Any]:
    """What `over_subset_norm` wants to know of the step; b2 = 1 sums up as AdaGrad does, without bias correction."""
    keep, take = split_decay(h.b2)
    averages = take > 0
    gain = jnp.where(averages, jnp.sqrt(debias(h.b2, h.t)) / debias(h.b1, h.t), 1.0) if bias_correction else 1.0
    return {"keep": keep, "take": jnp.where(averages, take, 1.0), "gain": gain}


def over_subset_norm(
    u: Array, g: Array, v: Array, h: Any, spec: PartitionSpec | None, name: str
) -> tuple[Array, Array]:
    """gain * u / (sqrt(v) + eps) and the new second moment v of the subsets of g, which are known by the shape of v."""
    subsets = Subsets(
        v.shape, Block.beside(v, g, spec, f"{name}: a leaf of shape {g.shape}", "a subset may lie on several")
    )
    v = h.keep * v + h.take * subsets.sum(abs_sq(g))
    return u * subsets.spread(h.gain / (jnp.sqrt(v) + h.eps)), v


@dataclasses.dataclass(frozen=True)
class Subsets:
    """The subsets of a leaf.

    Attributes:
      shape: of an array with one number a subset: the leaf's; a matrix's with one axis of size 1; (number of runs of
        entries in C order,).
      block: where what is known of the leaf lies in it.
    """

    shape: Shape
    block: Block

    @property
    def _grid(self) -> tuple[Shape, tuple[int, ...]]:
        """The leaf as an array whose subsets are the given axes."""
        whole = self.block.whole
        if self.shape == whole:
            return whole, ()
        if len(self.shape) == 2:
            return whole, (self.shape.index(1),)
        return (*self.shape, math.prod(whole) // self.shape[0]), (1,)

    def sum(self, x: Array) -> Array:
        """Over each subset, the same on every device."""
        grid, axes = self._grid
        return self.block.linear(lambda whole: jnp.sum(whole.reshape(grid), axes).reshape(self.shape), x)

    def spread(self, numbers: Array) -> Array:
        """The number of each entry's subset."""
        grid, axes = self._grid
        wide = jnp.broadcast_to(jnp.expand_dims(numbers.reshape(_without(grid, axes)), axes), grid)
        return self.block.of_whole(wide.reshape(self.block.whole))


def _without(shape: Shape, axes: tuple[int, ...]) -> Shape:
    return tuple(n for axis, n in enumerate(shape) if axis not in axes)


def second_moment(subset_size: SubsetSize) -> Slot | Statistic:
    """The slot of v; what it holds, unless that is one number an entry, comes from `with_subsets`."""
    return squares() if subset_size is None else Statistic(lambda leaf: None)


def with_subsets(
    tx: optax.GradientTransformationExtraArgs, subset_size: SubsetSize
) -> optax.GradientTransformationExtraArgs:
    """`tx` whose state starts with a number for each subset of each leaf in its field v."""
    name = speaker()
    if not (callable(subset_size) or isinstance(subset_size, Tracer)) and jax.tree_util.all_leaves([subset_size]):
        _checked(subset_size, f"{name}: subset_size")

    def init(params: PyTree) -> Any:
        state: Any = tx.init(params)
        if subset_size is None or stands_for_params(params):
            return state
        leaves = Leaves(name, "params", params)
        sizes = iter(choose(name, "subset_size", subset_size, params))

        def first(path: str, leaf: Any) -> Any:
            if leaf is None:
                return None
            size = _checked(next(sizes), f"{name}: subset_size of the leaf at {path}")
            return jnp.zeros(_one_a_subset(jnp.shape(leaf), size), real_at_least_float32(jnp.result_type(leaf)))

        return state._replace(v=leaves.unflatten(list(map(first, leaves.paths, leaves.values))))

    return optax.GradientTransformationExtraArgs(init, tx.update)


def _one_a_subset(shape: Shape, size: int | Literal["heuristics"] | None) -> Shape:
    """The shape of an array with one number for each subset of a leaf, as in `Subsets`."""
    n = math.prod(shape)
    if size is None or n == 0:
        return shape
    if isinstance(size, str):
        if len(shape) != 2:
            return shape
        return (shape[0], 1) if shape[0] >= shape[1] else (1, shape[1])
    k = largest_divisor(n, size if size > 0 else int(math.sqrt(n) / -size))
    return shape if k == 1 else (n // k,)


def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`; 1 where there is none."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return max((d for d in (*small, *(n // d for d in small)) if d <= most), default=1)


def _checked(size: Any, what: str) -> Any:
    """`size` with an integer of Python's own."""
    if size is None or (isinstance(size, str) and size == "heuristics"):
        return size
    if isinstance(size, Tracer):
        raise TypeError(
            f"{what} must be known when the state is made; name it in the static_args of optax.inject_hyperparams"
        )
    wanted = f"{what} must be a positive or a negative integer, 'heuristics' or None, got {size!r}"
    if isinstance(size, str):
        raise ValueError(wanted + suggestion(size, ["heuristics"]))
    try:
        number = 0 if isinstance(size, bool) else operator.index(size)
    except TypeError:
        raise TypeError(wanted) from None
    if number == 0:
        raise ValueError(wanted)
    return number


@method
def adamw_sn(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    subset_size: SubsetSize = HALF_ROOT,
    bias_correction: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with Subset-Norm (arXiv:2411.07120).

    u = m / (sqrt(v) + eps) where all entries of a subset share v, the average of the squared norm of their gradient.
    The norm is a sum: u is smaller than Adam's by about sqrt(k) for subsets of k, and the authors' learning rates are
    about ten times Adam's. Subsets are runs of entries in C order, so a transposed kernel has others: PyTorch's
    (out, in) groups weights of one output, Flax's (in, out) weights of one input.

    Inside `jax.shard_map` v is of the whole leaf, the same on every device; pass the parameters' PartitionSpecs,
    `update(grads, state, params, param_specs=specs)`. Under `jax.jit` nothing is needed.

    Args:
      learning_rate: step size, >= 0.
      b1: decay of the first moment, in [0, 1); 0 keeps none.
      b2: decay of the second moment, in [0, 1]; 1 sums up as AdaGrad does, without bias correction.
      eps: added to the uncorrected root.
      subset_size: entries that share a second moment, for a leaf of n entries: a positive integer k, the largest
        divisor of n up to k; a negative -j, the largest up to sqrt(n) / j; "heuristics", each row of a tall matrix,
        each column of a wide one, and single entries of other leaves; None, single entries, which is Adam. Or a
        (prefix) tree of these, or a function of (path, leaf) with a path such as "block/kernel".
      bias_correction: whether the moments are corrected for their start at 0.
      weight_decay: decay of the new weights, multiplied by the learning rate: p <- (p - lr u) (1 - lr wd).
      mask: which leaves decay; a (prefix) tree of bools or a function of the parameters.

    Returns:
      The optimizer; one number of state per parameter (none for `b1=0`) and one per subset.

    Raises:
      ValueError: a number out of its range, or a subset size of 0.
      TypeError: a subset size of another kind.
    """
    direction = scale_by_subset_norm(b1, b2, eps, subset_size, bias_correction)
    return finish(direction, learning_rate, weight_decay, mask, decay="after")


@method
def sgd_sn(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-6,
    subset_size: SubsetSize = HALF_ROOT,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad with Subset-Norm (arXiv:2411.07120): v sums up the squared norms of the gradients of each subset.

    Args:
      learning_rate: step size, >= 0.
      momentum: decay of an average of gradients in the place of the gradient, in [0, 1); 0 keeps none.
      eps, subset_size, weight_decay, mask: as in `adamw_sn`, as is the use inside `jax.shard_map`.

    Returns:
      The optimizer; one number of state per subset, and with momentum one per parameter.

    Raises:
      ValueError: a number out of its range, or a subset size of 0.
      TypeError: a subset size of another kind.
    """
    check_range("momentum", momentum, "[0, 1)")
    direction = scale_by_subset_norm(momentum, 1.0, eps, subset_size, bias_correction=False)
    return finish(direction, learning_rate, weight_decay, mask, decay="after")


PAPER = register(
    Paper(
        name="adamw_sn",
        title=("Lean and Mean Adaptive Optimization via Subset-Norm and Subspace-Momentum with Convergence Guarantees"),
        authors=("Nguyen, Thien Hang", "Nguyen, Huy Le"),
        year=2024,
        arxiv="2411.07120",
        algorithm="Subset-Norm",
        make=adamw_sn,
        transform=scale_by_subset_norm,
        states=(SubsetNormState,),
        floats_per_parameter=1,
        elementwise=False,
        relative_learning_rate=4.0,
        golden=("adamw_sn.default", "adamw_sn.heuristics", "adamw_sn.size4_wd"),
    )
)
SGD_SN = register(
    dataclasses.replace(
        PAPER,
        name="sgd_sn",
        algorithm="Subset-Norm, AdaGrad form",
        make=sgd_sn,
        transform=None,
        floats_per_parameter=0,
        relative_learning_rate=16.0,
        golden=("sgd_sn.default",),
    )
)
