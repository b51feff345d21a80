"""Modular Duality in Deep Learning.

Jeremy Bernstein, Laker Newhouse, 2024, arXiv:2410.21265.
A gradient measures weights and is no step among them: the step is the direction that is steepest under a norm which
says how much a change of each layer can do. The norm of a network is the largest of its layers', each over its budget.

Differs from the authors' code: a zero gradient gives zero, not NaN. UNVERIFIED: the role "conv" (see `atoms`) is the
paper's as later code has it. The role "vector" is not from these papers.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec
from jax.tree_util import keystr

from optax_zoo._core import hyper as hp
from optax_zoo._core import mesh
from optax_zoo._core.blocks import Block, is_spec
from optax_zoo._core.hyper import Scalar, ScalarOrSchedule
from optax_zoo._core.leafwise import leafwise, promotion
from optax_zoo._core.matrix import Method
from optax_zoo._core.naming import method as public
from optax_zoo._core.naming import speaker
from optax_zoo._core.orthogonalizer import Orthogonalizer
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.quintics import NS_STEPS, Coefficients
from optax_zoo._core.sharing import ShardOver
from optax_zoo._core.slots import lifted
from optax_zoo._core.trees import Leaves, PyTree
from optax_zoo._core.views import Choice, choose
from optax_zoo.matrix.atoms import (
    FLAX,
    TABLE,
    LargestEntry,
    Roles,
    RootMeanSquare,
    Row,
    Spectral,
    atom_of,
    gain,
    roles_of,
)


class DualizeState(NamedTuple):
    """Only the count, as every method has."""

    count: Array  # steps taken


@public
def dualize(
    roles: Roles,
    *,
    target_norm: ScalarOrSchedule | PyTree = 1.0,
    adaptive: bool = False,
    ns_coeffs: Coefficients = "you6",
    method: Method = "plain",
    eps: ScalarOrSchedule = 0.0,
    ns_steps: int | Array = NS_STEPS,
    shard_over: ShardOver = None,
) -> optax.GradientTransformationExtraArgs:
    """Turns each gradient G into the direction T of norm 1 in which it is steepest (arXiv:2410.21265).

    The norms are those of the leaves' roles, which `atoms` tabulates: "linear" U V^T of a kernel's singular vectors
    times sqrt(out/in), "conv" the same at each position, "embed" rows of root mean square 1, "vector" root mean
    square 1, "sign" the sign. The update is `target_norm` T; its norm over the tree is 1 if `target_norm` holds the
    budgets of the layers. `ModularNorm` works them out from how the layers are composed.

    With "sign" it is sign descent, Adam without its averages; "linear" is Muon with `scaling="spectral"`.

    Inside `jax.shard_map` pass the parameters' PartitionSpecs, `update(grads, state, params, param_specs=specs)`.
    Under `jax.jit` nothing is needed.

    Args:
      roles: what each leaf does: "linear" (in, out), "conv" (height, width, in, out), "embed" (vocabulary, d), "vector"
        or "sign" (any shape), or a `MatrixView`, linear in other axes than (in, out). One for all leaves, a (prefix)
        tree of them, or a function of (path, shape) with a path such as "block/kernel"; "flax": `dual_roles()`, by the
        names and axes of Flax.
      target_norm: norm of the update of each leaf, >= 0; a (prefix) tree gives every leaf its own.
      adaptive: multiply all leaves by the dual norm of the whole gradient, sum of `target_norm` <G, T>: the step of
        steepest descent, which shrinks with the gradient. False: a step of constant norm.
      ns_coeffs: coefficients of the Newton-Schulz iteration, see `orthogonalize`.
      method: "plain", "gram" or "auto", equal up to rounding; "svd" is exact.
      eps: added to the Euclidean norm that a matrix, row or vector is divided by, >= 0.
      ns_steps: number of steps where `ns_coeffs` is no table, >= 1.
      shard_over: mesh axes over whose devices the matrices are shared out, see `muon`.

    Returns:
      A transformation without slots.

    Raises:
      ValueError: a number out of its range, an unknown word; in `init` and `update`, a leaf without a role or with one
        that does not fit its shape, or no entry for a leaf.
    """
    orthogonalize = Orthogonalizer.of(
        ns_coeffs=ns_coeffs, ns_steps=ns_steps, eps=eps, method=method, shard_over=shard_over
    )
    return dualizer(roles, orthogonalize, {"target_norm": target_norm}, eps, adaptive)


def dualizer(
    roles: Roles,
    orthogonalize: Orthogonalizer,
    target: Mapping[str, ScalarOrSchedule | PyTree],
    eps: ScalarOrSchedule,
    adaptive: bool,
    table: Mapping[str, Row] = TABLE,
    preset: Choice = None,
) -> optax.GradientTransformationExtraArgs:
    """`dualize` with other roles than its own.

    Args:
      target: the argument that sets the norm of updates, by its name.
      table: the roles there are.
      preset: what "flax" means; None: `dual_roles()`.
      orthogonalize: for the matrices among the leaves.
      roles, eps, adaptive: as in `dualize`.
    """
    name = speaker()
    what = next(iter(target))
    norm = hp.checked({"eps": eps}, {})
    given, treedef = jax.tree_util.tree_flatten_with_path(target[what])
    by_name = {f"{what} of the leaf at {keystr(path)}" if path else what: value for path, value in given}
    by_name = hp.checked(by_name, dict.fromkeys(by_name, "[0, inf)"))
    target_norm = jax.tree.unflatten(treedef, by_name.values())

    def sums(g: Array, s: DualizeState, h: Any, d: Array) -> dict[str, Array]:
        return {"dual": jnp.sum(jnp.real(jnp.conj(g) * d))}

    @leafwise(DualizeState, sums=sums if adaptive else None)
    def couple(g: Array, s: DualizeState, h: Any, d: Array) -> tuple[Array, DualizeState]:
        return (h.dual * d if adaptive else d), s

    def init(params: PyTree) -> Any:
        for where, x, role in roles_of(name, roles, params, preset):
            atom_of(role, jnp.shape(x), where, table)
        return couple.init(params)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, *, param_specs: PyTree = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        Leaves(name, "the gradient", updates).only_inexact()
        wide = lifted(updates)
        chosen = roles_of(name, roles, wide, preset)
        units = _units(name, chosen, table, wide, orthogonalize, norm, state.count, param_specs)
        targets = targets_of(wide, state.count)
        direction = jax.tree.unflatten(jax.tree.structure(wide), map(_times, units, targets))
        return couple.update(updates, state, d=direction)

    def targets_of(tree: PyTree, count: Array) -> list[Scalar]:
        places = [keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
        if jax.tree_util.all_leaves([target_norm]):
            return [hp.resolve({what: target_norm}, count)[what]] * len(places)
        chosen = dict(zip(places, choose(name, what, target_norm, tree), strict=True))
        if missing := [place for place, value in chosen.items() if value is None]:
            raise ValueError(f"{name}: {what} has no entry for the leaf at {missing[0]}")
        return list(hp.resolve(chosen, count).values())

    return optax.GradientTransformationExtraArgs(init, update)


def _units(
    name: str,
    leaves: list[tuple[str, Array, Any]],
    table: Mapping[str, Row],
    tree: PyTree,
    orthogonalize: Orthogonalizer,
    norm: Mapping[str, Any],
    count: Array,
    param_specs: PyTree,
) -> list[Array]:
    """The directions of norm 1 of all leaves; those of matrices are solved together."""
    specs = choose(name, "param_specs", param_specs, tree, is_spec)
    blocks = [_block(x, spec, where, role, table) for (where, x, role), spec in zip(leaves, specs, strict=True)]
    atoms = [atom_of(role, block.whole, where, table) for (where, _, role), block in zip(leaves, blocks, strict=True)]

    def of_matrices(values: list[Any]) -> PyTree:
        chosen = [v if isinstance(atom, Spectral) else None for v, atom in zip(values, atoms, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(tree), chosen)

    views = of_matrices([getattr(atom, "view", None) for atom in atoms])
    reading = dataclasses.replace(orthogonalize, dimension_numbers=views)
    solved = reading(of_matrices([x for _, x, _ in leaves]), count, param_specs, gain)
    matrices, eps = iter(jax.tree.leaves(solved)), hp.resolve(norm, count)["eps"]
    return [
        next(matrices) / atom.window if isinstance(atom, Spectral) else _direction(x, eps, atom, block)
        for (_, x, _), atom, block in zip(leaves, atoms, blocks, strict=True)
    ]


def _block(x: Array, spec: PartitionSpec | None, where: str, role: Any, table: Mapping[str, Row]) -> Block:
    """Where `x` lies in the leaf; without a spec a leaf of one axis can be cut only there."""
    local = isinstance(role, str) and role in table and table[role].local
    if spec is None and (local or x.ndim < 2):
        return Block(x.shape, (() if local else mesh.varying_axes(x),) * x.ndim)
    return Block.of(x, spec, where, "its norm is that of all of it")


@functools.partial(jax.jit, static_argnames=("atom", "block"))
def _direction(x: Array, eps: Scalar, atom: RootMeanSquare | LargestEntry, block: Block) -> Array:
    with promotion(x.dtype):
        return atom.direction(x, block, jnp.asarray(eps, jnp.finfo(x.dtype).dtype))


def _times(x: Array, factor: Scalar) -> Array:
    return x * (factor.astype(x.dtype) if isinstance(factor, Array) else factor)


PAPER = register(
    Paper(
        name="dualize",
        title="Modular Duality in Deep Learning",
        authors=("Bernstein, Jeremy", "Newhouse, Laker"),
        year=2024,
        arxiv="2410.21265",
        kind="transform",
        make=dualize,
        states=(DualizeState,),
        elementwise=False,
        relative_learning_rate=8.0,
        base=optax.sgd,
        example={"roles": FLAX},
    )
)
