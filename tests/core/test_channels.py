"""The channel axis of every leaf, in each form that a user may say it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from optax_zoo._core.channels import LAST, Channel, channels
from optax_zoo._core.naming import method

TREE = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "conv": {"kernel": jnp.ones((3, 3, 2, 5))}}


def axes(channel_axis: Any, tree: Any = TREE) -> Any:
    chosen = channels(channel_axis)(tree)
    return jax.tree.map(lambda channel: channel.axis, chosen, is_leaf=lambda x: isinstance(x, Channel))


def test_one_axis_for_all_leaves_is_counted_from_either_end() -> None:
    assert axes(-1) == {"dense": {"kernel": 1, "bias": None}, "conv": {"kernel": 3}}
    assert axes(0) == {"dense": {"kernel": 0, "bias": None}, "conv": {"kernel": 0}}
    assert axes(None) == {"dense": {"kernel": None, "bias": None}, "conv": {"kernel": None}}


def test_a_tree_a_prefix_and_a_function_of_the_path() -> None:
    expected = {"dense": {"kernel": None, "bias": None}, "conv": {"kernel": 2}}
    assert axes({"dense": {"kernel": None, "bias": 0}, "conv": {"kernel": 2}}) == expected
    assert axes({"dense": None, "conv": -2}) == expected
    assert axes(lambda path, leaf: leaf.ndim - 2 if path.startswith("conv/") else None) == expected


def test_leaves_without_a_matrix_have_no_channels() -> None:
    assert axes(5, {"scalar": jnp.ones(()), "vector": jnp.ones(3)}) == {"scalar": None, "vector": None}


def test_the_other_axes_lie_within_a_channel() -> None:
    assert Channel(1).others(4) == (0, 2, 3)
    assert Channel(None).others(3) == (0, 1, 2)


@method
def rule(channel_axis: Any) -> Any:
    return channels(channel_axis)


def test_what_is_no_axis_of_its_leaf_is_refused_by_path() -> None:
    where = r"rule: channel_axis of the leaf at \['dense'\]\['kernel'\] of shape \(4, 3\) must be"
    with pytest.raises(ValueError, match=where + r" in \[-2, 1\], got 2"):
        rule({"dense": 2, "conv": 0})(TREE)
    with pytest.raises(TypeError, match=where + " an integer or None, got 0.5"):
        rule({"dense": {"kernel": 0.5, "bias": None}, "conv": 0})(TREE)
    with pytest.raises(TypeError, match=where + " an integer or None, got True"):
        rule({"dense": {"kernel": True, "bias": None}, "conv": 0})(TREE)
    with pytest.raises(ValueError, match=r"rule: channel_axis has no entry for the leaf at \['dense'\]\['kernel'\]"):
        rule({"conv": 0, "dense": {"bias": 0}})(TREE)


def test_the_default_stays_out_of_inject_hyperparams_and_another_axis_can() -> None:
    def stateless(channel_axis: Any = LAST) -> optax.GradientTransformation:
        chosen = rule(channel_axis)
        return optax.stateless(lambda updates, params: jax.tree.map(lambda c, x: c.axis * x, chosen(updates), updates))

    def multiple(**settings: Any) -> Any:
        tx = optax.inject_hyperparams(stateless, settings.pop("static_args", ()))(**settings)
        return tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))[0].sum()

    assert LAST == -1
    assert multiple() == 4
    assert multiple(channel_axis=0, static_args="channel_axis") == 0
    with pytest.raises(TypeError, match=r"rule: channel_axis .* must be no array; name it in the static_args of"):
        multiple(channel_axis=0)
