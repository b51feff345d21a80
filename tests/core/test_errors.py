"""What a person reads after a mistake: one sentence with the names involved."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo as zoo

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
TX = zoo.ademamix(1e-3, weight_decay=0.1)

MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: zoo.ademamix(1e-3, b3=2.0), ValueError, "ademamix: b3 must be in [0, 1), got 2.0"),
    (lambda: zoo.scale_by_ademamix(b3=2.0), ValueError, "ademamix: b3 must be in [0, 1), got 2.0"),
    (lambda: zoo.ademamix(float("nan")), ValueError, "ademamix: learning_rate must be in [0, inf), got nan"),
    (lambda: zoo.ademamix(1e-3, b1=jnp.float32(1.5)), ValueError, "ademamix: b1 must be in [0, 1), got 1.5"),
    (
        lambda: zoo.ademamix(1e-3, b1="x"),
        TypeError,
        "ademamix: b1 must be a number, an array or a schedule, got 'x'",
    ),
    (
        lambda: zoo.ademamix(1e-3, weight_dekay=0.1),
        TypeError,
        "ademamix: no argument 'weight_dekay'; did you mean 'weight_decay'",
    ),
    (
        lambda: zoo.ademamix(),
        TypeError,
        "ademamix: missing a required argument: 'learning_rate'; it takes learning_rate, b1",
    ),
    (
        lambda: zoo.create("adabelif", 1e-3),
        ValueError,
        "create('adabelif'): no such method; did you mean 'adabelief'",
    ),
    (lambda: zoo.cite("adabelif"), ValueError, "cite('adabelif'): no such method; did you mean 'adabelief'"),
    (
        lambda: TX.update(PARAMS, TX.init(PARAMS)),
        ValueError,
        "ademamix: needs params; call update(grads, state, params)",
    ),
    (
        lambda: TX.update({"w": PARAMS["w"]}, TX.init(PARAMS), PARAMS),
        ValueError,
        "ademamix: the gradient and the state's m1 must have the same tree structure; the state's m1 has a leaf at"
        " ['b'], the gradient has none there",
    ),
    (
        lambda: TX.update(PARAMS, TX.init(PARAMS), {"w": PARAMS["w"], "c": PARAMS["b"]}),
        ValueError,
        "ademamix: the gradient and params must have the same tree structure; the gradient has a leaf at ['b'],"
        " params has none there",
    ),
    (
        lambda: TX.update({**PARAMS, "b": jnp.ones(3)}, TX.init(PARAMS), PARAMS),
        ValueError,
        "ademamix: at ['b'] the gradient has shape (3,) and the state's m1 has shape (2,)",
    ),
    (
        lambda: TX.init({"n": jnp.arange(3)}),
        TypeError,
        "ademamix: params at ['n'] is int32; only floating or complex leaves can be optimized"
        " (mask it, or pass None in its place)",
    ),
    (
        lambda: zoo.ademamix(1e-3, weight_decay=0.1, mask={"w": True}).update(PARAMS, TX.init(PARAMS), PARAMS),
        ValueError,
        "ademamix: mask must be a tree (or a prefix) of the gradient, PyTreeDef",
    ),
    (
        lambda: zoo.ademamix(1e-3, b1=optax.constant_schedule(0.9), b3_warmup=10),
        TypeError,
        "ademamix: b1 must be a number here, got the schedule",
    ),
    (
        lambda: zoo.ademamix(1e-3, mu_dtype="bfloat17"),
        TypeError,
        "ademamix: 'bfloat17' is not a floating dtype such as 'bfloat16'",
    ),
    (lambda: zoo.muon(1e-3, ns_dtype="int8"), TypeError, "muon: 'int8' is not a floating dtype such as 'bfloat16'"),
    (
        lambda: zoo.muon(1e-3, scaling="widht"),
        ValueError,
        "muon: scaling must be one of 'width', 'spectral', 'rms', got 'widht'; did you mean 'width'?",
    ),
    (
        lambda: zoo.ademamix(1e-3, weight_decay=0.1, mask="w").update(PARAMS, TX.init(PARAMS), PARAMS),
        TypeError,
        "ademamix: mask must hold True or False for every leaf, got 'w'",
    ),
    (
        lambda: zoo.with_ema(optax.sgd(0.1)).update({"w": PARAMS["w"]}, None, PARAMS),
        ValueError,
        "with_ema: the gradient and params must have the same tree structure; params has a leaf at ['b'],",
    ),
    (
        lambda: zoo.muon(1e-3).update({"w": PARAMS["w"]}, zoo.muon(1e-3).init(PARAMS), PARAMS),
        ValueError,
        "muon: the gradient and params must have the same tree structure; params has a leaf at ['b'],",
    ),
    (
        lambda: zoo.eval_params(zoo.with_ema(optax.sgd(0.1)).init(PARAMS), {"w": PARAMS["w"]}),
        ValueError,
        "eval_params: params and the average in the state must have the same tree structure;",
    ),
    (
        lambda: zoo.with_ema(1e-3),
        TypeError,
        "with_ema: inner must be an optax.GradientTransformation, got 0.001",
    ),
]


@pytest.mark.parametrize(("mistake", "kind", "sentence"), MISTAKES, ids=[sentence for *_, sentence in MISTAKES])
def test_a_mistake_is_answered_in_one_sentence(mistake: Callable, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match="^" + re.escape(sentence)) as caught:
        mistake()
    assert "\n" not in str(caught.value)


def test_a_state_that_does_not_start_with_the_rules_fields_is_refused() -> None:
    from optax_zoo._core.leafwise import leafwise
    from optax_zoo._core.slots import zeros
    from optax_zoo.adaptive.ademamix import AdemamixState

    with pytest.raises(TypeError, match="AdemamixState must start with the fields"):
        leafwise(AdemamixState, nu=zeros())


def test_numpy_numbers_are_numbers() -> None:
    zoo.ademamix(np.float32(1e-3), b1=np.float64(0.9))
    with pytest.raises(ValueError, match="b1 must be in"):
        zoo.ademamix(1e-3, b1=np.float32(1.5))


def test_a_missing_extra_argument_is_named() -> None:
    from typing import NamedTuple

    from optax_zoo._core.leafwise import leafwise

    class State(NamedTuple):
        count: Any

    tx = leafwise(State, needs=("value",))(lambda g, s, h: (g * h.value, s))
    with pytest.raises(ValueError, match=re.escape("needs value; call update(grads, state, params, value=...)")):
        tx.update(PARAMS, tx.init(PARAMS))
    updates, _ = optax.with_extra_args_support(tx).update(PARAMS, tx.init(PARAMS), value=jnp.float32(3.0))
    np.testing.assert_allclose(updates["b"], 3.0)
