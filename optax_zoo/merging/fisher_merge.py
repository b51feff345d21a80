"""Merging Models with Fisher-Weighted Averaging.

Michael Matena, Colin Raffel, 2021, arXiv:2111.09832.
Each weight is averaged in proportion to how sure each model is of it, by the diagonal of its Fisher information.

Differs from the authors' code: nothing, except that an entry without information in any model stays at the first
model's weight where their code divides 0 by 0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from optax_zoo._core import mesh
from optax_zoo._core.hyper import Scalar, abs_sq, number, scalar_dtype
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import at_least_float32, real_at_least_float32
from optax_zoo._core.trees import Leaves, PyTree
from optax_zoo.merging._leaves import Matched, added, lifted, not_all_zero, one_leaf, per_model, several


@one_leaf("favor_target_model")
def leaf(
    ws: list[Array], fishers: list[Array], *, coefficients: list[Array], fisher_floor: Array, favor_target_model: bool
) -> Array:
    """sum_i c_i F_i w_i / sum_i c_i F_i; the floor is under the first model's Fisher or under all."""
    floored = [jnp.maximum(f, fisher_floor) if i == 0 or not favor_target_model else f for i, f in enumerate(fishers)]
    shares = [c * f for c, f in zip(coefficients, floored, strict=True)]
    total = added(shares)
    weighted = added([share * w for share, w in zip(shares, ws, strict=True)])
    return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), ws[0])


def statistics(fishers: Sequence[Any]) -> Array:
    """The 2-norm of one leaf of each model's Fisher, for `normalized`."""
    return jnp.stack([_norm(f) for f in fishers])


def normalized(coefficients: Sequence[Scalar], leaves: Sequence[Array]) -> list[Array]:
    """Each model's coefficient over the 2-norm of its whole Fisher, from the `statistics` of all leaves.

    Raises:
      ValueError: a Fisher is zero everywhere.
    """
    norms = [_norm(of_leaves) for of_leaves in jnp.stack(leaves).T]
    for i, norm in enumerate(norms):
        if not isinstance(norm, Tracer) and norm == 0:
            raise ValueError(f"{speaker()}: fisher {i} is zero everywhere, so it cannot be normalized")
    pairs = zip(coefficients, norms, strict=True)
    return [jnp.where(norm > 0, jnp.asarray(c, norm.dtype) / jnp.where(norm > 0, norm, 1.0), 0.0) for c, norm in pairs]


def first_pass(
    rows: Callable[[str], Iterable[list[Any]]], values: Mapping[str, Any], counts: Mapping[str, int]
) -> Mapping[str, Any]:
    """Arguments with which leaves can be merged one by one: coefficients over norms of whole Fishers."""
    if not values["normalize_fishers"]:
        return values
    measured = [statistics(row) for row in rows("fishers")]
    coefficients = per_model("coefficients", values["coefficients"], counts["fishers"], "[0, inf)")
    return {**values, "coefficients": normalized(coefficients, measured), "normalize_fishers": False}


@jax.jit
def _norm(x: Array) -> Array:
    """The 2-norm, without squares that leave float32's range."""
    x = jnp.abs(x.astype(lifted(x)))
    most = mesh.largest(x)
    scaled = x / jnp.where(most > 0, most, 1.0)
    return (most * jnp.sqrt(mesh.total(scaled * scaled))).astype(scalar_dtype())


@method
def fisher_merge(
    models: PyTree,
    fishers: PyTree,
    coefficients: Sequence[Scalar] | Array | None = None,
    *,
    fisher_floor: Scalar = 1e-6,
    favor_target_model: bool = True,
    normalize_fishers: bool = True,
) -> PyTree:
    """The Fisher-weighted mean (arXiv:2111.09832); `diagonal_fisher` estimates the Fishers.

    Args:
      models: a list of trees, or one tree stacked on axis 0; the first is the target, whose task matters most.
      fishers: diagonal Fisher information >= 0 of each model at its own weights, in trees like the models.
      coefficients: importance >= 0 of each model; only their ratios count. None: equal.
      fisher_floor: smallest Fisher of an entry, >= 0.
      favor_target_model: the floor is only under the target's Fisher, so that entries of which no other model knows
        anything stay at the target's weights.
      normalize_fishers: divide each Fisher by its 2-norm over all leaves.

    Returns:
      One tree in the models' dtypes, computed in float32 or better; integer leaves are the target's.

    Raises:
      ValueError: trees that differ (the first leaf is named), NaN in a model or Fisher, a number out of its range, or
        a Fisher that is zero everywhere and cannot be normalized.
    """
    matched = Matched(several("model", models), several("fisher", fishers, same_dtype=False))
    count, of_fishers = (len(group.names) for group in matched.groups)
    if count != of_fishers:
        raise ValueError(f"fisher_merge: {count} models need as many fishers, got {of_fishers}")
    weights = per_model("coefficients", coefficients, count, "[0, inf)")
    not_all_zero("coefficients", weights)
    leaves = [statistics(row[1]) for _, row in matched.rows()] if normalize_fishers else []
    if leaves:
        weights = normalized(weights, leaves)
    floor = number("fisher_floor", fisher_floor, "[0, inf)")
    return matched.merge(leaf, coefficients=weights, fisher_floor=floor, favor_target_model=favor_target_model)


@method
def diagonal_fisher(
    apply_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batches: Iterable[PyTree], num_classes: int
) -> PyTree:
    """The diagonal of a classifier's Fisher information (arXiv:2111.09832).

    The mean over examples of sum_y p(y|x) (d log p(y|x) / dp)^2. The classes weigh by the model's own probabilities,
    not by labels, and each example is differentiated by itself: a gradient of a batch, squared, is something else.

    Args:
      apply_fn: apply_fn(params, inputs) -> logits of shape (examples, num_classes).
      params: the weights at which the information is taken.
      batches: inputs, trees of arrays with the examples on axis 0; of any sizes, each new size is compiled anew.
      num_classes: classes that the logits tell apart.

    Returns:
      A tree like `params` in float32 or better; zeros for integer leaves.

    Raises:
      ValueError: no examples, or logits of another shape.
    """
    leaves = Leaves("diagonal_fisher", "params", params)
    values = [None if leaf is None else jnp.asarray(leaf) for leaf in leaves.values]
    weights = {i: x for i, x in enumerate(values) if x is not None and jnp.issubdtype(x.dtype, jnp.inexact)}

    def log_probabilities(weights: dict[int, Array], x: PyTree) -> Array:
        filled = leaves.unflatten([weights.get(i, value) for i, value in enumerate(values)])
        logits = apply_fn(filled, jax.tree.map(lambda entry: entry[None], x))
        if logits.shape != (1, num_classes):
            raise ValueError(
                f"diagonal_fisher: apply_fn must return logits of shape (1, {num_classes}) for one example,"
                f" got {logits.shape}"
            )
        return jax.nn.log_softmax(logits[0].astype(real_at_least_float32(logits.dtype)))

    def add_example(total: dict[int, Array], x: PyTree, weights: dict[int, Array]) -> dict[int, Array]:
        log_p, pull = jax.vjp(lambda weights: log_probabilities(weights, x), weights)

        def add_class(total: dict[int, Array], one: tuple[Array, Array]) -> tuple[dict[int, Array], None]:
            y, log_p = one
            (gradient,) = pull(y)
            squares = {i: abs_sq(g.astype(at_least_float32(g.dtype))) for i, g in gradient.items()}
            return {i: t + jnp.exp(log_p).astype(t.dtype) * squares[i] for i, t in total.items()}, None

        return jax.lax.scan(add_class, total, (jnp.eye(num_classes, dtype=log_p.dtype), log_p))[0]

    @jax.jit
    def add_batch(total: dict[int, Array], batch: PyTree, weights: dict[int, Array]) -> dict[int, Array]:
        return jax.lax.scan(lambda total, x: (add_example(total, x, weights), None), total, batch)[0]

    total, count = {i: jnp.zeros(x.shape, real_at_least_float32(x.dtype)) for i, x in weights.items()}, 0
    for batch in batches:
        total = add_batch(total, batch, weights)
        count += jax.tree.leaves(batch)[0].shape[0]
    if not count:
        raise ValueError("diagonal_fisher: batches hold no examples")
    means = {i: t / count for i, t in total.items()}
    return leaves.unflatten([None if x is None else means.get(i, jnp.zeros(x.shape)) for i, x in enumerate(values)])


PAPER = register(
    Paper(
        name="fisher_merge",
        title="Merging Models with Fisher-Weighted Averaging",
        authors=("Matena, Michael", "Raffel, Colin"),
        year=2021,
        arxiv="2111.09832",
        kind="merge",
        make=fisher_merge,
        first_pass=first_pass,
    )
)
