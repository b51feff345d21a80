"""A method and its transform have the same defaults for the arguments they share."""

import inspect

from optax_zoo import Paper
from tests.laws.harness import law


@law(concerns=lambda paper: paper.transform is not None)
def test_defaults(paper: Paper) -> None:
    method, transform = (inspect.signature(factory).parameters for factory in (paper.make, paper.transform))
    shared = [name for name in transform if name in method]
    differing = {name: (method[name].default, transform[name].default) for name in shared}
    differing = {name: pair for name, pair in differing.items() if pair[0] != pair[1]}
    assert not differing, f"defaults that differ: {differing}"
