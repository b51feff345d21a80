"""Orthogonalisation of matrices: X = U S V^T -> U V^T, nearly, by matrix products only.

X <- a X + (b R + c R^2) X with R = X X^T moves every singular value s to a s + b s^3 + c s^5 and keeps the
singular vectors. The Gram form (Zhang, Amsel, Chen, Dao, 2026) does the same on the smaller side only.
"""

import dataclasses
import functools
import math
import numbers
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.typing import DTypeLike

from optax_zoo._core.hyper import Scalar, abs_sq, choice, number, whole_number
from optax_zoo._core.layouts import layout
from optax_zoo._core.naming import method as public
from optax_zoo._core.naming import speaker
from optax_zoo._core.norms import divisible, root
from optax_zoo._core.quintics import NS_STEPS, Coefficients, Row, rows_of
from optax_zoo._core.slots import at_least_float32, floating

Method: TypeAlias = Literal["auto", "plain", "gram", "svd"]

_GRAM_ASPECT = 1.5  # from here on the Gram form needs fewer operations
_GRAM_SEGMENT = 3  # steps between restarts, so that float32 is as accurate as in the plain iteration
_LOOP_FROM = 8  # equal matrices: from here on one compiled loop instead of a copy of the code for each
_LOOP_LENGTH = 32  # at most; XLA compiles one kernel for each place that a result is taken from
_LOOP_BATCH = 2**18  # entries that one turn of the loop works on, at least
_GPU_BATCH = 2**24  # entries that fill a GPU
_TF32_GROWTH = 48.0  # of small singular values between restarts; beyond it the Gram form needs all of float32's bits


@public
def orthogonalize(
    x: Array,
    *,
    ns_coeffs: Coefficients = "keller",
    ns_steps: int | Array = NS_STEPS,
    eps: Scalar = 1e-7,
    norm_safety: Scalar = 1.0,
    method: Method = "plain",
    gram_restarts: Sequence[int] = (2,),
    compute_dtype: DTypeLike | None = None,
    dimension_numbers: Any = None,
) -> Array:
    """The nearest matrix with equal singular values, approximately, by Newton-Schulz iteration.

    X / (norm_safety * ||X||_F + eps) goes through the quintics of `ns_coeffs`. A zero matrix stays zero; a
    matrix with a NaN becomes NaN and leaves the others of its batch alone.

    Args:
      x: floating or complex, shape (..., m, n); leading axes are batch axes. Any aspect ratio, empty
        included.
      ns_coeffs: "keller", "dion", "you6", "polar_express" or "polar_express_5"; a row (a, b, c), repeated
        `ns_steps` times; or a table of rows, each used once (as "dion", "you6" and "polar_express_5" are).
      ns_steps: number of steps, at least 1. A traced integer is allowed and takes the plain iteration.
      eps: added to the norm, at least 0.
      norm_safety: factor on the norm, above 0; the published use of Polar Express needs 1.01 or 1.02.
      method: "plain"; "gram", the same on the m x m Gram matrix, cheaper for n >= 1.5 m (square matrices take
        the plain iteration); "svd", exact and slow; "auto", the cheaper of the first two for the shape, the
        dtype and the platform, with restarts enough for float32.
      gram_restarts: of "gram": steps (0-based) before which the Gram matrix is computed afresh. Without any,
        float32 is good for 5 steps and less is unstable.
      compute_dtype: arithmetic of the products, at least float32 if None; complex64 or better where `x` is complex.
        The norm is in float32 or better anyway.
      dimension_numbers: None, or a `MatrixView` that says which axes of `x` make a matrix.

    Returns:
      Shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating or complex.
      ValueError: an argument out of range, or dimension numbers that do not fit.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"orthogonalize: x must be floating or complex, got {x.dtype}")
    solver = Solver.of(ns_coeffs, ns_steps, method, gram_restarts, compute_dtype)
    check_scales(eps, norm_safety)
    if dimension_numbers is None:
        if x.ndim < 2:
            raise ValueError(f"orthogonalize: x must have at least two axes, got shape {x.shape}")
        return solver([x], eps, norm_safety)[0]
    axes = layout(dimension_numbers, x.shape, "orthogonalize: x")
    return axes.merge(solver(axes.blocks(x), eps, norm_safety), x.shape)


def check_scales(eps: Any, norm_safety: Any) -> None:
    """Raises where `eps` or `norm_safety` is a schedule, or concrete and out of range."""
    number("eps", eps, "[0, inf)")
    number("norm_safety", norm_safety, "(0, inf)")


@dataclasses.dataclass(frozen=True)
class Solver:
    """A validated way to orthogonalise; all but a traced number of steps is static."""

    rows: tuple[Row, ...]
    steps: int | Array
    method: Method
    restarts: tuple[int, ...]
    compute_dtype: Any

    @classmethod
    def of(
        cls,
        ns_coeffs: Coefficients,
        ns_steps: int | Array,
        method: Method,
        gram_restarts: Sequence[int] | None = None,
        compute_dtype: DTypeLike | None = None,
    ) -> "Solver":
        """Checks the arguments of `orthogonalize` of these names; no restarts given: often enough for float32."""
        choice("method", method, Method)
        if compute_dtype is not None:
            compute_dtype = floating(compute_dtype)
        restarts = () if gram_restarts is None else gram_restarts
        if not isinstance(restarts, Sequence) or any(not isinstance(i, numbers.Integral) or i < 0 for i in restarts):
            raise ValueError(f"{speaker()}: gram_restarts must be step numbers from 0, got {gram_restarts!r}")
        rows, repeats = rows_of(ns_coeffs)
        steps = _checked_steps(ns_steps)
        if not repeats:
            steps = len(rows)
        elif isinstance(steps, int):
            rows = (*rows, *[rows[-1]] * (steps - len(rows)))[:steps]
        if method == "auto" or gram_restarts is None:
            gram_restarts = range(_GRAM_SEGMENT, len(rows), _GRAM_SEGMENT)
        return cls(rows, steps, method, tuple(sorted(set(gram_restarts))), compute_dtype)

    @property
    def growth(self) -> float:
        """By how much the Gram form multiplies the smallest singular values between two restarts, at most."""
        ends = [*self.restarts, len(self.rows)]
        starts = [0, *self.restarts]
        return max(math.prod(row[0] for row in self.rows[i:j]) for i, j in zip(starts, ends, strict=True))

    def cost(self, m: int, n: int) -> float:
        """Operations that one m x n matrix takes, in multiply-adds."""
        short, long = sorted((m, n))
        steps = len(self.rows)
        plain = steps * (2 * long / max(short, 1) + 1)
        segments = 1 + sum(restart < steps for restart in self.restarts)
        gram = 2 * segments * long / max(short, 1) + 4 * steps - 2 * segments - 1
        return short**3 * (min(plain, gram) if self.method in ("auto", "gram") else plain)

    def __call__(self, stacks: Sequence[Array], eps: Scalar, norm_safety: Scalar) -> list[Array]:
        """Orthogonalises arrays of shape (..., m, n); those of equal shape and dtype share their code."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, x in enumerate(stacks):
            if x.size:
                groups[jax.typeof(x)].append(i)
        out = list(stacks)
        for group in groups.values():
            for start in range(0, len(group), _LOOP_LENGTH):
                members = group[start : start + _LOOP_LENGTH]
                solved = self._solve_equals([stacks[i] for i in members], eps, norm_safety)
                for i, o in zip(members, solved, strict=True):
                    out[i] = o
        return out

    def _solve_equals(self, equals: list[Array], eps: Scalar, norm_safety: Scalar) -> Sequence[Array]:
        solve = functools.partial(self._solve, eps=eps, norm_safety=norm_safety)
        if len(equals) == 1:
            return [solve(equals[0])]

        def in_turn(*equals: Array) -> list[Array]:
            if len(equals) < _LOOP_FROM:
                return list(map(solve, equals))
            return _batched(solve, equals, max(1, _LOOP_BATCH // equals[0].size))

        def together(*equals: Array) -> list[Array]:
            return _batched(solve, equals, max(1, _GPU_BATCH // equals[0].size))

        return lax.platform_dependent(*equals, cuda=together, rocm=together, default=in_turn)

    def _solve(self, x: Array, eps: Scalar, norm_safety: Scalar) -> Array:
        traced = None if isinstance(self.steps, int) else self.steps
        static = self if traced is None else dataclasses.replace(self, steps=0)
        return _orthogonalized(x, eps, norm_safety, traced, static)


def _batched(solve: Callable[[Array], Array], equals: Sequence[Array], batch: int) -> list[Array]:
    """Solves so many matrices at a time."""
    stack = jnp.stack(equals)
    solved = jax.vmap(solve)(stack) if len(equals) <= batch else lax.map(solve, stack, batch_size=batch)
    return [solved[row] for row in range(len(equals))]


def _checked_steps(ns_steps: Any) -> int | Array:
    if isinstance(ns_steps, Tracer):
        return ns_steps.astype(jnp.int32)
    whole_number("ns_steps", number("ns_steps", ns_steps, "[1, inf)"))
    return int(ns_steps)


@functools.partial(jax.jit, static_argnames="solver")
def _orthogonalized(x: Array, eps: Scalar, norm_safety: Scalar, steps: Array | None, solver: Solver) -> Array:
    wide = at_least_float32(x.dtype)
    compute = jnp.dtype(wide if solver.compute_dtype is None else solver.compute_dtype)
    if jnp.issubdtype(wide, jnp.complexfloating) and not jnp.issubdtype(compute, jnp.complexfloating):
        compute = wide

    def one(matrix: Array) -> Array:
        unit = _normalized(matrix.astype(wide), eps, norm_safety)
        if solver.method == "svd":
            return _polar_factor(unit)
        unit = unit.astype(compute)
        if steps is not None:
            return _plain_loop(unit, solver.rows, steps)
        plain = functools.partial(_plain, rows=solver.rows)
        gram = functools.partial(_gram, rows=solver.rows, restarts=solver.restarts)
        short, long = sorted(unit.shape)
        if solver.method == "gram":
            return gram(unit) if long > short else plain(unit)
        if solver.method == "plain" or long < _GRAM_ASPECT * short or compute == jnp.bfloat16:
            return plain(unit)
        if jnp.finfo(compute).bits == 64:
            return gram(unit)
        # GPUs' float32 has by default 10 bits (TF32), as float16 has, and TPUs' 7.
        quick = functools.partial(gram, precision=None) if solver.growth <= _TF32_GROWTH else plain
        exact = plain if compute == jnp.float16 else gram
        return lax.platform_dependent(unit, cpu=exact, cuda=quick, rocm=quick, default=plain)

    for _ in range(x.ndim - 2):
        one = jax.vmap(one)
    return one(x).astype(x.dtype)


def _normalized(x: Array, eps: Scalar, norm_safety: Scalar) -> Array:
    """x / (norm_safety * ||x||_F + eps), whatever the scale of x; 0 if x is 0."""
    top = divisible(jnp.max(jnp.abs(x)))
    unit = x / top.astype(x.dtype)
    size = root(jnp.sum(abs_sq(unit)))
    divisor = jnp.asarray(norm_safety, size.dtype) * size + jnp.asarray(eps, size.dtype) / top
    return unit / jnp.where(divisor == 0, jnp.ones_like(divisor), divisor).astype(x.dtype)


def _small_side(x: Array, precision: lax.Precision | None) -> tuple[Callable[[Array], Array], Callable[..., Array]]:
    """R of x and P applied to x, on the smaller side: X X^H and P X of a wide x, X^H X and X P of a tall
    one."""
    product = functools.partial(jnp.matmul, precision=precision)
    if x.shape[0] <= x.shape[1]:
        return (lambda x: product(x, x.conj().T)), product
    return (lambda x: product(x.conj().T, x)), (lambda p, x: product(x, p))


def _plain_step(x: Array, row: Any) -> Array:
    outer, apply = _small_side(x, None)
    a, b, c = row
    r = outer(x)
    return a * x + apply(b * r + c * (r @ r), x)


def _plain(x: Array, rows: Sequence[Row]) -> Array:
    for row in rows:
        x = _plain_step(x, row)
    return x


def _plain_loop(x: Array, rows: Sequence[Row], steps: Array) -> Array:
    table = jnp.asarray(rows, x.dtype)
    return lax.fori_loop(0, steps, lambda i, x: _plain_step(x, table[jnp.minimum(i, len(rows) - 1)]), x)


def _gram(
    x: Array,
    rows: Sequence[Row],
    restarts: Sequence[int],
    precision: lax.Precision | None = lax.Precision.HIGHEST,
) -> Array:
    """The plain iteration, with the products of its factors taken on the Gram matrix.

    All factors are polynomials of R and commute. The small eigenvalues of R must not turn negative, or the factors
    amplify them: products in full float32, or in half of it and fewer of them between restarts.
    """
    outer, apply = _small_side(x, precision)
    product = functools.partial(jnp.matmul, precision=precision)
    starts = sorted({0, *(i for i in restarts if i < len(rows))})
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        r, q = outer(x), None
        for step, (a, b, c) in enumerate(rows[start:end], start):
            z = b * r + c * product(r, r)
            q = a * jnp.eye(len(r), dtype=r.dtype) + z if q is None else a * q + product(q, z)
            if step + 1 < end:
                rz = a * r + product(r, z)
                r = a * rz + product(z, rz)
        x = apply(q, x)
    return x


def _polar_factor(x: Array) -> Array:
    """U V^H over the singular values that are not 0 in the precision of x."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    present = s > jnp.finfo(s.dtype).eps * max(x.shape) * s[0]
    return jnp.where(present[None, :], u, jnp.zeros_like(u)) @ vh
