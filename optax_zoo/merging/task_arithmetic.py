"""Editing Models with Task Arithmetic.

Gabriel Ilharco, Marco Tulio Ribeiro, Mitchell Wortsman, Suchin Gururangan, Ludwig Schmidt, Hannaneh Hajishirzi, Ali
Farhadi, 2022, arXiv:2212.04089.
The difference that fine-tuning makes to the weights is a task; tasks are added, and unlearned by subtraction.

Differs from the authors' code: nothing.
"""

from jax import Array

from optax_zoo._core.hyper import Scalar, number
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.trees import PyTree
from optax_zoo.merging._leaves import Matched, added, one_leaf, several, single


@one_leaf()
def leaf(ws: list[Array], base: Array, *, alpha: Array) -> Array:
    """base + alpha * sum_i (w_i - base)."""
    return base + alpha * added([w - base for w in ws])


@method
def task_arithmetic(base: PyTree, models: PyTree, alpha: Scalar = 1.0) -> PyTree:
    """base + alpha * sum_i (model_i - base) (arXiv:2212.04089).

    Args:
      base: the tree from which all models were fine-tuned.
      models: a list of trees, or one tree stacked on axis 0.
      alpha: scale of the tasks; a negative one forgets them.

    Returns:
      One tree in the models' dtypes, computed in float32 or better; integer leaves are the first model's.

    Raises:
      ValueError: trees that differ (the first leaf is named), NaN in a model, or an infinite `alpha`.
    """
    alpha = number("alpha", alpha, "(-inf, inf)")
    return Matched(several("model", models), single("base", base)).merge(leaf, alpha=alpha)


PAPER = register(
    Paper(
        name="task_arithmetic",
        title="Editing Models with Task Arithmetic",
        authors=(
            "Ilharco, Gabriel",
            "Ribeiro, Marco Tulio",
            "Wortsman, Mitchell",
            "Gururangan, Suchin",
            "Schmidt, Ludwig",
            "Hajishirzi, Hannaneh",
            "Farhadi, Ali",
        ),
        year=2022,
        arxiv="2212.04089",
        kind="merge",
        make=task_arithmetic,
    )
)
