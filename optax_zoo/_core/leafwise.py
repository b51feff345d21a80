"""A rule for ONE leaf -> a gradient transformation over any tree.

A method declares a NamedTuple state (`count`, then scalars, then params-shaped trees) and a rule that reads
like the algorithm box of its paper. The engine does the rest once for all methods: it resolves schedules and
computes the step's scalars once, lifts leaves to at least float32, stores slots back in their own dtype, traces
the rule once per leaf shape, sums over leaves and mesh axes, and answers mismatched trees with one sentence.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optax_zoo._core import hyper as hp
from optax_zoo._core import mesh
from optax_zoo._core.blocks import is_spec
from optax_zoo._core.naming import speaker
from optax_zoo._core.slots import Slot, Statistic, widest
from optax_zoo._core.trees import Leaves, PyTree, per_leaf, stands_for_params
from optax_zoo._core.views import choose

Rule: TypeAlias = Callable[..., Any]
Field: TypeAlias = Slot | tuple[Slot, ...] | Statistic | float | Callable[[], Array] | None


def leafwise(
    state_type: type[Any],
    *,
    hyper: Mapping[str, Any] | None = None,
    ranges: Mapping[str, str] | None = None,
    sums: Rule | None = None,
    tree: Callable[[Any, list[Array]], Mapping[str, Any]] | None = None,
    step: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    static: Mapping[str, Any] | None = None,
    needs: tuple[str, ...] = (),
    copy_integers: bool = False,
    real_only: bool = False,
    **fields: Field,
) -> Callable[[Rule], optax.GradientTransformationExtraArgs]:
    """Turns `rule(g, s, h)` for one leaf into a transformation.

    The rule and `sums` ask for more by the names of their parameters after h: `p` is the leaf of the parameters, any
    other that of the extra argument of `update` of this name, a tree like the gradient; with a default it is optional.

    Args:
      state_type: NamedTuple whose fields are `count` and then `fields`, in this order. In the rule `s` is the
        same class holding this leaf's arrays (and the scalars). A field may follow that a wrapper fills itself.
      hyper: numbers, arrays or schedules; in the rule `h.name` is this step's value. `h.t` is the number of the
        step being taken (1, 2, ...) as a floating scalar, `h.count` the 0-based int32 count.
      ranges: intervals such as `"[0, 1)"` for names that `hyper.RANGES` lacks or has otherwise.
      sums: `sums(g, s, h)` -> dict of one leaf's partial sums; `h.name` is the sum over all leaves and devices.
      tree: `tree(h, gs)` -> dict of scalars from the list of all gradient leaves, for what no sum can express, such
        as an order statistic; `h.name`.
      step: `step(h, s)` -> dict of scalars computed once per step; `h.name` in the rule. A name that is a scalar
        field of the state becomes its new value.
      static: per leaf Python values passed to the rule by keyword: a constant, a (prefix) tree or a callable of
        the gradients' tree. A rule that takes the keyword `spec` is given the leaf's PartitionSpec, from the extra
        argument `param_specs`, or None.
      needs: extra arguments of `update` (such as `value`) that the step cannot do without; `h.name`.
      copy_integers: integer leaves are copied into every slot instead of being refused.
      real_only: complex leaves are refused by path.
      **fields: a `Slot` for a params-shaped tree, a tuple of slots for several, a `Statistic` for something else of
        each leaf, a number for a scalar's first value, a function of no argument for a small array's, None for a field
        left out.

    Returns:
      A decorator that takes the rule and returns the transformation. The rule returns (update, new s).

    Raises (in `update`):
      ValueError: a needed argument is missing, or trees do not match; the sentence names the method and the path.
      TypeError: an integer leaf, or with `real_only` a complex one.
    """
    name = speaker()
    values = hp.checked(hyper or {}, ranges or {})
    slots = {field: slot for field, slot in fields.items() if isinstance(slot, Slot | tuple)}
    statistics = {field: slot for field, slot in fields.items() if isinstance(slot, Statistic)}
    columned = (*slots, *statistics)
    scalars = {field: first for field, first in fields.items() if isinstance(first, int | float) or callable(first)}
    declared = ("count", *fields)
    if state_type._fields[: len(declared)] != declared:
        raise TypeError(f"{name}: {state_type.__name__} must start with the fields {declared}")

    def build(rule: Rule) -> optax.GradientTransformationExtraArgs:
        asked = _asked(rule) | (_asked(sums) if sums else {})
        run = _jitted(rule, state_type)
        run_sums = _jitted(sums, state_type) if sums else None
        wants_spec = "spec" in _static_names(rule)

        def init(params: PyTree) -> Any:
            if not copy_integers:
                Leaves(name, "params", params).only_inexact(real_only)
            trees = jax.tree.map(lambda slot: jax.tree.map(slot.init, params), slots)
            trees |= {field: statistic_of(slot, params) for field, slot in statistics.items()}
            firsts = {
                field: jnp.array(first() if callable(first) else first, hp.scalar_dtype())
                for field, first in scalars.items()
            }
            rest = dict.fromkeys(state_type._fields[1:])
            return state_type(jnp.zeros((), jnp.int32), **{**rest, **firsts, **trees})

        def statistic_of(slot: Statistic, params: PyTree) -> PyTree:
            if stands_for_params(params):
                return jnp.zeros(())
            leaves = Leaves(name, "params", params)
            chosen = {key: per_leaf(leaves, key, value) for key, value in (static or {}).items()}
            return leaves.unflatten(
                [
                    leaf if leaf is None else slot.first(leaf, **{key: column[i] for key, column in chosen.items()})
                    for i, leaf in enumerate(leaves.values)
                ]
            )

        def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
            leaves = Leaves(name, "the gradient", updates)
            if not copy_integers:
                leaves.only_inexact(real_only)
            beside = _given(leaves, asked, params, extra)
            columns = {field: _apart(leaves, field, fields[field], getattr(state, field)) for field in columned}
            static_values = {key: per_leaf(leaves, key, value) for key, value in (static or {}).items()}
            if wants_spec:
                static_values["spec"] = _by_path(leaves, "param_specs", extra.get("param_specs"), is_spec)

            count = state.count
            h = hp.resolve(values, count)
            h |= {"count": count, "t": (count + 1).astype(hp.scalar_dtype())}
            h |= {key: hp.as_scalar(_needed(name, key, extra)) for key in needs}

            def leaf_args(i: int) -> tuple[Any, ...]:
                return leaves.values[i], *({key: c[i] for key, c in group.items()} for group in (columns, beside))

            present = [i for i, leaf in enumerate(leaves.values) if leaf is not None]
            live = [i for i in present if jnp.issubdtype(jnp.result_type(leaves.values[i]), jnp.inexact)]
            known = {field: getattr(state, field) for field in scalars}
            if run_sums:
                h |= mesh.sum_leaves([run_sums(*leaf_args(i), known, _Scalars.of(h)) for i in live])
            if tree and live:
                h |= tree(SimpleNamespace(**h), [leaves.values[i] for i in live])
            if step and (live or not run_sums):
                h |= step(SimpleNamespace(**h), state)

            outs = list(leaves.values)
            new_columns = {field: list(column) for field, column in columns.items()}
            packed = _Scalars.of(h)
            for i in present:
                if not jnp.issubdtype(jnp.result_type(outs[i]), jnp.inexact):
                    new = jax.tree.map(lambda _, i=i: outs[i], {field: c[i] for field, c in columns.items()})
                else:
                    chosen = {key: column[i] for key, column in static_values.items()}
                    outs[i], new = run(*leaf_args(i), known, packed, **chosen)
                for field, value in new.items():
                    new_columns[field][i] = value

            news = {f: jnp.asarray(h[f], getattr(state, f).dtype) for f in scalars if f in h}
            for field, column in new_columns.items():
                news[field] = _together(leaves, fields[field], column, getattr(state, field))
            return leaves.unflatten(outs), state._replace(count=optax.safe_increment(count), **news)

        return optax.GradientTransformationExtraArgs(init, update)

    return build


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Scalars:
    """A step's scalars: arrays, traced, and Python values, which stay constants of the rule."""

    arrays: dict[str, Any]
    fixed: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, h: Mapping[str, Any]) -> "_Scalars":
        arrays = {key: v for key, v in h.items() if any(isinstance(x, Array) for x in jax.tree.leaves(v))}
        return cls(arrays, tuple(sorted((key, v) for key, v in h.items() if key not in arrays)))


def _jitted(rule: Rule, state_type: type[Any]) -> Rule:
    """The rule on one leaf, traced once per shape and dtype: lifts, runs, stores back."""

    asked = _asked(rule)

    def one_leaf(g: Array, columns: dict, beside: dict, known: dict, h: _Scalars, **chosen: Any) -> Any:
        wide = widest(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves((g, columns, beside))))
        real = jnp.finfo(wide).dtype

        def lift(x: Array) -> Array:
            if not jnp.issubdtype(x.dtype, jnp.inexact):
                return x
            return x.astype(wide if jnp.iscomplexobj(x) else real)

        def scalar(x: Any) -> Any:
            return x.astype(real) if isinstance(x, Array) and jnp.issubdtype(x.dtype, jnp.floating) else x

        rest = dict.fromkeys(state_type._fields)
        s = state_type(**{**rest, **jax.tree.map(scalar, known), **jax.tree.map(lift, columns)})
        namespace = SimpleNamespace(**jax.tree.map(scalar, h.arrays), **dict(h.fixed))
        more = {key: lift(leaf) for key, leaf in beside.items() if key in asked}
        with promotion(wide):
            out = rule(lift(g), s, namespace, **more, **chosen)
        if not isinstance(out, tuple):
            return out
        u, new = out
        stored = {
            field: jax.tree.map(lambda old, x: x.astype(old.dtype), column, getattr(new, field))
            for field, column in columns.items()
            if column is not None
        }
        return u.astype(g.dtype), {**columns, **stored}

    return jax.jit(one_leaf, static_argnames=_static_names(rule))


def promotion(dtype: jnp.dtype) -> contextlib.AbstractContextManager[Any]:
    """A complex leaf meets real scalars and real slots; all else keeps the user's promotion mode."""
    return (
        jax.numpy_dtype_promotion("standard")
        if jnp.issubdtype(dtype, jnp.complexfloating)
        else contextlib.nullcontext()
    )


def _static_names(rule: Rule) -> tuple[str, ...]:
    return tuple(n for n, p in inspect.signature(rule).parameters.items() if p.kind is p.KEYWORD_ONLY)


def _asked(rule: Rule) -> dict[str, bool]:
    """The trees whose leaves a rule asks for: whether it cannot do without."""
    beyond = list(inspect.signature(rule).parameters.values())[3:]
    return {p.name: p.default is p.empty for p in beyond if p.kind is not p.KEYWORD_ONLY}


def _given(
    leaves: Leaves, asked: Mapping[str, bool], params: PyTree | None, extra: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """The leaves of the trees that are asked for and there."""
    given: dict[str, list[Any]] = {}
    for key, required in asked.items():
        if key == "p":
            if params is None:
                raise ValueError(f"{leaves.speaker}: needs params; call update(grads, state, params)")
            given[key] = leaves.match("params", params)
        elif required or extra.get(key) is not None:
            given[key] = _by_path(leaves, key, _needed(leaves.speaker, key, extra))
    for key, column in given.items():
        leaves.same_shapes("params" if key == "p" else key, column)
    return given


def _by_path(leaves: Leaves, key: str, tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """The entries of `tree`, which may hold more than these leaves, or stand for several."""
    chosen = iter(choose(leaves.speaker, key, tree, leaves.tree, is_leaf))
    return [leaf if leaf is None else next(chosen) for leaf in leaves.values]


def _apart(leaves: Leaves, field: str, declared: Field, tree: PyTree) -> list[Any]:
    """What a field of the state holds of each leaf."""
    trees = tree if isinstance(declared, tuple) else (tree,)
    columns = [leaves.match(f"the state's {field}", one) for one in trees]
    for column in columns if isinstance(declared, Slot | tuple) else ():
        leaves.same_shapes(f"the state's {field}", column)
    if not isinstance(declared, tuple):
        return columns[0]
    return [tuple(column[i] for column in columns) for i in range(len(leaves.values))]


def _together(leaves: Leaves, declared: Field, column: list[Any], before: PyTree) -> PyTree:
    """The field of the state that `_apart` takes apart."""
    if not isinstance(declared, tuple):
        return leaves.unflatten(column)
    return tuple(leaves.unflatten([entry[k] for entry in column]) for k in range(len(before)))


def _needed(name: str, key: str, extra: Mapping[str, Any]) -> Any:
    if extra.get(key) is None:
        raise ValueError(
            f"{name}: needs {key}; call update(grads, state, params, {key}=...) or use optax_zoo.train_step"
        )
    return extra[key]
