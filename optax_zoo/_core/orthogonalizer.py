"""Every leaf of a tree orthogonalised: equal shapes together, shared out over devices if wanted."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

from optax_zoo._core import hyper as hp
from optax_zoo._core.blocks import is_spec
from optax_zoo._core.layouts import Layout, Matrices, block_cuts, layouts_of
from optax_zoo._core.matrix import Method, Solver
from optax_zoo._core.naming import speaker
from optax_zoo._core.quintics import NS_STEPS, Coefficients
from optax_zoo._core.sharing import ShardOver, Share, shared_in_shard_map, shared_under_jit
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import DimensionNumbers, choose

Scale = Callable[[int, int], float]
"""The factor on an orthogonal matrix from its (fan_in, fan_out)."""


@dataclasses.dataclass(frozen=True)
class Orthogonalizer:
    """What the rules that orthogonalise share: how leaves are read, how they are solved and by whom."""

    name: str
    solver: Solver
    norm: Mapping[str, Any]
    dimension_numbers: DimensionNumbers
    share: Share | None

    @classmethod
    def of(
        cls,
        ns_coeffs: Coefficients = "keller",
        ns_steps: int | Array = NS_STEPS,
        eps: hp.ScalarOrSchedule = 1e-7,
        norm_safety: hp.ScalarOrSchedule = 1.0,
        method: Method = "auto",
        ns_dtype: DTypeLike | None = None,
        dimension_numbers: DimensionNumbers = None,
        shard_over: ShardOver = None,
        eps_name: str = "eps",
    ) -> "Orthogonalizer":
        """Checks arguments of these names, which are those of `muon`; `eps_name` is what the method calls `eps`."""
        hp.check_range(eps_name, eps, "[0, inf)")
        return cls(
            speaker(),
            Solver.of(ns_coeffs, ns_steps, method, compute_dtype=ns_dtype),
            hp.checked({"eps": eps, "norm_safety": norm_safety}, {"norm_safety": "(0, inf)"}),
            dimension_numbers,
            Share.of(shard_over),
        )

    @property
    def axes(self) -> Callable[[PyTree], PyTree]:
        """The layouts of a tree, for `leafwise(static={"axes": ...})`; a leaf that is no matrix is an error."""
        return layouts_of(self.name, self.dimension_numbers)

    def __call__(
        self, tree: PyTree, count: Array, param_specs: PyTree | None = None, scale: Scale | None = None
    ) -> PyTree:
        """Orthogonalises every leaf, `None` and `MaskedNode` aside.

        Args:
          tree: floating or complex leaves of at least two axes.
          count: 0-based step, for schedules.
          param_specs: a (prefix) tree of PartitionSpecs. Inside shard_map it is needed for leaves that are sharded;
            under jit it may tell how results are to be sharded.
          scale: see `Scale`.

        Returns:
          A tree like `tree`.

        Raises:
          ValueError: a leaf that is no matrix, or one device's block of an unknown whole; the sentence names its path.
        """
        norm = hp.resolve(self.norm, count)
        flat, treedef = jax.tree.flatten(tree)
        if not flat:
            return tree
        specs = choose(self.name, "param_specs", param_specs, tree, is_spec)
        axes = jax.tree.leaves(self.axes(tree))

        def solve(blocks: Sequence[Array]) -> list[Array]:
            return self.solver(blocks, **norm)

        def run(leaves: list[Array], specs: list[PartitionSpec | None]) -> list[Array]:
            share = self.share
            if share is None or not share.is_manual():
                matrices = [Matrices.of(x, a, spec) for x, a, spec in zip(leaves, axes, specs, strict=True)]
                if share is None:
                    return _restored(matrices, _each(matrices, solve), scale)
                mesh = share.mesh_of(leaves, self.name)
                return _restored(matrices, _under_jit(matrices, specs, solve, self.solver, share, mesh), scale)
            matrices = [Matrices.of(x, a, spec, assemble=False) for x, a, spec in zip(leaves, axes, specs, strict=True)]
            return _restored(matrices, _in_shard_map(matrices, solve, self.solver, share), scale)

        return jax.tree.unflatten(treedef, _with_auto_axes(run, flat, specs))


Blocks = list[list[Array]]
"""The blocks of each leaf."""


def _each(matrices: Sequence[Matrices], solve: Callable[[Sequence[Array]], list[Array]]) -> Blocks:
    solved = iter(solve([block for leaf in matrices for block in leaf.blocks]))
    return [list(itertools.islice(solved, len(leaf.blocks))) for leaf in matrices]


def _restored(matrices: Sequence[Matrices], solved: Blocks, scale: Scale | None) -> list[Array]:
    if scale is not None:
        solved = [
            [scale(fan_in, fan_out) * o for o, (_, fan_in, fan_out) in zip(blocks, leaf.fans, strict=True)]
            for leaf, blocks in zip(matrices, solved, strict=True)
        ]
    return [leaf.restore(blocks) for leaf, blocks in zip(matrices, solved, strict=True)]


def _under_jit(
    matrices: Sequence[Matrices],
    specs: Sequence[PartitionSpec | None],
    solve: Callable[[Sequence[Array]], list[Array]],
    solver: Solver,
    share: Share,
    mesh: Any,
) -> Blocks:
    """Global matrices, each device its share of those whose batch axes are not spread over the same devices anyway."""
    known = [_spec_cuts(leaf.axes, spec, len(leaf.local)) for leaf, spec in zip(matrices, specs, strict=True)]

    def shared(stacks: list[Array], keys: list[Any]) -> list[Array]:
        wanted = [None if cuts is None else PartitionSpec(*(names or None for names in cuts)) for *_, cuts in keys]
        return shared_under_jit(solve, solver.cost, stacks, wanted, share, mesh)

    return _by_groups(matrices, known, solve, shared, share)


def _spec_cuts(axes: Layout, spec: PartitionSpec | None, ndim: int) -> Any:
    if spec is None:
        return None
    entries = [() if cut is None else (cut,) if isinstance(cut, str) else tuple(cut) for cut in spec]
    return block_cuts(axes, tuple(entries + [()] * (ndim - len(entries))))


def _in_shard_map(
    matrices: Sequence[Matrices],
    solve: Callable[[Sequence[Array]], list[Array]],
    solver: Solver,
    share: Share,
) -> Blocks:
    """One device's blocks of matrices."""

    def shared(stacks: list[Array], keys: list[Any]) -> list[Array]:
        return shared_in_shard_map(solve, solver.cost, stacks, [cuts for *_, cuts in keys], share)

    return _by_groups(matrices, [leaf.cuts for leaf in matrices], solve, shared, share)


def _by_groups(
    matrices: Sequence[Matrices],
    cuts: Sequence[Any],
    solve: Callable[[Sequence[Array]], list[Array]],
    shared: Callable[[list[Array], list[Any]], list[Array]],
    share: Share,
) -> Blocks:
    """Solves equal blocks, cut alike, as one stack; those that the share's devices hold apart stay where they are."""
    solved: Blocks = [[] for _ in matrices]
    groups: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for i, (leaf, cut) in enumerate(zip(matrices, cuts, strict=True)):
        if cut is not None and set(cut[0]) & set(share.axes):
            solved[i] = _each([leaf], solve)[0]
            continue
        solved[i] = list(leaf.blocks)
        for j, block in enumerate(leaf.blocks):
            if block.size:
                groups[block.shape[-2:], block.dtype, cut].append((i, j))
    if not groups:
        return solved
    stacks = [
        jnp.concatenate([solved[i][j].reshape(-1, *shape) for i, j in members])
        for (shape, *_), members in groups.items()
    ]
    for members, stack in zip(groups.values(), shared(stacks, list(groups)), strict=True):
        start = 0
        for i, j in members:
            block = solved[i][j]
            number = 1 if block.ndim == 2 else len(block)
            solved[i][j] = stack[start : start + number].reshape(block.shape)
            start += number
    return solved


def _with_auto_axes(
    run: Callable[[list[Array], list[PartitionSpec | None]], list[Array]],
    leaves: list[Array],
    specs: list[PartitionSpec | None],
) -> list[Array]:
    """`run(leaves, specs)`; Explicit axes of the mesh are left to the compiler inside, and the types come back."""
    shardings = [jax.typeof(x).sharding for x in leaves]
    explicit = {
        axis
        for sharding in shardings
        for axis, kind in zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }
    if not explicit:
        return run(leaves, specs)
    known = [sharding.spec for sharding in shardings]
    inside: Any = jax.sharding.auto_axes(
        lambda xs: run(xs, known), axes=tuple(sorted(explicit)), out_sharding=shardings
    )
    return inside(leaves)
