"""Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time.

Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre, Rebecca Roelofs, Raphael Gontijo-Lopes, Ari S. Morcos,
Hongseok Namkoong, Ali Farhadi, Yair Carmon, Simon Kornblith, Ludwig Schmidt, 2022, arXiv:2203.05482, Recipe 1.
Diverse Weight Averaging for Out-of-Distribution Generalization: Alexandre Ramé, Matthieu Kirchmeyer, Thibaud Rahier,
Alain Rakotomamonjy, Patrick Gallinari, Matthieu Cord, 2022, arXiv:2205.09739.
Models fine-tuned from one start lie in one basin of the loss, and so does their mean.

Differs from the authors' code: nothing.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

from jax import Array

from optax_zoo._core.hyper import Scalar, choice
from optax_zoo._core.naming import method, speaker
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.trees import PyTree
from optax_zoo.merging._leaves import Matched, mean, not_all_zero, one_leaf, per_model, several, unstacked

Selection = Literal["uniform", "restricted"]
ScoreFn = Callable[[PyTree], Any]


@one_leaf()
def leaf(ws: list[Array], *, weights: list[Array]) -> Array:
    """The weighted mean."""
    return mean(ws, weights)


@method
def uniform_soup(models: PyTree, weights: Sequence[Scalar] | Array | None = None) -> PyTree:
    """The mean of all models (arXiv:2203.05482).

    Statistics of batch normalisation belong to the weights they were measured at: measure them again.

    Args:
      models: a list of trees, or one tree stacked on axis 0.
      weights: one number >= 0 for each model; only their ratios count. None: equal.

    Returns:
      One tree in the models' dtypes, averaged in float32 or better; integer leaves are the first model's.

    Raises:
      ValueError: trees that differ (the first leaf is named), NaN in a model, or weights that are no weights.
    """
    matched = Matched(several("model", models))
    shares = per_model("weights", weights, len(matched.groups[0].names), "[0, inf)")
    not_all_zero("weights", shares)
    return matched.merge(leaf, weights=shares)


@method
def greedy_soup(
    models: PyTree, score_fn: ScoreFn, scores: Sequence[float] | Array | None = None
) -> tuple[PyTree, list[int]]:
    """The greedy soup (arXiv:2203.05482, Recipe 1): from the best model on, what improves the mean is mixed in.

    The order is that of the models' own scores; ties keep the given order. It runs on the host.

    Args:
      models: a list of trees, or one tree stacked on axis 0.
      score_fn: score of a tree on held-out data, higher is better; called once for each model and each candidate.
      scores: the models' own scores where they are known.

    Returns:
      The soup, which scores no worse than the best model, and the numbers of the models in it in the order in which
      they were mixed in.

    Raises:
      ValueError: trees that differ (the first leaf is named), NaN in a model, or a score that is NaN.
    """
    return _grown(models, score_fn, scores, operator.gt)


@method
def diwa(models: PyTree, score_fn: ScoreFn | None = None, selection: Selection = "uniform") -> tuple[PyTree, list[int]]:
    """Diverse weight averaging (arXiv:2205.09739) of runs that share their initialisation.

    Args:
      models: a list of trees, or one tree stacked on axis 0: runs of mildly different hyper-parameters.
      score_fn: score of a tree on held-out data, higher is better; "restricted" needs it.
      selection: "uniform" averages all runs; "restricted" goes through them, the best first, and takes each that does
        not lower the score of the mean (`greedy_soup` wants it raised).

    Returns:
      The mean and the numbers of the models in it in the order in which they were taken.

    Raises:
      ValueError: an unknown `selection`, no `score_fn` for "restricted", trees that differ (the first leaf is named),
        NaN in a model, or a score that is NaN.
    """
    choice("selection", selection, Selection)
    if selection == "restricted":
        if score_fn is None:
            raise ValueError("diwa: selection 'restricted' needs score_fn")
        return _grown(models, score_fn, None, operator.ge)
    group = several("model", models)
    return uniform_soup(models), list(range(len(group.names)))


def _grown(
    models: PyTree, score_fn: ScoreFn, given: Any, accepts: Callable[[float, float], bool]
) -> tuple[PyTree, list[int]]:
    """The mean of the models that `accepts(score of the mean with the next one, score so far)` took, best first."""
    group = several("model", models)
    matched, trees = Matched(group), unstacked(group)
    matched.refuse_nans()
    if given is None:
        scores = [_score(score_fn, tree, name) for name, tree in zip(group.names, trees, strict=True)]
    else:
        scores = [float(score) for score in per_model("scores", given, len(trees), "[-inf, inf]")]
    order = sorted(range(len(trees)), key=lambda i: -scores[i])
    selected, soup, best = order[:1], trees[order[0]], scores[order[0]]
    for i in order[1:]:
        candidate = matched.merge(leaf, weights=[float(j in (*selected, i)) for j in range(len(trees))])
        score = _score(score_fn, candidate, f"the mean with {group.names[i]}")
        if accepts(score, best):
            selected, soup, best = [*selected, i], candidate, score
    return soup, selected


def _score(score_fn: ScoreFn, tree: PyTree, name: str) -> float:
    score = float(score_fn(tree))
    if math.isnan(score):
        raise ValueError(f"{speaker()}: score_fn of {name} is NaN")
    return score


PAPER = register(
    Paper(
        name="uniform_soup",
        title="Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing"
        " inference time",
        authors=(
            "Wortsman, Mitchell",
            "Ilharco, Gabriel",
            "Gadre, Samir Yitzhak",
            "Roelofs, Rebecca",
            "Gontijo-Lopes, Raphael",
            "Morcos, Ari S.",
            "Namkoong, Hongseok",
            "Farhadi, Ali",
            "Carmon, Yair",
            "Kornblith, Simon",
            "Schmidt, Ludwig",
        ),
        year=2022,
        arxiv="2203.05482",
        kind="merge",
        make=uniform_soup,
    )
)
GREEDY = register(dataclasses.replace(PAPER, name="greedy_soup", algorithm="Recipe 1", make=greedy_soup))
DIWA = register(
    Paper(
        name="diwa",
        title="Diverse Weight Averaging for Out-of-Distribution Generalization",
        authors=(
            "Ramé, Alexandre",
            "Kirchmeyer, Matthieu",
            "Rahier, Thibaud",
            "Rakotomamonjy, Alain",
            "Gallinari, Patrick",
            "Cord, Matthieu",
        ),
        year=2022,
        arxiv="2205.09739",
        kind="merge",
        make=diwa,
    )
)
