"""Who is measured against whom, and what is aimed at."""

import dataclasses
import fnmatch
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from optax import contrib

import optax_zoo as zoo

LEARNING_RATE = 1e-4

SUPPLIED = frozenset({"params", "value", "grad", "key"})
"""Extra arguments that a bare update can be given; a method that evaluates the loss is not measured."""


@dataclasses.dataclass(frozen=True)
class Contest:
    """One way to call a method, and the same rule in optax.

    Attributes:
      peer, make_peer: the same rule in optax, from a learning rate.
      variant: arguments.
      platforms: where it is worth a measurement.
      make_polar, make_peer_polar: of methods that orthogonalise, transformations whose first update is the orthogonal
        factor of the gradient up to a number, from the variant.
    """

    peer: str = ""
    make_peer: Callable[[float], optax.GradientTransformation] | None = None
    variant: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    make_polar: Callable[..., optax.GradientTransformation] | None = None
    make_peer_polar: Callable[[], optax.GradientTransformation] | None = None


MUON = Contest(
    "optax.contrib.muon",
    contrib.muon,
    make_polar=functools.partial(zoo.scale_by_muon, nesterov=False, scaling=None),
    make_peer_polar=functools.partial(contrib.scale_by_muon, nesterov=False),
)
HALF_PRECISION = ({"ns_dtype": "bfloat16"}, {"ns_dtype": "float16"})

CONTESTS: Mapping[str, tuple[Contest, ...]] = {
    "adabelief": (
        Contest("optax.adabelief", optax.adabelief, variant={"rectify": False}),
        Contest("optax.adabelief", optax.adabelief),
    ),
    "ademamix": (Contest("optax.contrib.ademamix", contrib.ademamix),),
    "madgrad": (Contest("optax.contrib.madgrad", contrib.madgrad),),
    "mars": (Contest(), Contest(variant={"variant": "shampoo"})),
    "muon": (MUON, *(dataclasses.replace(MUON, variant=variant, platforms=("gpu",)) for variant in HALF_PRECISION)),
    "schedule_free": (Contest("optax.contrib.schedule_free", lambda lr: contrib.schedule_free(optax.adamw(lr), 1.0)),),
    "schedule_free_adamw": (Contest("optax.contrib.schedule_free_adamw", contrib.schedule_free_adamw),),
    "schedule_free_sgd": (Contest("optax.contrib.schedule_free_sgd", contrib.schedule_free_sgd),),
}
"""Method -> its contests; every other method runs alone, against the limit."""

TARGETS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "cpu": {
        "time_over_limit": {"adabelief": 1.6, "schedule_free*": 1.75, "*": 1.35},
        "time_over_peer": {"adabelief": 0.65, "schedule_free*": 0.65, "madgrad": 0.25, "muon": 0.45, "*": 1.0},
        "total_over_reference": {"matrix.*": 0.25, "*": 0.9},
        "temporary_bytes": {"muon": 11.0, "*": 0.1},
        "operations": {"*": 1.1 / 8},
        "peak_megabytes": {"uniform_soup": 1500.0},
    },
    "gpu": {
        "time_over_limit": {"*": 1.15},
        "time_over_peer": {"muon": 0.5, "*": 1.0},
        "total_over_reference": {"matrix.*": 0.25, "*": 0.9},
        "temporary_bytes": {"muon": 11.0, "*": 0.1},
    },
}
"""Platform -> figure -> pattern -> at most, for the zoo's own methods; the first pattern counts that fits the method's
name or module, such as "matrix.muon"."""


def is_matrix_method(entry: zoo.Paper) -> bool:
    return entry.make.__module__.startswith("optax_zoo.matrix.")


def target(platform: str, figure: str, method: str) -> float | None:
    """The aim for one figure of one method; None where there is none."""
    entry = zoo.paper(method)
    if entry.library != "optax_zoo" or (is_matrix_method(entry) and figure == "time_over_limit"):
        return None
    if not entry.elementwise and not is_matrix_method(entry) and figure != "time_over_peer":
        return None
    patterns = TARGETS.get(platform, {}).get(figure, {})
    names = [method, entry.make.__module__.removeprefix("optax_zoo.")]
    return next((aim for pattern, aim in patterns.items() if fnmatch.filter(names, pattern)), None)


def select(patterns: Sequence[str], library: str = "*") -> list[tuple[zoo.Paper, Contest]]:
    """Every contest of the methods that match, in the registry's order; says which cannot be measured.

    Raises:
      ValueError: a pattern that matches no method.
    """
    for pattern in patterns:
        if not zoo.find(pattern):
            raise ValueError(f"no method matches {pattern!r}")
    chosen = []
    for name, entry in zoo.papers().items():
        wanted = entry.trains and fnmatch.fnmatchcase(entry.library, library)
        if wanted and any(fnmatch.fnmatchcase(name, p) for p in patterns):
            if missing := set(entry.needs) - SUPPLIED:
                print(f"{name}: not measured, needs {', '.join(sorted(missing))}", file=sys.stderr)
            else:
                contests = CONTESTS.get(name, (Contest(),))
                chosen += [(entry, contest) for contest in contests if jax.default_backend() in contest.platforms]
    return chosen


def build(entry: zoo.Paper, contest: Contest) -> optax.GradientTransformationExtraArgs:
    varied = dataclasses.replace(entry, example={**entry.example, **contest.variant})
    return varied.build(LEARNING_RATE)


def label(entry: zoo.Paper, contest: Contest) -> str:
    """`adabelief(rectify=False)`."""
    given = ", ".join(f"{key}={value!r}" for key, value in contest.variant.items())
    return f"{entry.name}({given})" if given else entry.name
