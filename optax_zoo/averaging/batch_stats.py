"""Batch statistics of averaged weights, for Flax.

Batch normalisation keeps the mean and the variance of what the weights made of the training data. Averaged weights make
something else of it, so their statistics are measured again (arXiv:1803.05407, Section 3.2).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from optax_zoo._core.averages import approach
from optax_zoo._core.naming import method
from optax_zoo._core.trees import PyTree

Forward = Callable[[Any, PyTree], Any]
Statistics = dict[tuple[Any, ...], dict[str, Array]]
"""Mean and variance of each layer by its path."""


@method
def recompute_batch_stats(
    model: Any,
    batches: Iterable[PyTree],
    variables: Mapping[str, Any] | None = None,
    *,
    forward: Forward | None = None,
    rngs: Mapping[str, Array] | None = None,
) -> Any:
    """Measures the statistics of all `BatchNorm` layers anew over `batches`.

    Each batch counts by its size b: after n examples its share in the statistics is b / (n + b), so that the means are
    those of the whole data, and variances the mean of those within batches. About 50 batches are enough. Nothing is
    differentiated and no other variable changes. Layers that `forward` runs on their stored statistics keep them.

        # linen
        average = eval_params(opt_state, params)
        variables = recompute_batch_stats(
            model, batches, {"params": average, "batch_stats": batch_stats},
            forward=lambda model, batch: model(batch["image"], train=True))
        # nnx
        nnx.update(model, eval_params(opt_state, nnx.state(model, nnx.Param)))
        model = recompute_batch_stats(model, batches, forward=lambda model, batch: model(batch["image"]))

    Args:
      model: a `flax.linen.Module`, or a `flax.nnx.Module`, whose `BatchNorm` layers are put into train mode; its
        dropout stays in the mode it is in.
      batches: trees of arrays whose first axis counts examples.
      variables: linen: the variables, "batch_stats" among them; nnx: None.
      forward: `forward(model, batch)` runs the model, a linen one in train mode; jitted. None: `model(batch)`.
      rngs: linen: keys that the model draws from, such as "dropout"; other ones each batch.

    Returns:
      linen: `variables` with new "batch_stats"; nnx: a copy of the model with new ones.

    Raises:
      ImportError: Flax is not installed.
      TypeError: `model` is no Flax module.
      ValueError: there is no batch, a batch without examples, no "batch_stats" in `variables`, or no `BatchNorm` that
        ran in train mode.
    """
    from flax import linen, nnx

    forward = forward or (lambda model, batch: model(batch))
    if isinstance(model, linen.Module):
        if not (variables or {}).get("batch_stats"):
            raise ValueError("recompute_batch_stats: a linen model needs variables with 'batch_stats' in them")
        return _linen(model, batches, dict(variables or {}), forward, dict(rngs or {}))
    if isinstance(model, nnx.Module):
        return _nnx(model, batches, forward)
    raise TypeError(f"recompute_batch_stats: model must be a flax.linen.Module or a flax.nnx.Module, got {model!r}")


def _linen(
    model: Any, batches: Iterable[PyTree], variables: dict[str, Any], forward: Forward, rngs: dict[str, Array]
) -> dict[str, Any]:
    from flax import linen

    momenta: dict[tuple[str, ...], float] = {}

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, linen.BatchNorm) and context.method_name == "__call__":
            stored = (module.use_running_average, kwargs.get("use_running_average"), *args[1:2])
            if not any(stored) and module.momentum < 1.0:
                momenta[module.path] = module.momentum
        return call(*args, **kwargs)

    @jax.jit
    def measure(variables: dict[str, Any], rngs: dict[str, Array], batch: PyTree) -> Statistics:
        def run(batch_stats: PyTree) -> PyTree:
            with linen.intercept_methods(note):
                apply = linen.apply(forward, model, mutable=["batch_stats"])
                return apply({**variables, "batch_stats": batch_stats}, batch, rngs=rngs)[1]["batch_stats"]

        jax.eval_shape(run, variables["batch_stats"])
        zeros = _replaced(variables["batch_stats"], lambda path, x: jnp.zeros_like(x) if path[:-1] in momenta else x)
        new = run(zeros)
        # Starting at 0, the running average of one batch is 1 - momentum times its statistic.
        return {path: jax.tree.map(lambda x, m=m: x / (1.0 - m), dict(_at(new, path))) for path, m in momenta.items()}

    measured = (
        (measure(variables, {name: jax.random.fold_in(key, i) for name, key in rngs.items()}, batch), size)
        for i, (batch, size) in enumerate(_sized(batches))
    )
    statistics = _accumulated(measured)

    new = _replaced(variables["batch_stats"], lambda path, old: statistics.get(path[:-1], {}).get(path[-1], old))
    return {**variables, "batch_stats": new}


def _replaced(tree: PyTree, rule: Callable[[tuple[str, ...], Array], Array]) -> PyTree:
    """Maps `rule(names on the way, leaf)` over nested dicts."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: rule(tuple(entry.key for entry in path), leaf), tree)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _nnx(model: Any, batches: Iterable[PyTree], forward: Forward) -> Any:
    from flax import nnx

    graphdef, start = nnx.split(model)

    def layers(model: Any) -> list[tuple[tuple[Any, ...], Any]]:
        return [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.BatchNorm)]

    @jax.jit
    def measure(state: Any, batch: PyTree) -> tuple[Statistics, Any]:
        model = nnx.merge(graphdef, state)
        for _, layer in layers(model):
            layer.momentum, layer.use_running_average = 0.0, False
            layer.mean[...] = jnp.zeros_like(layer.mean[...])
            layer.var[...] = jnp.full_like(layer.var[...], UNTOUCHED)
        forward(model, batch)
        measured = {path: {"mean": layer.mean[...], "var": layer.var[...]} for path, layer in layers(model)}
        return measured, nnx.state(model)

    def measured() -> Iterator[tuple[Statistics, int]]:
        state = start
        for batch, size in _sized(batches):
            statistics, state = measure(state, batch)
            ran = {path: pair for path, pair in statistics.items() if not (pair["var"] == UNTOUCHED).all()}
            yield ran, size

    statistics = _accumulated(measured())
    renewed = nnx.merge(graphdef, start)
    for path, layer in layers(renewed):
        if path in statistics:
            layer.mean[...], layer.var[...] = statistics[path]["mean"], statistics[path]["var"]
    return renewed


UNTOUCHED = -1.0
"""No variance: where it is found after a step, the layer did not measure one."""


def _sized(batches: Iterable[PyTree]) -> Iterator[tuple[PyTree, int]]:
    """Each batch and the number of examples in it."""
    for i, batch in enumerate(batches):
        sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"recompute_batch_stats: the first axis of every array of a batch must count its examples;"
                f" batch {i} has first axes {sorted(sizes)}"
            )
        yield batch, sizes.pop()


def _accumulated(measured: Iterable[tuple[Statistics, int]]) -> Statistics:
    """The statistics of all batches, each by the number of its examples."""
    total: Statistics = {}
    n = 0
    for statistics, b in measured:
        if not statistics:
            raise ValueError("recompute_batch_stats: no BatchNorm ran in train mode")
        n += b
        total = jax.tree.map(lambda old, new, share=b / n: approach(old, new, share), total or statistics, statistics)
    if not n:
        raise ValueError("recompute_batch_stats: there is no batch")
    return total
