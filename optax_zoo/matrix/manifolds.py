"""Manifolds whose points are the last axis of an array: the Poincaré ball, the sphere, flat space and their products.

Formulas of the ball from Octavian-Eugen Ganea, Gary Bécigneul, Thomas Hofmann, 2018, arXiv:1805.09112.
"""

import dataclasses
import functools
import itertools
import math
import numbers
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import jax.numpy as jnp
from jax import Array

from optax_zoo._core.hyper import check_range
from optax_zoo._core.naming import speaking_as
from optax_zoo._core.norms import norm

F = TypeVar("F", bound=Callable[..., Array])


class Manifold:
    """Where a point may lie, how it moves there, and how its tangent vectors move with it.

    Points and tangent vectors have shape (..., n); the leading axes are a batch. These methods are those of flat
    space, from which a subclass departs. It must be hashable, as frozen dataclasses are.

    Attributes:
      exact: whether `retract` is the exponential map.
    """

    exact: bool = False

    def proj(self, x: Array) -> Array:
        """The nearest point of the manifold."""
        return x

    def proju(self, x: Array, u: Array) -> Array:
        """The part of u that is tangent at x."""
        return u

    def egrad2rgrad(self, x: Array, g: Array) -> Array:
        """The Riemannian gradient at x from the Euclidean one."""
        return g

    def inner(self, x: Array, u: Array, v: Array) -> Array:
        """<u, v> in the metric at x; shape (...)."""
        return jnp.sum(u * v, axis=-1)

    def dist(self, x: Array, y: Array) -> Array:
        """The length of the shortest geodesic; shape (...)."""
        return norm(y - x, -1)[..., 0]

    def expmap(self, x: Array, u: Array) -> Array:
        """Where the geodesic that leaves x with velocity u is at time 1."""
        return x + u

    def logmap(self, x: Array, y: Array) -> Array:
        """The velocity at x of the shortest geodesic that is at y at time 1."""
        return y - x

    def retract(self, x: Array, u: Array) -> Array:
        """`expmap`, or unless `exact` its first-order stand-in `proj(x + u)`."""
        return self.expmap(x, u) if self.exact else self.proj(x + u)

    def transport(self, x: Array, y: Array, v: Array) -> Array:
        """v, tangent at x, as a tangent vector at y."""
        return v

    def parallel_transport(self, x: Array, y: Array, v: Array) -> Array:
        """`transport` along the shortest geodesic, which keeps inner products."""
        return self.transport(x, y, v)

    def squares(self, x: Array, u: Array) -> Array:
        """|u|^2 in the metric at x, a number for each part that has its own step size; shape (..., width)."""
        return self.inner(x, u, u)[..., None]

    def width(self, n: int) -> int:
        """The length of the last axis of `squares` for points of n entries."""
        return 1

    def spread(self, numbers: Array) -> Array:
        """Numbers in the shape of `squares` as an array that meets the entries of a point."""
        return numbers

    def ambiguous(self, x: Array) -> Array:
        """Which points have more than one nearest point on the manifold; shape (...)."""
        return jnp.zeros(x.shape[:-1], bool)

    def misfit(self, n: int) -> str:
        """Why points cannot have n entries, such as "and the sphere needs 2 or more"; an empty string if they can."""
        return ""


@dataclasses.dataclass(frozen=True)
class Euclidean(Manifold):
    """Flat space. Every entry has its own step size, so that a Riemannian method is the usual one."""

    def squares(self, x: Array, u: Array) -> Array:
        """The square of each entry."""
        return u * u

    def width(self, n: int) -> int:
        """That of the point."""
        return n


@dataclasses.dataclass(frozen=True)
class PoincareBall(Manifold):
    """Hyperbolic space of curvature -c as the open ball of radius 1/sqrt(c).

    Points keep a distance from the boundary, 1e-5 of the radius in float64 and 4e-3 in less, up to the rounding of
    narrower parameters. Float32 says little there: keep such points in float64, or far inside.

    Attributes:
      c: minus the curvature, > 0.
      exact: whether `retract` is the exponential map.

    Raises:
      ValueError, TypeError: c is no positive number, or `exact` no bool.
    """

    c: float = 1.0
    exact: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.c, numbers.Real) or isinstance(self.c, bool):
            raise TypeError(f"PoincareBall: c must be a Python number, got {self.c!r}")
        with speaking_as("PoincareBall"):
            check_range("c", self.c, "(0, inf)")
        object.__setattr__(self, "c", float(self.c))
        _check_flag("PoincareBall", self.exact)

    def conformal(self, x: Array) -> Array:
        """lambda_x, by which lengths at x are greater than they look; shape (..., 1)."""
        return 2 / _positive(1 - self.c * _dot(x, x))

    def proj(self, x: Array) -> Array:
        """x, pulled inside."""
        margin = 1e-5 if x.dtype == jnp.float64 else 4e-3
        radius = (1 - margin) / math.sqrt(self.c)
        size = norm(x, -1)
        return jnp.where(size > radius, _over(x, size) * radius, x)

    def egrad2rgrad(self, x: Array, g: Array) -> Array:
        """g / lambda_x^2."""
        return g / jnp.square(self.conformal(x))

    def inner(self, x: Array, u: Array, v: Array) -> Array:
        """lambda_x^2 u.v."""
        return (jnp.square(self.conformal(x)) * _dot(u, v))[..., 0]

    def mobius_add(self, x: Array, y: Array) -> Array:
        """x ⊕ y, the sum of gyrovectors."""
        c, xx, xy, yy = self.c, _dot(x, x), _dot(x, y), _dot(y, y)
        whole = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
        return whole / _positive(1 + 2 * c * xy + c * c * xx * yy)

    def gyration(self, u: Array, v: Array, w: Array) -> Array:
        """gyr[u, v] w = ⊖(u ⊕ v) ⊕ (u ⊕ (v ⊕ w)), in closed form: the sums lose their digits near the boundary."""
        c, uu, vv, uv, uw, vw = self.c, _dot(u, u), _dot(v, v), _dot(u, v), _dot(u, w), _dot(v, w)
        a = -c * c * uw * vv + c * vw + 2 * c * c * uv * vw
        b = -c * c * vw * uu - c * uw
        return w + 2 * (a * u + b * v) / _positive(1 + 2 * c * uv + c * c * uu * vv)

    def dist(self, x: Array, y: Array) -> Array:
        """2 / sqrt(c) arsinh(sqrt(c lambda_x lambda_y) |y - x| / 2)."""
        root = math.sqrt(self.c)
        stretch = jnp.sqrt(self.conformal(x) * self.conformal(y)) / 2
        return (2 / root * jnp.arcsinh(root * stretch * norm(y - x, -1)))[..., 0]

    def expmap(self, x: Array, u: Array) -> Array:
        """x ⊕ tanh(sqrt(c) lambda_x |u| / 2) u / (sqrt(c) |u|), pulled inside."""
        root, size = math.sqrt(self.c), norm(u, -1)
        stretch = self.conformal(x) / 2
        scale = jnp.where(size == 0, stretch, _over(jnp.tanh(root * stretch * size), root * size))
        return self.proj(self.mobius_add(x, scale * u))

    def logmap(self, x: Array, y: Array) -> Array:
        """The inverse of `expmap`."""
        way = self.mobius_add(-x, y)
        return self.dist(x, y)[..., None] / self.conformal(x) * _over(way, norm(way, -1))

    def transport(self, x: Array, y: Array, v: Array) -> Array:
        """Parallel transport, gyr[y, -x] v lambda_x / lambda_y."""
        return self.gyration(y, -x, v) * self.conformal(x) / self.conformal(y)


@dataclasses.dataclass(frozen=True)
class Sphere(Manifold):
    """Unit vectors.

    Attributes:
      exact: whether `retract` is the exponential map.

    Raises:
      TypeError: `exact` is no bool.
    """

    exact: bool = False

    def __post_init__(self) -> None:
        _check_flag("Sphere", self.exact)

    def proj(self, x: Array) -> Array:
        """x / |x|; 0 stays."""
        return _over(x, norm(x, -1))

    def proju(self, x: Array, u: Array) -> Array:
        """u - (x.u) x."""
        return u - _dot(x, u) * x

    def egrad2rgrad(self, x: Array, g: Array) -> Array:
        """The tangent part of g."""
        return self.proju(x, g)

    def dist(self, x: Array, y: Array) -> Array:
        """The angle between x and y."""
        return 2 * jnp.arctan2(norm(y - x, -1), norm(y + x, -1))[..., 0]

    def expmap(self, x: Array, u: Array) -> Array:
        """x cos|u| + u sin|u| / |u|."""
        angle = norm(u, -1)
        return x * jnp.cos(angle) + u * jnp.sinc(angle / math.pi)

    def logmap(self, x: Array, y: Array) -> Array:
        """The inverse of `expmap`; 0 for opposite points."""
        way = self.proju(x, y - x)
        return self.dist(x, y)[..., None] * _over(way, norm(way, -1))

    def transport(self, x: Array, y: Array, v: Array) -> Array:
        """The tangent part of v at y, which is shorter."""
        return self.proju(y, v)

    def parallel_transport(self, x: Array, y: Array, v: Array) -> Array:
        """v - (y.v) (x + y) / (1 + x.y), as a reflection in what is orthogonal to x + y: opposite points do no harm."""
        way = _over(x + y, norm(x + y, -1))
        return self.proju(y, v - 2 * _dot(way, v) * way)

    def ambiguous(self, x: Array) -> Array:
        """Where x is 0."""
        return norm(x, -1)[..., 0] == 0

    def misfit(self, n: int) -> str:
        """A sphere in one dimension is two points, between which there is no way."""
        return "" if n > 1 else "and the sphere needs 2 or more"


def _of_each_factor(method: F) -> F:
    """A method of `Product` that puts side by side what the factors' own make of their parts of the arrays."""

    @functools.wraps(method)
    def each(product: "Product", *arrays: Array) -> Array:
        parts = [getattr(manifold, method.__name__)(*part) for manifold, *part in product.parts(*arrays)]
        return jnp.concatenate(parts, axis=-1)

    return cast(F, each)


@dataclasses.dataclass(frozen=True)
class Product(Manifold):
    """A product of manifolds, side by side on the last axis: `Product([(PoincareBall(), 2), (Euclidean(), 3)])`.

    Each curved factor has its own step size, and so has every entry of a flat one.

    Attributes:
      factors: pairs of a manifold and its size, the number of its entries.

    Raises:
      ValueError, TypeError: no factor, or one that is no pair of a manifold and a positive integer that suits it.
    """

    factors: Sequence[tuple[Manifold, int]]

    def __post_init__(self) -> None:
        if not isinstance(self.factors, Sequence) or not self.factors:
            raise TypeError(f"Product: factors must be a list of pairs (manifold, size), got {self.factors!r}")
        object.__setattr__(self, "factors", tuple(map(_factor, self.factors)))

    def parts(self, *arrays: Array) -> Iterator[tuple[Any, ...]]:
        """Of each factor, the manifold and its part of each array."""
        ends = list(itertools.accumulate(size for _, size in self.factors))
        pieces = (jnp.split(x, ends[:-1], axis=-1) for x in arrays)
        return zip((manifold for manifold, _ in self.factors), *pieces, strict=True)

    proj = _of_each_factor(Manifold.proj)
    proju = _of_each_factor(Manifold.proju)
    egrad2rgrad = _of_each_factor(Manifold.egrad2rgrad)
    expmap = _of_each_factor(Manifold.expmap)
    logmap = _of_each_factor(Manifold.logmap)
    retract = _of_each_factor(Manifold.retract)
    transport = _of_each_factor(Manifold.transport)
    parallel_transport = _of_each_factor(Manifold.parallel_transport)
    squares = _of_each_factor(Manifold.squares)

    def inner(self, x: Array, u: Array, v: Array) -> Array:
        """The sum over factors."""
        return sum((m.inner(x, u, v) for m, x, u, v in self.parts(x, u, v)), start=jnp.zeros((), x.dtype))

    def dist(self, x: Array, y: Array) -> Array:
        """The root of the sum of the factors' squares."""
        return norm(jnp.stack([m.dist(x, y) for m, x, y in self.parts(x, y)], axis=-1), -1)[..., 0]

    def width(self, n: int) -> int:
        """The sum over factors."""
        return sum(manifold.width(size) for manifold, size in self.factors)

    def spread(self, numbers: Array) -> Array:
        """Repeats a factor's number for its entries."""
        ends = list(itertools.accumulate(manifold.width(size) for manifold, size in self.factors))
        parts = zip(self.factors, jnp.split(numbers, ends[:-1], axis=-1), strict=True)
        spread = [jnp.broadcast_to(manifold.spread(part), (*part.shape[:-1], size)) for (manifold, size), part in parts]
        return jnp.concatenate(spread, axis=-1)

    def ambiguous(self, x: Array) -> Array:
        """Where the part of a factor is."""
        return jnp.any(jnp.stack([m.ambiguous(x) for m, x in self.parts(x)]), axis=0)

    def misfit(self, n: int) -> str:
        """The sizes of the factors must add up to n."""
        sizes = [size for _, size in self.factors]
        return "" if sum(sizes) == n else f"and the factors of its Product, {sizes}, add up to {sum(sizes)}"


def _factor(pair: Any) -> tuple[Manifold, int]:
    try:
        manifold, size = pair
        size = operator.index(size)
    except (TypeError, ValueError):
        raise TypeError(f"Product: a factor must be a pair (manifold, size), got {pair!r}") from None
    if not isinstance(manifold, Manifold):
        raise TypeError(f"Product: {manifold!r} is no manifold such as Sphere()")
    if size < 1:
        raise ValueError(f"Product: the size of {manifold} must be at least 1, got {size}")
    if misfit := manifold.misfit(size):
        raise ValueError(f"Product: {manifold} has size {size}, {misfit}")
    return manifold, size


def _check_flag(speaker: str, exact: object) -> None:
    if not isinstance(exact, bool):
        raise TypeError(f"{speaker}: exact must be True or False, got {exact!r}")


def _dot(x: Array, y: Array) -> Array:
    """Shape (..., 1)."""
    return jnp.sum(x * y, axis=-1, keepdims=True)


def _over(x: Array, size: Array) -> Array:
    """x / size, and x where that is 0."""
    return x / jnp.where(size == 0, jnp.ones_like(size), size)


def _positive(x: Array) -> Array:
    """x, kept from 0 where rounding or points outside bring it there."""
    return jnp.maximum(x, max(1e-15, float(jnp.finfo(x.dtype).tiny)))
