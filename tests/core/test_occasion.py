"""What is dear is computed when it is due, and not ahead."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_zoo._core.occasion import replaced


def turned(now: jax.Array, x: jax.Array) -> jax.Array:
    return replaced(x, now, lambda: jnp.linalg.qr(x)[0])


def test_replaces_where_it_is_time() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)), jnp.float32)
    now = jnp.array([True, False, True])
    expected = jnp.where(now[:, None, None], jnp.linalg.qr(x)[0], x)
    np.testing.assert_allclose(jax.vmap(turned)(now, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.stack([turned(n, y) for n, y in zip(now, x, strict=True)]), expected, atol=1e-6)


def test_is_not_computed_ahead_of_the_loop() -> None:
    text = jax.jit(jax.vmap(turned)).lower(jnp.zeros(3, bool), jnp.ones((3, 4, 4))).compile().as_text()
    assert text is not None and "geqrf" in text
    assert "geqrf" not in text.partition("\nENTRY ")[2]
