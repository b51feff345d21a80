"""Optax's own methods, where the zoo has none of the same paper.

The functions are optax's, unchanged: `paper("adamw").make is optax.adamw`. A method that the installed optax
does not have is left out. Missing on purpose: Sophia, which wants the loss under a name of its own, `obj_fn`;
DP-SGD, which wants one gradient per example; and L-BFGS, whose line search runs the model many times a step.
"""

from typing import Any

import optax
from optax import contrib

from optax_zoo._core.paper import Paper, register
from optax_zoo.reexports.optax_breaks import breaks_of
from optax_zoo.reexports.optax_papers import SOURCES


def _find(name: str) -> Any:
    return getattr(optax, name, None) or getattr(contrib, name, None)


def _reexport(
    name: str,
    algorithm: str = "",
    *,
    source: str = "",
    floats: float,
    lr: float = 1.0,
    needs: str = "",
    transform: str = "",
    states: str = "",
    **facts: Any,
) -> None:
    """Registers optax's `name`: floats per parameter, relative learning rate, names separated by spaces."""
    make, origin = _find(name), SOURCES[source or name]
    if make is None:
        return
    register(
        Paper(
            name=name,
            title=origin.title,
            authors=tuple(origin.authors.split("; ")),
            year=origin.year,
            arxiv=origin.arxiv,
            url=origin.url,
            algorithm=algorithm,
            make=make,
            transform=_find(transform) if transform else None,
            states=tuple(_find(state) for state in states.split()),
            needs=tuple(needs.split()),
            floats_per_parameter=floats,
            relative_learning_rate=lr,
            breaks=breaks_of(name),
            library="optax",
            **facts,
        )
    )


_reexport("adam", "Algorithm 1", floats=2, transform="scale_by_adam", states="ScaleByAdamState")
_reexport("adamax", "Algorithm 2", source="adam", floats=2, lr=2.0, transform="scale_by_adamax")
_reexport("adamw", "Algorithm 2", floats=2, needs="params", transform="scale_by_adam", races_by_default=True)
_reexport("adamaxw", source="adamw", floats=2, lr=2.0, needs="params", transform="scale_by_adamax")
_reexport("nadam", floats=2, races_by_default=True)
_reexport("nadamw", "with decoupled weight decay", source="nadam", floats=2, needs="params")
_reexport("amsgrad", "Algorithm 2", floats=3, transform="scale_by_amsgrad", states="ScaleByAmsgradState")
_reexport("adagrad", floats=1, lr=10.0, transform="scale_by_rss", states="ScaleByRssState")
_reexport(
    "adadelta",
    "Algorithm 1",
    floats=2,
    lr=200.0,
    needs="params",
    transform="scale_by_adadelta",
    states="ScaleByAdaDeltaState",
)
_reexport(
    "rmsprop",
    floats=1,
    transform="scale_by_rms",
    states="ScaleByRmsState ScaleByRmsWithCountState ScaleByRStdDevState ScaleByRStdDevWithCountState",
)
_reexport("yogi", "Algorithm 2", floats=2, lr=3.0, transform="scale_by_yogi")
_reexport("radam", "Algorithm 2", floats=2, transform="scale_by_radam")
_reexport(
    "lion",
    "Algorithm 2",
    floats=1,
    lr=0.2,
    needs="params",
    transform="scale_by_lion",
    states="ScaleByLionState",
    races_by_default=True,
)
_reexport("sgd", floats=0, lr=100.0, races_by_default=True)
_reexport("sign_sgd", "Algorithm 1", floats=0, lr=0.3, transform="scale_by_sign")
_reexport("signum", "Algorithm 2", source="sign_sgd", floats=1, lr=0.3)
_reexport("noisy_sgd", floats=0, lr=100.0, states="AddNoiseState", example={"key": 0})
_reexport("optimistic_gradient_descent", floats=1, lr=100.0, transform="scale_by_optimistic_gradient")
_reexport("optimistic_adam_v2", "Algorithm 1", floats=3)
_reexport("lamb", "Algorithm 2", floats=2, lr=3.0, needs="params", elementwise=False)
_reexport("lars", "Algorithm 1", floats=1, lr=200.0, needs="params", elementwise=False)
_reexport("sm3", "SM3-II", floats=1, lr=30.0, transform="scale_by_sm3", states="ScaleBySM3State", elementwise=False)
_reexport(
    "adan",
    "Algorithm 1",
    floats=4,
    lr=3.0,
    needs="params",
    transform="scale_by_adan",
    states="ScaleByAdanState",
)
_reexport(
    "novograd",
    "Algorithm 1",
    floats=1,
    lr=3.0,
    needs="params",
    transform="scale_by_novograd",
    states="ScaleByNovogradState",
    elementwise=False,
)
_reexport("rprop", floats=2, states="ScaleByRpropState")
_reexport("fromage", "Algorithm 1", floats=0, lr=3.0, needs="params", elementwise=False)
_reexport("polyak_sgd", "SPS_max", floats=0, lr=200.0, needs="value", elementwise=False)
_reexport("acprop", floats=2, needs="params", transform="scale_by_acprop")
_reexport("adopt", floats=2, transform="scale_by_adopt")
_reexport(
    "simplified_ademamix",
    floats=2,
    lr=0.03,
    needs="params",
    transform="scale_by_simplified_ademamix",
    states="ScaleBySimplifiedAdEMAMixState",
)
_reexport(
    "cocob",
    "Algorithm 2",
    floats=5,
    lr=200.0,
    needs="params",
    transform="scale_by_cocob",
    states="COCOBState",
)
_reexport("dadapt_adamw", floats=3, lr=200.0, needs="params", states="DAdaptAdamWState", elementwise=False)
_reexport("prodigy", floats=4, lr=200.0, needs="params", states="ProdigyState", elementwise=False)
_reexport("dog", floats=1, lr=200.0, needs="params", states="DoGState", elementwise=False)
_reexport("dowg", "Algorithm 1", floats=1, lr=200.0, needs="params", states="DoWGState", elementwise=False)
_reexport("momo", "Algorithm 1", floats=1, lr=200.0, needs="params value", states="MomoState", elementwise=False)
_reexport(
    "momo_adam",
    source="momo",
    floats=2,
    lr=3.0,
    needs="params value",
    states="MomoAdamState",
    elementwise=False,
)
_reexport(
    "mechanize",
    kind="wrapper",
    floats=1,
    lr=200.0,
    needs="params",
    states="MechanicState",
    elementwise=False,
)
_reexport(
    "clip_by_global_norm",
    "Algorithm 1",
    kind="transform",
    floats=0,
    elementwise=False,
    example={"max_norm": 1.0},
)
