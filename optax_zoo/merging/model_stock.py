"""Model Stock: All we need is just a few fine-tuned models.

Dong-Hwan Jang, Sangdoo Yun, Dongyoon Han, 2024, arXiv:2403.19522.
The centre of all fine-tuned models lies where the angle between a few of them says, on the way from their mean back
to the pretrained weights.

Differs from the authors' code: there is none. For more than two models the paper's formula has one angle and no rule
to get it; the mean cosine over pairs is mergekit's convention, and so is the 1e-6 under the product of norms.
"""

import itertools
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import Array

from optax_zoo._core import mesh
from optax_zoo._core.hyper import choice
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.trees import PyTree
from optax_zoo.merging._leaves import Matched, added, one_leaf, several, single

Granularity = Literal["leaf", "filter"]


@one_leaf("granularity")
def leaf(ws: list[Array], base: Array, *, granularity: Granularity) -> Array:
    """t mean(w) + (1 - t) base, t = n cos / (1 + (n - 1) cos)."""
    offsets = [w - base for w in ws]
    inner = _inner_product(base.ndim, granularity)
    norms = [jnp.sqrt(inner(d, d)) for d in offsets]
    cosines = [
        jnp.clip(inner(offsets[i], offsets[j]) / jnp.maximum(norms[i] * norms[j], 1e-6), -1.0, 1.0)
        for i, j in itertools.combinations(range(len(ws)), 2)
    ]
    cos = added(cosines) / len(cosines)
    below = 1.0 + (len(ws) - 1) * cos
    t = jnp.where(below == 0, 0.0, len(ws) * cos / jnp.where(below == 0, 1.0, below))
    return t * (added(ws) / len(ws)) + (1.0 - t) * base


def _inner_product(ndim: int, granularity: Granularity) -> Callable[[Array, Array], Array]:
    def product(a: Array, b: Array) -> Array:
        return jnp.real(a * jnp.conj(b)) if jnp.iscomplexobj(a) else a * b

    if granularity == "leaf" or ndim < 2:
        return lambda a, b: mesh.total(product(a, b))
    within = tuple(range(ndim - 1))
    return lambda a, b: jnp.sum(product(a, b), axis=within, keepdims=True)


@method
def model_stock(base: PyTree, models: PyTree, *, granularity: Granularity = "leaf") -> PyTree:
    """Model Stock (arXiv:2403.19522): two fine-tuned models come near the mean of many.

    Where offsets from the base point apart, at a cosine near -1 / (n - 1) for n models, the formula extrapolates
    without bound; where the denominator is 0, the base is kept.

    Args:
      base: the pretrained tree from which all models were fine-tuned.
      models: two or more trees in a list, or one tree stacked on axis 0.
      granularity: what shares an angle: a "leaf", or each output unit ("filter"), the last axis of a leaf of two or
        more axes (not for leaves sharded inside shard_map).

    Returns:
      One tree in the models' dtypes, computed in float32 or better; integer leaves are the first model's.

    Raises:
      ValueError: fewer than two models, trees that differ (the first leaf is named), NaN in a model, or an unknown
        `granularity`.
    """
    choice("granularity", granularity, Granularity)
    group = several("model", models)
    if len(group.names) < 2:
        raise ValueError("model_stock: needs at least two models, whose offsets from the base make an angle")
    return Matched(group, single("base", base)).merge(leaf, granularity=granularity)


PAPER = register(
    Paper(
        name="model_stock",
        title="Model Stock: All we need is just a few fine-tuned models",
        authors=("Jang, Dong-Hwan", "Yun, Sangdoo", "Han, Dongyoon"),
        year=2024,
        arxiv="2403.19522",
        kind="merge",
        make=model_stock,
    )
)
