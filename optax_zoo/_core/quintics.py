"""Odd quintics s -> a s + b s^3 + c s^5 that push singular values in (0, 1] towards 1, as rows (a, b, c).

Keller Jordan's single row, You Jiacheng's tables, and Polar Express (Amsel et al., 2025, arXiv:2505.16932).
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from optax_zoo._core.hyper import number, structural, whole_number
from optax_zoo._core.naming import method, speaker, suggestion

Row: TypeAlias = tuple[float, float, float]
Coefficients: TypeAlias = str | Sequence[float] | Sequence[Sequence[float]]
"""A preset's name, one row (repeated), or a table of rows (used once each)."""

_DEGREE_5_LIMIT: Row = (1.875, -1.25, 0.375)
_POLAR_EXPRESS_CUSHION = 0.02407327424182761
_REMEZ_EXCHANGES = 100

NS_STEPS = structural(5)
"""The usual number of steps."""


PRESETS: Mapping[str, tuple[Row, ...]] = {
    "keller": ((3.4445, -4.7750, 2.0315),),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "you6": tuple(
        (a / 1024, b / 1024, c / 1024)
        for a, b, c in (
            (3955, -8306, 5008),
            (3735, -6681, 3463),
            (3799, -6499, 3211),
            (4019, -6385, 2906),
            (2677, -3029, 1162),
            (2172, -1833, 682),
        )
    ),
    "polar_express": (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        _DEGREE_5_LIMIT,
    ),
    "polar_express_5": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}

OPEN_ENDED = ("keller", "polar_express")
"""Presets whose last row may be repeated: they run for as many steps as asked."""


def rows_of(ns_coeffs: Coefficients) -> tuple[tuple[Row, ...], bool]:
    """The rows that `ns_coeffs` means, and whether the last is repeated until `ns_steps` are done.

    Raises:
      ValueError: an unknown preset or a shape other than (3,) or (rows, 3).
    """
    if isinstance(ns_coeffs, str):
        if ns_coeffs not in PRESETS:
            hint = suggestion(ns_coeffs, PRESETS) or f"; there are {', '.join(PRESETS)}"
            raise ValueError(f"{speaker()}: no ns_coeffs {ns_coeffs!r}{hint}")
        return PRESETS[ns_coeffs], ns_coeffs in OPEN_ENDED
    wanted = f"{speaker()}: ns_coeffs must be a preset, a row (a, b, c) or a table of rows, got {ns_coeffs!r}"
    try:
        table = np.asarray(ns_coeffs, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(wanted) from None
    if table.shape[-1:] != (3,) or table.ndim > 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(wanted)
    return tuple((a, b, c) for a, b, c in table.reshape(-1, 3).tolist()), table.ndim == 1


@method
def polar_express_coeffs(
    num_steps: int, lower: float = 1e-3, cushion: float = _POLAR_EXPRESS_CUSHION, safety: float = 1.0
) -> tuple[Row, ...]:
    """The rows of Polar Express: each step's quintic is nearest to 1 where the singular values can be.

    Computed on the host in double precision (Amsel, Persson, Musco, Gower, 2025, arXiv:2505.16932, Algorithm
    1).

    Args:
      num_steps: number of rows, at least 1.
      lower: smallest singular value to be mapped near 1 (the largest is 1), in (0, 1].
      cushion: the interval of a step starts no lower than this fraction of its upper end, in [0, 1).
      safety: every row but the last is shrunk as if the singular values were this factor too large, at least
        1.

    Returns:
      `num_steps` rows (a, b, c).

    Raises:
      ValueError: an argument out of range.
    """
    whole_number("num_steps", num_steps)
    number("lower", lower, "(0, 1]")
    number("cushion", cushion, "[0, 1)")
    number("safety", safety, "[1, inf)")
    low, high = float(lower), 1.0
    rows = []
    for step in range(int(num_steps)):
        row = _equioscillating(max(low, cushion * high), high)
        if cushion * high > low:
            row = row * 2.0 / (_quintic(row, low) + _quintic(row, high))
        if step < num_steps - 1:
            row = row / safety ** np.array([1, 3, 5])
        low = _quintic(row, low)
        high = 2.0 - low
        rows.append(tuple(row.tolist()))
    return tuple(rows)


def _quintic(row: np.ndarray, s: float) -> float:
    return float(row @ np.array([s, s**3, s**5]))


def _equioscillating(low: float, high: float) -> np.ndarray:
    """The odd quintic p that minimises max |1 - p| on [low, high], by Remez exchange."""
    limit = np.array(_DEGREE_5_LIMIT) / high ** np.array([1, 3, 5])
    if low / high > 1 - 5e-6:
        return limit
    q, r, last = (3 * low + high) / 4, (low + 3 * high) / 4, np.inf
    a, b, c = limit
    for _ in range(_REMEZ_EXCHANGES):
        points = np.array([low, q, r, high])
        system = np.stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        if abs(error - last) <= 1e-15:
            break
        discriminant = 9 * b * b - 20 * a * c
        if discriminant < 0:  # the interval is too short for the system to be solved in double precision
            return limit
        root = np.sqrt(discriminant)
        q, r, last = np.sqrt((-3 * b - root) / (10 * c)), np.sqrt((-3 * b + root) / (10 * c)), error
    return np.array([a, b, c])
