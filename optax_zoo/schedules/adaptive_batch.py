"""AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods.

Tim Tsz-Kit Lau, Han Liu, Mladen Kolar, 2024, arXiv:2402.11215, Section 4.
The batch grows when its gradient can no longer be told from noise: the norm test asks for a small variance of the
gradient, the inner-product test for a small variance along it, the orthogonality test for a small one across it.

Differs from the authors' code: inner products are those of the whole gradient; theirs sum over leaves the variances of
each leaf's own products (`per_leaf=True`), which drops what leaves have in common.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core.hyper import Scalar, ScalarOrSchedule, check_range, choice, number, scalar_dtype
from optax_zoo._core.naming import method
from optax_zoo._core.paper import Paper, register
from optax_zoo._core.slots import at_least_float32
from optax_zoo._core.trees import PyTree

Test = Literal["norm", "inner_product", "augmented"]


class BatchTest(NamedTuple):
    """What a test found on one batch; scalars."""

    next_batch: Array  # examples wanted, whole
    variance: Array  # what was tested
    squared_norm: Array  # of the batch gradient


@method
def norm_test(per_example_grads: PyTree, eta: Scalar, *, axis_name: str | None = None) -> BatchTest:
    """The norm test: b or more, until Var(g_i) / b <= eta^2 |g|^2 (arXiv:2402.11215, eq. 4). Jittable.

    Args:
      per_example_grads: a tree of shape (b, ...) leaves, b >= 2.
      eta: tolerance, > 0.
      axis_name: a mesh axis over which the batch is split, inside shard_map.

    Returns:
      next_batch = ceil(max(b, Var / (eta^2 |g|^2))) with Var the sample variance summed over all coordinates;
      infinite where the gradient is 0 and its variance is not.

    Raises:
      ValueError: a number out of its range, or leaves without a common leading axis of at least 2.
    """
    sample = _Sample.of(per_example_grads, axis_name)
    spread = sum((sample.variance(sample.centred(g)) for g in sample.leaves), start=jnp.zeros((), scalar_dtype()))
    return sample.wanting(spread, number("eta", eta, "(0, inf)"), power=1)


@method
def inner_product_test(
    per_example_grads: PyTree, theta: Scalar, *, per_leaf: bool = False, axis_name: str | None = None
) -> BatchTest:
    """The inner-product test: b or more, until Var(<g_i, g>) / b <= theta^2 |g|^4 (arXiv:2402.11215). Jittable.

    Args:
      per_example_grads: a tree of shape (b, ...) leaves, b >= 2.
      theta: tolerance, > 0.
      per_leaf: sums the variances of each leaf's inner products, as the authors' code does.
      axis_name: a mesh axis over which the batch is split, inside shard_map.

    Returns:
      As `norm_test`, with the variance of the inner products.
    """
    sample = _Sample.of(per_example_grads, axis_name)
    products = sample.products()
    tested = products if per_leaf else [jnp.sum(jnp.stack(products), axis=0)]
    variances = [sample.variance(sample.centred(x)) for x in tested]
    return sample.wanting(sum(variances), number("theta", theta, "(0, inf)"), power=2)


@method
def orthogonality_test(
    per_example_grads: PyTree, nu: Scalar, *, per_leaf: bool = False, axis_name: str | None = None
) -> BatchTest:
    """The orthogonality test: b or more, until the variance across the gradient is small (arXiv:2402.11215). Jittable.

    Args:
      per_example_grads: a tree of shape (b, ...) leaves, b >= 2.
      nu: tolerance, > 0.
      per_leaf: projects each leaf on its own gradient, as the authors' code does.
      axis_name: a mesh axis over which the batch is split, inside shard_map.

    Returns:
      As `norm_test`, with the variance of g_i - <g_i, g> / |g|^2 g.
    """
    sample = _Sample.of(per_example_grads, axis_name)
    products, norms = sample.products(), sample.squared_norms
    if not per_leaf:
        products = [jnp.sum(jnp.stack(products), axis=0)] * len(products)
        norms = [jnp.sum(jnp.stack(norms))] * len(norms)
    spread = jnp.zeros((), scalar_dtype())
    for g, mean, product, norm in zip(sample.leaves, sample.means, products, norms, strict=True):
        along = product / jnp.where(norm > 0, norm, 1)
        across = g - along.reshape(-1, *[1] * mean.ndim) * mean[None]
        spread += sample.variance(sample.centred(across))
    return sample.wanting(spread, number("nu", nu, "(0, inf)"), power=1)


class _Sample(NamedTuple):
    """Per-example gradients, perhaps one device's share of them, and their mean."""

    leaves: list[Array]
    means: list[Array]
    squared_norms: list[Array]
    size: int
    axis_name: str | None

    @classmethod
    def of(cls, per_example_grads: PyTree, axis_name: str | None) -> "_Sample":
        leaves = jax.tree.leaves(per_example_grads)
        sizes = {g.shape[0] if jnp.ndim(g) else 0 for g in leaves}
        size = sizes.pop() if len(sizes) == 1 else 0
        size *= jax.lax.axis_size(axis_name) if axis_name else 1
        if size < 2:
            raise ValueError(
                "adaptive_batch: per_example_grads must have one leading axis of at least 2 examples, got shapes"
                f" {[jnp.shape(g) for g in leaves]}"
            )
        leaves = [jnp.asarray(g, at_least_float32(g.dtype)) for g in leaves]
        empty = cls([], [], [], size, axis_name)
        means = [empty.total(g.sum(0)) / size for g in leaves]
        return cls(leaves, means, [jnp.sum(m * m) for m in means], size, axis_name)

    def total(self, x: Array) -> Array:
        return jax.lax.psum(x, self.axis_name) if self.axis_name else x

    def centred(self, x: Array) -> Array:
        return x - self.total(x.sum(0))[None] / self.size

    def variance(self, centred: Array) -> Array:
        return self.total(jnp.sum(centred * centred)) / (self.size - 1)

    def products(self) -> list[Array]:
        """<g_i, mean> of each leaf, shape (examples here,)."""
        return [jnp.sum(g * m[None], axis=range(1, g.ndim)) for g, m in zip(self.leaves, self.means, strict=True)]

    def wanting(self, variance: Array | float, tolerance: Scalar, power: int) -> BatchTest:
        norm = jnp.asarray(sum(self.squared_norms), scalar_dtype())
        spread = jnp.asarray(variance, scalar_dtype())
        allowed = tolerance**2 * norm**power
        wanted = jnp.where(spread > 0, spread / allowed, 0.0)
        return BatchTest(jnp.ceil(jnp.maximum(wanted, self.size)), spread, norm)


class AdaptiveBatchState(NamedTuple):
    """What the last test found."""

    count: Array  # steps taken
    next_batch: Array  # examples wanted, whole
    variance: Array  # what was tested
    squared_norm: Array  # of the batch gradient


@method
def adaptive_batch(
    test: Test = "norm",
    *,
    eta: ScalarOrSchedule = 0.1,
    theta: ScalarOrSchedule = 0.1,
    nu: ScalarOrSchedule = 0.3,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Tests every batch that it is shown the per-example gradients of; passes updates through (arXiv:2402.11215).

    `update(grads, state, params, per_example_grads=...)` tests, `update(grads, state, params)` does not. A batch size
    is a shape, so it changes on the host: `next_batch_size(opt_state, ...)`. The paper's base is AdaGrad.

    Args:
      test: "norm", "inner_product", or "augmented": the inner-product and the orthogonality test, both.
      eta: tolerance of the norm test, > 0.
      theta: tolerance of the inner-product test, > 0.
      nu: tolerance of the orthogonality test, > 0.
      axis_name: a mesh axis over which the batch is split, inside shard_map.

    Returns:
      A transformation, to be put first in a chain.

    Raises:
      ValueError: a number out of its range or an unknown `test`.
    """
    choice("test", test, Test)
    tolerances = {"eta": eta, "theta": theta, "nu": nu}
    for name, value in tolerances.items():
        check_range(name, value, "(0, inf)")

    def init(params: PyTree) -> AdaptiveBatchState:
        del params
        return AdaptiveBatchState(jnp.zeros((), jnp.int32), *(jnp.zeros((), scalar_dtype()) for _ in range(3)))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        del params
        now = {name: value(state.count) if callable(value) else value for name, value in tolerances.items()}
        grads = extra.get("per_example_grads")
        count = jnp.asarray(optax.safe_increment(state.count))
        if grads is None:
            return updates, state._replace(count=count)
        if test == "norm":
            found = norm_test(grads, now["eta"], axis_name=axis_name)
        else:
            found = inner_product_test(grads, now["theta"], axis_name=axis_name)
        if test == "augmented":
            across = orthogonality_test(grads, now["nu"], axis_name=axis_name)
            found = found._replace(next_batch=jnp.maximum(found.next_batch, across.next_batch))
        return updates, AdaptiveBatchState(count, *found)

    return optax.GradientTransformationExtraArgs(init, update)


@method
def next_batch_size(found: PyTree, batch_size: int, max_batch: int) -> int:
    """The size of the next batch, a Python integer; on the host.

    Args:
      found: what a test returned, or an optimizer state with `adaptive_batch` in it.
      batch_size: of now, >= 1; batches never shrink.
      max_batch: what fits, >= batch_size.

    Raises:
      ValueError: there is no test in `found`, the gradients were NaN, or `max_batch` is below `batch_size`.
    """
    current = int(number("batch_size", batch_size, "[1, inf)"))
    most = int(number("max_batch", max_batch, f"[{current}, inf)"))
    kinds = (BatchTest, AdaptiveBatchState)
    tests = [
        node for node in jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, kinds)) if isinstance(node, kinds)
    ]
    if not tests:
        raise ValueError(
            "next_batch_size: there is no test here; call it with norm_test(...) or a state of adaptive_batch"
        )
    wanted = float(tests[0].next_batch)
    if math.isnan(wanted):
        raise ValueError("next_batch_size: the gradients of the tested batch were not finite")
    return int(min(max(wanted, current), most))


PAPER = register(
    Paper(
        name="adaptive_batch",
        title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
        authors=("Lau, Tim Tsz-Kit", "Liu, Han", "Kolar, Mladen"),
        year=2024,
        arxiv="2402.11215",
        algorithm="Section 4",
        kind="function",
        make=adaptive_batch,
        states=(AdaptiveBatchState,),
    )
)
