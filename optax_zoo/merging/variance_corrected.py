"""Vanishing Variance Problem in Fully Decentralized Neural-Network Systems.

Yongding Tian, Zaid Al-Ars, Maksim Kitsak, Peter Hofstee, 2024, arXiv:2404.04616.
The mean of n unrelated models has an nth of their variance; each leaf is stretched back to the variance it needs.

Differs from the authors' code: its "conservative" averager overwrites the own model before measuring it, which loses
the own variance; here it is measured first. Whether the paper has an eps is UNVERIFIED; `eps=0` is the pure formula.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from optax_zoo._core import mesh
from optax_zoo._core.hyper import Scalar, abs_sq, choice, number
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.trees import PyTree
from optax_zoo._core.views import Choice
from optax_zoo.merging._leaves import Matched, mean, not_all_zero, one_leaf, per_model, several, single

Target = Literal["others", "self", "mix"]

_NORMALIZATION = re.compile(r"norm|(^|[/._])bn|batch_stats|running_(mean|var)|num_batches", re.IGNORECASE)


@one_leaf("target", "ignored")
def leaf(
    ws: list[Array],
    own: Array | None = None,
    *,
    weights: list[Array],
    target: Target,
    conservative: Array,
    eps: Array,
    ignored: bool,
) -> Array:
    """(A - mean A) sqrt((V + eps) / (var A + eps)) + mean A, where A averages the models and V their variances."""

    def averaged(of_self: Any, of_models: list[Array]) -> Array:
        others = mean(of_models, weights)
        return others if of_self is None else conservative * of_self + (1.0 - conservative) * others

    average = averaged(own, ws)
    if ignored or mesh.global_size(average) < 2:
        return average
    centre, variance = _moments(average)
    own_variance = None if own is None else _moments(own)[1]
    variances = [_moments(w)[1] for w in ws]
    wanted = {
        "others": lambda: mean(variances, weights),
        "self": lambda: own_variance,
        "mix": lambda: averaged(own_variance, variances),
    }[target]()
    below = variance + eps
    stretch = jnp.sqrt((wanted + eps) / jnp.where(below > 0, below, 1.0))
    return (average - centre) * stretch + centre


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and unbiased variance of a leaf."""
    size = mesh.global_size(x)
    centre = mesh.total(x) / size
    return centre, mesh.total(abs_sq(x - centre)) / (size - 1)


def is_normalization(path: str, leaf: Any) -> bool:
    """Whether a path such as "LayerNorm_0/scale", "bn1.weight" or "batch_stats/mean" is a normalisation layer's."""
    del leaf
    return _NORMALIZATION.search(path) is not None


@method
def variance_corrected_average(
    models: PyTree,
    *,
    weights: Sequence[Scalar] | Array | None = None,
    target: Target = "others",
    self_params: PyTree | None = None,
    conservative: Scalar = 0.0,
    eps: Scalar = 1e-4,
    ignore: Choice | None = None,
) -> PyTree:
    """The mean of models, each leaf at the variance that the models have (arXiv:2404.04616).

    For models that are not yet correlated, as early in decentralized training; of models that agree it is the mean.

    Args:
      models: a list of trees, or one tree stacked on axis 0: those received from others.
      weights: one number >= 0 for each model; only their ratios count. None: equal.
      target: variance of the result: the mean of the models' ("others"), that of `self_params` ("self"), or both,
        weighted like the parameters ("mix").
      self_params: the own tree; "self", "mix" and a `conservative` above 0 need it.
      conservative: share of the own parameters in the average, in [0, 1].
      eps: added to variances; above those of a leaf, it switches the correction off.
      ignore: leaves that are only averaged: a (prefix) tree of bools, f(path, leaf) or f(tree) -> bools. None: the
        parameters and statistics of normalisation layers, by their names. Leaves of one entry always are.

    Returns:
      One tree in the models' dtypes, computed in float32 or better; integer leaves are the first model's.

    Raises:
      ValueError: `self_params` is missing, trees that differ (the first leaf is named), NaN in a model, an unknown
        `target`, or a number out of its range.
    """
    choice("target", target, Target)
    share = number("conservative", conservative, "[0, 1]")
    if self_params is None and (target != "others" or isinstance(share, Tracer) or share > 0):
        raise ValueError(f"variance_corrected_average: target {target!r}, conservative {share} needs self_params")
    groups = [several("model", models), *([] if self_params is None else [single("self_params", self_params)])]
    matched = Matched(*groups)
    shares = per_model("weights", weights, len(groups[0].names), "[0, inf)")
    not_all_zero("weights", shares)
    return matched.merge(
        leaf,
        each={"ignored": matched.each("ignore", is_normalization if ignore is None else ignore)},
        weights=shares,
        target=target,
        conservative=share,
        eps=number("eps", eps, "[0, inf)"),
    )


PAPER = register(
    Paper(
        name="variance_corrected_average",
        title="Vanishing Variance Problem in Fully Decentralized Neural-Network Systems",
        authors=("Tian, Yongding", "Al-Ars, Zaid", "Kitsak, Maksim", "Hofstee, Peter"),
        year=2024,
        arxiv="2404.04616",
        kind="merge",
        make=variance_corrected_average,
    )
)
