"""Weight Conditioning for Smooth Optimization of Neural Networks.

Hemanth Saratchandran, Thomas X. Wang, Simon Lucey, 2024 (ECCV 2024), arXiv:2409.03424.
The model computes with weights whose rows, the weights of one output unit each, are scaled to norm 1: of all diagonal
scalings this one is within the square root of the number of rows of the least condition number (Van der Sluis).

Differs from the authors' code: none was found. UNVERIFIED: that the authors differentiate through the norms, as the
default does here, and that they keep no learnable gain; a gain would make it weight normalization.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from jax.tree_util import keystr

from optax_zoo._core.blocks import Block, is_spec
from optax_zoo._core.hyper import Scalar, check_range, choice
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.norms import norm
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.rules import VECTORS, fits
from optax_zoo._core.slots import at_least_float32
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import Axes, Choice, choose

Mode: TypeAlias = Literal["row", "column", "row_column"]


@method
def weight_conditioning(
    w: Array,
    *,
    mode: Mode = "row",
    eps: Scalar = 1e-12,
    stop_gradient: bool = False,
    output_axis: Axes = -1,
    spec: PartitionSpec | None = None,
) -> Array:
    """Weights with rows of norm 1, for use in the forward pass in the place of `w` (arXiv:2409.03424).

        hidden = x @ weight_conditioning(params["kernel"]) * params["scale"] + params["bias"]

    A gain, an affine layer or a normalization should follow, for the outputs have lost their scale. Of the raw weights
    only the direction of each row matters; weight decay on them does no more than raise the effective learning rate.

    Args:
      w: floating or complex, two axes or more: (in, out), or (height, width, in, out) in Flax's layout.
      mode: "row", each output unit is divided by its norm over all other axes; "column", each input by its norm over
        the outputs; "row_column", first rows, then columns, which leaves rows near norm 1 only.
      eps: the least divisor, >= 0. Zero rows stay zero, and their gradient is divided by `eps`; with 0 they are left
        as they are.
      stop_gradient: whether the norms count as constants in the backward pass.
      output_axis: the axis of output units, or several: Flax's last one, PyTorch's 0, `(-2, -1)` for the (in, heads,
        width) of a query.
      spec: how `w` is sharded; needed inside `jax.shard_map`, where it is one device's block.

    Returns:
      Shape and dtype of `w`; norms are computed in float32 or better.

    Raises:
      TypeError: `w` is not floating or complex, or an axis no integer.
      ValueError: an unknown mode, a number out of its range, fewer than two axes, an axis that `w` does not have, or a
        block without its spec.
    """
    _check(mode, eps)
    return _conditioned(w, f"{speaker()}: w", mode, eps, stop_gradient, output_axis, spec, "spec=...")


@method
def condition_params(
    params: PyTree,
    predicate: Choice = None,
    *,
    mode: Mode = "row",
    eps: Scalar = 1e-12,
    stop_gradient: bool = False,
    output_axis: Choice = -1,
    param_specs: PyTree = None,
) -> PyTree:
    """`weight_conditioning` of the chosen leaves of a tree, which the model is then applied to.

        loss = lambda params: error(model.apply({"params": condition_params(params)}, x))

    Differentiate and optimize `params` themselves. The tree may be a dict, Flax's variables, an `nnx.State` or any
    other pytree; leaves that are not chosen come back as they are.

    Args:
      params: tree of parameters.
      predicate: which leaves are conditioned: a (prefix) tree of bools, or a function of (path, leaf) with a path such
        as "block/kernel"; `muon_mask_by_path()` leaves embeddings and output heads alone. None: floating and complex
        leaves of two axes or more, but for biases and scales by their names.
      mode, eps, stop_gradient: as in `weight_conditioning`.
      output_axis: as in `weight_conditioning`, for all leaves, or as a (prefix) tree or a function of (path, leaf).
      param_specs: the leaves' PartitionSpecs, or a prefix of that tree; needed inside `jax.shard_map`.

    Returns:
      A tree like `params`.

    Raises:
      TypeError, ValueError: as in `weight_conditioning`, by the path of the leaf; a predicate that is no bool.
    """
    _check(mode, eps)
    name = speaker()
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    chosen = choose(name, "predicate", _is_kernel if predicate is None else predicate, params)
    axes = choose(name, "output_axis", output_axis, params, _is_axes)
    specs = choose(name, "param_specs", param_specs, params, is_spec)

    def conditioned(path: Any, leaf: Any, wanted: Any, axis: Any, spec: Any) -> Any:
        where = f"{name}: the leaf at {keystr(path) or 'the root'}"
        if not isinstance(wanted, bool | np.bool_):
            raise TypeError(f"{where} needs a predicate of True or False, got {wanted!r}")
        if not wanted:
            return leaf
        return _conditioned(leaf, where, mode, eps, stop_gradient, axis, spec, "param_specs=...")

    return jax.tree.unflatten(
        treedef, [conditioned(*pair, *rest) for pair, *rest in zip(flat, chosen, axes, specs, strict=True)]
    )


def _is_kernel(path: str, leaf: Any) -> bool:
    vector = any(fits(path, name) for name in VECTORS)
    return not vector and jnp.ndim(leaf) >= 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _is_axes(x: object) -> bool:
    return isinstance(x, tuple | list) and all(isinstance(axis, int | np.integer) for axis in x)


def _check(mode: Mode, eps: Scalar) -> None:
    choice("mode", mode, Mode)
    if callable(eps):
        raise TypeError(f"{speaker()}: eps must be a number, got the schedule {eps!r}")
    check_range("eps", eps, "[0, inf)")


def _conditioned(
    w: Any,
    where: str,
    mode: Mode,
    eps: Scalar,
    stop_gradient: bool,
    output_axis: Any,
    spec: PartitionSpec | None,
    call: str,
) -> Array:
    if not jnp.issubdtype(jnp.result_type(w), jnp.inexact):
        raise TypeError(f"{where} must be floating or complex, got {jnp.result_type(w)}")
    w = jnp.asarray(w)
    outputs = _normal_axes(output_axis, w.shape, where)
    inputs = tuple(axis for axis in range(w.ndim) if axis not in outputs)
    steps: dict[Mode, Sequence[tuple[int, ...]]] = {
        "row": [inputs],
        "column": [outputs],
        "row_column": [inputs, outputs],
    }
    fixed: Callable[[Array], Array] = jax.lax.stop_gradient if stop_gradient else lambda norm: norm
    x = w.astype(at_least_float32(w.dtype))
    block = Block.of(w, spec, where, "its rows and columns must be whole", call)
    for axes in steps[mode]:
        divisor = jnp.maximum(fixed(norm(x, axes, block)), jnp.asarray(eps, jnp.finfo(x.dtype).dtype))
        x = x / jnp.where(divisor == 0, jnp.ones_like(divisor), divisor).astype(x.dtype)
    return x.astype(w.dtype)


def _normal_axes(axes: Any, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    """The output axes, non-negative."""
    ndim = len(shape)
    if ndim < 2:
        raise ValueError(f"{where} of shape {shape} is not a matrix; its units have no norm to divide by")
    several = axes if isinstance(axes, tuple | list) else (axes,)
    if any(isinstance(axis, bool) or not isinstance(axis, int | np.integer) for axis in several):
        raise TypeError(f"{where} needs an integer output_axis, or several, got {axes!r}")
    numbers = tuple(operator.index(axis) for axis in several)
    if any(not -ndim <= axis < ndim for axis in numbers):
        raise ValueError(f"{where} of shape {shape} needs an output_axis in [{-ndim}, {ndim - 1}], got {axes!r}")
    normal = tuple(axis % ndim for axis in numbers)
    if not 1 <= len(set(normal)) == len(normal) < ndim:
        raise ValueError(
            f"{where} of shape {shape} needs some, but not all of its axes as output_axis, each once, got {axes!r}"
        )
    return normal


PAPER = register(
    Paper(
        name="weight_conditioning",
        title="Weight Conditioning for Smooth Optimization of Neural Networks",
        authors=("Saratchandran, Hemanth", "Wang, Thomas X.", "Lucey, Simon"),
        year=2024,
        arxiv="2409.03424",
        kind="function",
        make=weight_conditioning,
    )
)
