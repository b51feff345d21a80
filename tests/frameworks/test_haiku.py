"""Every method trains the parameters of a Haiku network, dictionaries of dictionaries."""

import haiku as hk
import jax

from optax_zoo import Paper
from tests.frameworks.problem import INPUTS, WIDTH, assert_trains, build, own, squared_error
from tests.laws.harness import law


@law(concerns=own)
def test_haiku(paper: Paper) -> None:
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([WIDTH, 1])(x)))
    params = network.init(jax.random.key(0), INPUTS)
    assert_trains(lambda params: squared_error(network.apply(params, INPUTS)), params, build(paper))
