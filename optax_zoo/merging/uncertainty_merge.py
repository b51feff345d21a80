"""Model Merging by Uncertainty-Based Gradient Matching.

Nico Daheim, Thomas Möllenhoff, Edoardo Maria Ponti, Iryna Gurevych, Mohammad Emtiyaz Khan, 2023, arXiv:2310.12808.
Task arithmetic whose tasks are weighted, entry by entry, by the curvature of their losses, so that the merged model
comes near the one trained on all tasks.

Differs from the authors' code: `alpha` may be a list, one for each task, as in the paper; entries in which no loss is
curved follow task arithmetic, the limit of small `delta0`, where their code divides 0 by 0.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from optax_zoo._core.hyper import Scalar, number
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.trees import PyTree
from optax_zoo.merging._leaves import Matched, added, one_leaf, per_model, several, single


@one_leaf()
def leaf(
    ws: list[Array],
    base: Array,
    hessians: list[Array],
    hessian_base: Array,
    *,
    alphas: list[Array],
    scales: list[Array],
    base_hessian_scale: Array,
    delta0: Array,
) -> Array:
    """base + sum_t alpha_t (H0 + s_t h_t) / Hbar (w_t - base) with Hbar = H0 + sum_t alpha_t s_t h_t."""
    h0 = base_hessian_scale * hessian_base + delta0
    hs = [s * h for s, h in zip(scales, hessians, strict=True)]
    tasks = [alpha * (w - base) for alpha, w in zip(alphas, ws, strict=True)]
    h_bar = h0 + added([alpha * h for alpha, h in zip(alphas, hs, strict=True)])
    weighted = added([(h0 + h) * task for h, task in zip(hs, tasks, strict=True)])
    flat = h_bar == 0
    return base + jnp.where(flat, added(tasks), weighted / jnp.where(flat, 1.0, h_bar))


@method
def uncertainty_merge(
    base: PyTree,
    models: PyTree,
    hessian_base: PyTree,
    hessians: PyTree,
    *,
    alpha: Scalar | Sequence[Scalar] = 1.0,
    hessian_scales: Sequence[Scalar] | Array | None = None,
    base_hessian_scale: Scalar = 1.0,
    delta0: Scalar = 0.0,
) -> PyTree:
    """Uncertainty-based gradient matching (arXiv:2310.12808).

    Args:
      base: the tree from which all models were fine-tuned.
      models: a list of trees, or one tree stacked on axis 0.
      hessian_base: diagonal Hessian or Fisher information of the base's loss, in a tree like it.
      hessians: those of the models' losses. Means over examples need their data sets' sizes as scales.
      alpha: weight of the tasks: one number, or one for each.
      hessian_scales: factor >= 0 of each of `hessians`. None: 1.
      base_hessian_scale: factor >= 0 of `hessian_base`.
      delta0: curvature >= 0 of the base's prior, added to every entry of its Hessian.

    Returns:
      One tree in the models' dtypes, computed in float32 or better; integer leaves are the first model's.

    Raises:
      ValueError: trees that differ (the first leaf is named), NaN in one of them, or a number out of its range.
    """
    models_, hessians_ = several("model", models), several("hessian", hessians, same_dtype=False)
    count = len(models_.names)
    if len(hessians_.names) != count:
        raise ValueError(f"uncertainty_merge: {count} models need as many hessians, got {len(hessians_.names)}")
    alphas = alpha if isinstance(alpha, Sequence) or np.ndim(alpha) else [alpha] * count
    return Matched(
        models_, single("base", base), hessians_, single("hessian_base", hessian_base, same_dtype=False)
    ).merge(
        leaf,
        alphas=per_model("alpha", alphas, count, "(-inf, inf)"),
        scales=per_model("hessian_scales", hessian_scales, count, "[0, inf)"),
        base_hessian_scale=number("base_hessian_scale", base_hessian_scale, "[0, inf)"),
        delta0=number("delta0", delta0, "[0, inf)"),
    )


PAPER = register(
    Paper(
        name="uncertainty_merge",
        title="Model Merging by Uncertainty-Based Gradient Matching",
        authors=(
            "Daheim, Nico",
            "Möllenhoff, Thomas",
            "Ponti, Edoardo Maria",
            "Gurevych, Iryna",
            "Khan, Mohammad Emtiyaz",
        ),
        year=2023,
        arxiv="2310.12808",
        kind="merge",
        make=uncertainty_merge,
    )
)
