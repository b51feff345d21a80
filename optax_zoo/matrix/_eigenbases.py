"""Eigenbases that turn with the matrix they belong to, and do not depend on rounding errors where it has no rank."""

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import sequential_vmap

from optax_zoo._core.norms import divisible
from optax_zoo._core.occasion import replaced

# One matrix at a time under vmap: batches of them, two at once, may wait for each other for ever on a CPU's threads.
_eigh = sequential_vmap(lambda x: tuple(jnp.linalg.eigh(x)))
_qr = sequential_vmap(lambda x: tuple(jnp.linalg.qr(x)))


def eigenbasis(factor: Array) -> Array:
    """Orthonormal eigenvectors of a symmetric matrix as columns, the largest eigenvalue first.

    The null space has no eigenvectors of its own: its basis is that which Householder reflections give, a function of
    the others, where the solver's would be one of rounding errors.
    """
    values, vectors = _eigh(_scaled(lax.stop_gradient(factor)))
    vectors = vectors[:, ::-1]
    return _settled(vectors, jnp.maximum(values[::-1], 0), vectors, jnp.zeros_like(vectors))


def refreshed(factor: Array, basis: Array) -> tuple[Array, Array]:
    """A step of orthogonal iteration towards the eigenbasis, and the order of the old columns in it.

    Directions that the factor has nothing to say about stay where they were, as far as that is orthogonal to the rest.
    """
    factor, basis = lax.stop_gradient((factor, basis))
    image = jnp.matmul(_scaled(factor), basis, precision=lax.Precision.HIGHEST)
    order = jnp.argsort(jnp.sum(basis * image, axis=0), descending=True).astype(jnp.int32)
    image, before = image[:, order], basis[:, order]
    new, triangle = _qr(image)
    return _settled(new, jnp.abs(jnp.diagonal(triangle)), image, before), order


def _settled(basis: Array, sizes: Array, columns: Array, instead: Array) -> Array:
    """`basis`, made of these columns one after the other, if all have given it more than rounding errors.

    If not, the basis that they make with those of `instead` in the place of the others, which come last.
    """
    known = sizes > 16 * float(jnp.finfo(basis.dtype).eps) * jnp.max(sizes)

    def settle() -> Array:
        order = jnp.argsort(~known)
        made, _ = _qr(jnp.where(known[None, :], columns, instead)[:, order])
        return made[:, jnp.argsort(order)]

    return replaced(basis, ~jnp.all(known), settle)


def _scaled(x: Array) -> Array:
    """`x` with a largest entry of 1; 0 if `x` is 0."""
    return x / divisible(jnp.max(jnp.abs(x)))
