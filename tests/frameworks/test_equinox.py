"""Every method trains the filtered arrays of an Equinox module."""

import equinox as eqx
import jax

from optax_zoo import Paper
from tests.frameworks.problem import INPUTS, WIDTH, assert_trains, build, own, squared_error
from tests.laws.harness import law


@law(concerns=own)
def test_equinox(paper: Paper) -> None:
    model = eqx.nn.MLP(2, 1, WIDTH, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    assert_trains(
        lambda params: squared_error(jax.vmap(eqx.combine(params, static))(INPUTS)),
        params,
        build(paper),
    )
