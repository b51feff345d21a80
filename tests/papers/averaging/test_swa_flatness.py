"""SWA's claim: the mean of the points that a high constant rate visits is flatter than where an annealed run ends."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_zoo as zoo

WIDTHS, EXAMPLES, BATCH, STEPS = (8, 24, 1), 256, 8, 3000


def data() -> tuple[Any, Any]:
    """Inputs and labels of a noisy teacher."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (EXAMPLES, WIDTHS[0]))
    teacher = jax.random.normal(keys[1], (WIDTHS[0],))
    return x, jnp.sin(x @ teacher) + 0.3 * jax.random.normal(keys[2], (EXAMPLES,))


def loss(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((jnp.squeeze(hidden @ params["w2"], 1) - y) ** 2)


def train(tx: Any, seed: Any) -> tuple[Any, Any]:
    """Parameters and state after the run."""
    x, y = data()
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "w1": jax.random.normal(keys[0], WIDTHS[:2]) / WIDTHS[0] ** 0.5,
        "b1": jnp.zeros(WIDTHS[1]),
        "w2": jax.random.normal(keys[1], WIDTHS[1:]) / WIDTHS[1] ** 0.5,
    }

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        params, state = carry
        chosen = jax.random.randint(key, (BATCH,), 0, EXAMPLES)
        updates, state = tx.update(jax.grad(loss)(params, x[chosen], y[chosen]), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(keys[2], STEPS))[0]


def sharpness(params: Any, radius: float) -> Any:
    """Mean rise of the training loss at points `radius` away in random directions."""
    x, y = data()

    def rise(key: Any) -> Any:
        keys = dict(zip(params, jax.random.split(key, len(params)), strict=True))
        draws = {name: jax.random.normal(keys[name], p.shape) for name, p in params.items()}
        scale = radius / optax.tree.norm(draws)
        moved = jax.tree.map(lambda p, d: p + scale * d, params, draws)
        return loss(moved, x, y) - loss(params, x, y)

    return jnp.mean(jax.vmap(rise)(jax.random.split(jax.random.key(9), 200)))


def test_it_finds_the_flatter_solution() -> None:
    rate = 0.1

    def annealed(count: Any) -> Any:
        return rate * jnp.clip(2.0 - 2.0 * count.astype(float) / STEPS, 0.01, 1.0)

    def compared(seed: Any) -> Any:
        ended, _ = train(optax.sgd(annealed), seed)
        last, state = train(zoo.with_swa(optax.sgd(rate), start=STEPS // 2, freq=30), seed)
        averaged = zoo.eval_params(state, last)
        losses = [loss(params, *data()) for params in (last, averaged)]
        return [sharpness(params, 1.0) for params in (ended, averaged)], losses

    (ended, averaged), (loss_of_last, loss_of_average) = jax.jit(jax.vmap(compared))(jnp.arange(4))
    assert (averaged < ended).all() and averaged.mean() < 0.93 * ended.mean()
    assert loss_of_average.mean() < loss_of_last.mean()
