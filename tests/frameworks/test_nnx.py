"""Every method trains a Flax NNX module in `nnx.Optimizer`, also through its state's `eval_params`."""

from flax import nnx
from jax import Array

import optax_zoo
from optax_zoo import Paper
from tests.frameworks.problem import INPUTS, STEPS, WIDTH, assert_lower, build, own, squared_error
from tests.laws.harness import law

as_arrays = getattr(nnx, "as_pure", None) or nnx.pure  # the name before Flax 0.12.7


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(2, WIDTH, rngs=rngs)
        self.readout = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.readout(nnx.tanh(self.hidden(x)))


@nnx.jit
def step(network: Network, optimizer: nnx.Optimizer) -> None:
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    given = optax_zoo.closures(lambda at: squared_error(nnx.merge(graphdef, at, rest)(INPUTS)), params)
    optimizer.update(network, given["grad"], **given)


@law(concerns=own)
def test_nnx(paper: Paper) -> None:
    network = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, build(paper), wrt=nnx.Param)
    before = squared_error(network(INPUTS))
    for _ in range(STEPS):
        step(network, optimizer)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    evaluated = optax_zoo.eval_params(as_arrays(optimizer.opt_state), as_arrays(params))
    assert_lower(squared_error(nnx.merge(graphdef, evaluated, rest)(INPUTS)), before)
