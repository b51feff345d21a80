"""The schedules of a race: each is what its name says."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_zoo
from optax_zoo.race import schedules
from optax_zoo.schedules.wsd import Cooldown

STEPS, WARM_UP = 100, 5
OWN = ("decay", "constant")


def rates(kind, steps=STEPS, peak=0.3, averages=False):
    rate = schedules.schedule(kind, jnp.float32(peak), steps, averages)
    return np.asarray(jax.jit(jax.vmap(rate))(jnp.arange(steps)))


def rising(count):
    return jnp.minimum(1.0, (count + 1) / WARM_UP)


EXPECTED = {
    "linear_to_zero": optax_zoo.linear_to_zero(0.3, STEPS, WARM_UP),
    "cosine": optax.warmup_cosine_decay_schedule(0.0, 0.3, WARM_UP, STEPS, 0.03),
    "wsd": optax_zoo.wsd(0.3, STEPS, WARM_UP, 0.2),
    "wsd_linear": optax_zoo.wsd(0.3, STEPS, WARM_UP, 0.2, "linear"),
    "wsd_cosine": optax_zoo.wsd(0.3, STEPS, WARM_UP, 0.2, "cosine"),
    "wsd_mirror_cosine": optax_zoo.wsd(0.3, STEPS, WARM_UP, 0.2, "mirror_cosine"),
    "wsd_square": optax_zoo.wsd(0.3, STEPS, WARM_UP, 0.2, "square"),
    "wsd_exp": optax_zoo.wsd(0.3, STEPS, WARM_UP, 0.2, "exp", final_factor=0.01),
    "swa": lambda count: rising(count) * optax_zoo.swa_lr_schedule(0.3, 0.06, 75)(count),
    "cyclic": lambda count: rising(count) * optax_zoo.cyclic_lr(0.3, 0.003, 10)(count),
}


def test_all_are_expected_and_every_cooldown_has_a_name():
    assert set(schedules.SCHEDULES) == {*OWN, *EXPECTED}
    cooldowns = {"wsd", *(f"wsd_{decay}" for decay in get_args(Cooldown) if decay != "sqrt")}
    assert cooldowns == {name for name in EXPECTED if name.startswith("wsd")}


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("averages", [False, True])
def test_a_name_is_the_schedule_of_the_library_for_all_methods(kind, averages):
    expected = [EXPECTED[kind](count) for count in range(STEPS)]
    np.testing.assert_allclose(rates(kind, averages=averages), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_schedule_fits_a_short_run(kind, steps):
    got = rates(kind, steps)
    assert got.shape == (steps,) and got.dtype == np.float32
    assert (np.isfinite(got) & (got >= 0) & (got <= 0.3 * (1 + 1e-6))).all()


def test_only_the_default_spares_methods_that_average():
    assert [kind for kind, shape in schedules.SCHEDULES.items() if shape.exception] == [schedules.DEFAULT]
    np.testing.assert_array_equal(rates("decay", averages=True), rates("constant"))
    assert rates("decay")[-1] < 0.01 < rates("constant")[-1]


def test_the_sentence_names_what_it_describes():
    assert schedules.described("constant", "wsd_linear") == (
        "Learning rate, after a warm-up over the first 5 % of the steps: constant: the peak throughout; "
        "wsd_linear: the peak, then over the last fifth of the steps down to zero like 1 - x."
    )
