"""What a race shows: the same numbers in terminal, page and pictures, for every kind of race."""

import io
import itertools
import re

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
from matplotlib.text import Text
from rich.console import Console

import optax_zoo
from optax_zoo.race import drawing, pictures, report, standings, surface
from optax_zoo.race.errors import RaceError
from tests.race.records import make_race, make_result


def finals_at(*finals, start=2.3):
    """[S, E] curves that fall from `start` to each of `finals`."""
    return [[start + (final - start) * (1 - share) for share in [1.0, 0.4, 0.0]] for final in finals]


def racer(name, *finals, rates=3, accuracy=True):
    """An optimizer whose middle learning rate reaches `finals`, one for each seed."""
    curves = np.array([finals_at(*np.add(finals, 0.2 * abs(i - rates // 2))) for i in range(rates)])
    return make_result(name, curves, accuracy=1 - curves / 10 if accuracy else None)


def lost(name):
    return make_result(name, [[[2.3, np.nan, np.nan]] * 3] * 3)


def many(count):
    names = ["adamw", *(f"method_{i:02d}" for i in range(count - 1))]
    return make_race(*(racer(name, *(0.1 + 0.01 * i + 0.001 * np.arange(3))) for i, name in enumerate(names)))


RACES = {
    "typical": make_race(
        racer("adamw", 0.30, 0.31, 0.32),
        racer("muon", 0.2001, 0.2102, 0.2203),
        racer("sgd", 0.5, 0.3, 0.7),
        lost("lion"),
    ),
    "many": many(14),
    "only AdamW": make_race(racer("adamw", 0.3, 0.4, 0.5)),
    "without AdamW": make_race(racer("sgd", 0.3, 0.4, 0.5), racer("muon", 0.2, 0.2, 0.2)),
    "all diverged": make_race(lost("adamw"), lost("muon")),
    "one learning rate, one seed": make_race(racer("adamw", 0.3, rates=1), racer("muon", 0.4, rates=1)),
    "no accuracy": make_race(racer("adamw", 2.0, 2.1, accuracy=False), racer("sgd", 2.2, 2.3, accuracy=False)),
    "a diverged seed": make_race(racer("adamw", 0.3, 0.4), make_result("sgd", [[[2.3, 1, 0.2], [2.3, 1, np.nan]]])),
    "a loss of zero": make_race(racer("adamw", 0.3, 0.4), racer("muon", 0.0, 0.0)),
    "far apart": make_race(
        make_result("adamw", [[[0.1, 0.05, 0.01]] * 3]),
        make_result("muon", [[[0.1, 0.05, 0.02]] * 3]),
        make_result("sgd", [[[2.3, 2.2, 2.0]] * 3]),
    ),
}
every_race = pytest.mark.parametrize("race", RACES.values(), ids=RACES)
TYPICAL = RACES["typical"]


def cells(race):
    """The page's table as {optimizer: {heading: cell}}."""
    lines = [line for line in report.markdown(race).splitlines() if line.startswith("|")]
    heading, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(heading, row, strict=True)) for row in rows}


def printed(race, width=200):
    stream = io.StringIO()
    report.print_leaderboard(race, Console(file=stream, width=width))
    return stream.getvalue()


@every_race
def test_the_page_holds_the_numbers_of_the_standings(race):
    table = cells(race)
    rows = standings.leaderboard(race)
    assert list(table) == [row.name for row in rows]
    for row in rows:
        cell = table[row.name]
        assert cell["state per parameter (bytes)"] == "8" and cell["time per step"] == "1.50x"
        if row.diverged:
            assert cell["final loss (nats)"] == "diverged" and cell["learning rate"] == "-"
            continue
        numbers = [float(x) for x in re.findall(r"[\d.]+", cell["final loss (nats)"])]
        assert numbers[0] == pytest.approx(row.loss, abs=5.1e-4)
        assert len(numbers) == 1 or numbers[1] == pytest.approx(row.loss_spread, abs=5.1e-4)
        assert float(cell["learning rate"].split()[0]) == pytest.approx(row.learning_rate, rel=0.05)
        if row.accuracy is not None:
            assert float(cell["accuracy (%)"].split()[0]) == pytest.approx(100 * row.accuracy, abs=0.051)


def test_comparison_with_adamw():
    table = cells(TYPICAL)
    assert table["adamw"]["against AdamW"] == "reference"
    assert table["muon"]["against AdamW"].startswith("better, p ")
    assert table["sgd"]["against AdamW"].startswith("unclear, p = ")
    assert table["lion"]["against AdamW"] == "-"
    (muon,) = [row for row in standings.leaderboard(TYPICAL) if row.name == "muon"]
    assert table["muon"]["steps to AdamW's loss"] == f"{muon.steps_to_reference:.0f}"
    assert table["sgd"]["steps to AdamW's loss"] == "never"


def test_no_column_of_steps_to_the_loss_of_an_adamw_that_diverged():
    race = make_race(lost("adamw"), racer("sgd", 0.3, 0.4, 0.5))
    assert "steps to AdamW's loss" not in cells(race)["sgd"]
    assert "Steps to AdamW's loss" not in report.markdown(race)
    assert cells(race)["sgd"]["against AdamW"].startswith("better")


@pytest.mark.parametrize("name", ["only AdamW", "without AdamW"])
def test_no_columns_of_comparison_without_one(name):
    page = report.markdown(RACES[name])
    assert "AdamW's loss" not in page and standings.SIGNIFICANCE_RULE not in page


def test_a_column_without_values_is_left_out():
    assert "accuracy (%)" not in next(iter(cells(RACES["no accuracy"]).values()))
    assert "accuracy (%)" in cells(TYPICAL)["adamw"]


def test_a_diverged_seed_is_told():
    assert cells(RACES["a diverged seed"])["sgd"]["final loss (nats)"].endswith(", 1 of 2 diverged")


@pytest.mark.parametrize("edge, arrow", [(0, "↓"), (1, None), (2, "↑")])
def test_a_best_rate_at_the_edge_of_the_grid_is_marked_and_explained(edge, arrow):
    curves = [finals_at(0.1 if i == edge else 0.5) for i in range(3)]
    race = make_race(make_result("adamw", curves))
    assert cells(race)["adamw"]["learning rate"].split()[1:] == ([arrow] if arrow else [])
    assert ("wider grid" in report.markdown(race)) == (arrow is not None)


@every_race
@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_tells_what_the_page_tells(race, width):
    lines = printed(race, width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    shown = " ".join(" ".join(lines).split())
    for name, row in cells(race).items():
        assert name in shown
        for cell in row.values():
            assert all(word in shown for word in cell.replace(",", "").split())
    assert standings.DIVERGENCE_RULE in shown
    compared = any(row.comparison for row in standings.leaderboard(race))
    assert (standings.SIGNIFICANCE_RULE in shown) == compared
    assert (standings.SIGNIFICANCE_RULE in report.markdown(race)) == compared


@pytest.mark.parametrize("unsafe", ["a[b", "[red]nats"])
def test_the_terminal_shows_brackets_as_they_are(unsafe):
    assert unsafe in printed(make_race(racer(unsafe, 0.3, 0.4)))


def zigzag(steps=300):
    points = np.array([surface.START, *([-1 + i / steps, (i % 2) - 0.5] for i in range(steps))], np.float32)
    return surface.Trajectory(0.1, points, points * 0.9, 0.5)


def check_picture(path, width):
    image = matplotlib.image.imread(path)
    assert image.shape[1] == width and 200 <= image.shape[0] <= 6000
    ink = (image[..., :3] < 0.5).any(axis=-1).mean()
    assert 0.001 < ink < 0.8


@every_race
def test_every_race_has_its_pictures(race, tmp_path):
    drawn = pictures.draw(race, {}, tmp_path)
    assert [path.name for path in drawn] == ["curves.png", "training_curves.png", "sensitivity.png"]
    for path in drawn:
        check_picture(path, 1800)


def test_pictures_of_paths(tmp_path):
    gone = surface.Trajectory(1e-4, np.array([surface.START], np.float32), None, float("nan"))
    drawn = pictures.draw(TYPICAL, {"here": zigzag(), "gone": gone}, tmp_path)
    sheet, here, away = drawn[3:]
    assert (here, away) == (tmp_path / "surface" / "here.png", tmp_path / "surface" / "gone.png")
    check_picture(sheet, 1800)
    check_picture(here, 900)
    assert "diverged at all" in "".join(texts(pictures.surface_pictures.picture("gone", gone)))


def test_the_same_results_give_the_same_files(tmp_path):
    first, second = (pictures.draw(RACES["only AdamW"], {"x": zigzag()}, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_pictures_have_the_permissions_of_any_new_file_and_leave_nothing_beside_them(tmp_path):
    (tmp_path / "other").touch()
    (path,) = drawing.save({"x.png": drawing.new_figure(2.0, "title", "subtitle")}, tmp_path)
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "x.png"]


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_pictures_name_what_they_show():
    curves, sensitivity = texts(pictures.curves(TYPICAL)), texts(pictures.sensitivity(TYPICAL))
    assert "Held-out loss: muon ends lowest, clearly below AdamW" in curves
    assert "Every seed diverged: lion" in curves
    assert {"adamw  0.310", "muon  0.210", "sgd  0.500"} <= set(curves)
    assert {"adamw", "muon", "sgd", "lion", "learning rate", "final loss (nats)"} <= set(sensitivity)
    assert "sgd  2.00 ↑" in texts(pictures.curves(RACES["far apart"]))
    close = make_race(racer("adamw", 0.3, 0.4, 0.5), racer("sgd", 0.2, 0.4, 0.5))
    assert "Held-out loss: sgd ends lowest, not clearly below AdamW" in texts(pictures.curves(close))


@pytest.mark.parametrize("race, labels", [(many(20), 20), (many(40), 7)], ids=["twenty", "forty"])
def test_labels_at_line_ends_are_apart_and_in_order(race, labels):
    figure = pictures.curves(race)
    (axes,) = figure.axes
    placed = sorted(axes.texts, key=lambda text: text.get_position()[1])
    assert len(placed) == labels
    values = [float(text.get_text().split()[1]) for text in placed]
    assert values == sorted(values)
    boxes = [text.get_window_extent() for text in placed]
    assert all(lower.y1 < upper.y0 for lower, upper in itertools.pairwise(boxes))
    assert all(box.x0 > 0 and box.x1 < figure.bbox.width for box in boxes)


def test_adamw_is_dark_the_best_are_coloured_the_rest_is_grey():
    names = [f"m{i}" for i in range(12)]
    look = drawing.looks([*names[:10], "adamw", *names[10:]])
    assert look["adamw"] is drawing.ADAMW
    coloured = [name for name in names if look[name] is not drawing.OTHER]
    assert coloured == names[:6]
    assert len({(look[name].colour, look[name].dashes) for name in coloured}) == 6
    assert drawing.OTHER not in drawing.looks([*names[:7], "adamw"]).values()


@pytest.mark.parametrize("seed", range(50))
def test_labels_are_spread_as_little_as_needed(seed):
    rng = np.random.default_rng(seed)
    wishes = rng.choice([rng.uniform(0, 1, 12), rng.normal(0.02, 0.01, 12), np.full(12, 0.4)])
    wishes = wishes[: rng.integers(1, 13)]
    spacing = rng.uniform(0.0, 0.08)
    placed = drawing.spread_labels(wishes, spacing, 0.0, 1.0)
    order = np.argsort(wishes, kind="stable")
    assert (np.diff(placed[order]) >= spacing - 1e-12).all()
    assert (placed >= -1e-12).all() and (placed <= 1 + 1e-12).all()

    cost = np.square(placed - wishes).sum()
    for _ in range(200):
        other = placed[order] + rng.normal(0, 0.02, wishes.size)
        other = np.maximum.accumulate(other - spacing * np.arange(wishes.size)) + spacing * np.arange(wishes.size)
        other -= max(other[-1] - 1.0, 0.0)
        if other[0] >= 0.0:
            assert np.square(other - wishes[order]).sum() >= cost - 1e-12


def test_labels_that_do_not_fit_overflow_both_ends_alike():
    placed = drawing.spread_labels([0.9, 0.1, 0.5], 0.8, 0.0, 1.0)
    np.testing.assert_allclose(placed, [1.3, -0.3, 0.5])
    assert drawing.spread_labels([], 0.1, 0.0, 1.0).shape == (0,)


@pytest.mark.parametrize("bounds", [(1e-4, 80.0), (0.03, 0.5), (2.05, 3.2), (2.19, 2.21), (1e-9, 1.0), (0.99, 1.01)])
def test_ticks_are_few_round_and_inside(bounds):
    ticks = drawing.round_ticks(*bounds)
    assert 3 <= len(ticks) <= 9
    assert ticks == sorted(ticks)
    assert all(bounds[0] <= tick <= bounds[1] for tick in ticks)
    assert all(float(f"{tick:.4g}") == pytest.approx(tick, rel=1e-12) for tick in ticks)


gradient = jax.jit(jax.grad(surface.valley))


def paper(make):
    return optax_zoo.Paper(name="x", title="X", authors=("X, Y",), year=2000, make=make)


def test_a_path_is_that_of_a_training_loop():
    path = surface.run(paper(optax.sgd), steps=40)
    point = np.array(surface.START, np.float32)
    for expected in path.points:
        np.testing.assert_allclose(point, expected, rtol=1e-3, atol=1e-4)
        point = point - path.learning_rate * np.asarray(gradient(point))
    assert path.points.shape == (41, 2) and path.averaged is None
    assert path.value == pytest.approx(float(surface.valley(path.points[-1])))


def test_the_learning_rate_of_a_path_ends_lowest_of_those_that_stay_inside():
    path = surface.run(paper(optax.sgd), steps=40)
    for rate in surface.LEARNING_RATES:
        point, inside = np.array(surface.START, np.float32), True
        for _ in range(40):
            point = point - rate * np.asarray(gradient(point))
            inside = inside and bool(((point >= surface.LOWER) & (point <= surface.UPPER)).all())
            if not inside:
                break
        assert not inside or float(surface.valley(point)) >= path.value * (1 - 1e-3)


def test_a_path_that_leaves_the_picture_is_not_chosen_even_if_it_ends_lower():
    def detour(learning_rate):
        def update(updates, count, params):
            away = jnp.where(count == 0, 10.0, jnp.asarray(surface.MINIMUM) - params)
            return jnp.where(learning_rate > 1.0, away, jnp.zeros_like(updates)), count + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    path = surface.run(paper(detour), steps=3)
    assert path.learning_rate <= 1.0
    assert path.value == pytest.approx(float(surface.valley(surface.START)))


def test_the_average_has_a_path_of_its_own():
    path = surface.run(optax_zoo.paper("with_ema"), steps=20)
    assert path.averaged is not None and path.averaged.shape == (21, 2)
    assert path.value == pytest.approx(float(surface.valley(path.averaged[-1])), rel=1e-4)
    np.testing.assert_array_equal(path.averaged[0], surface.START)


def test_a_path_that_diverges_at_every_rate_is_cut():
    def explode(learning_rate):
        return optax.scale_by_learning_rate(1e20 * (1 + learning_rate))

    path = surface.run(paper(explode), steps=20)
    assert not np.isfinite(path.value)
    assert np.isfinite(path.points).all() and 1 <= len(path.points) < 21


def test_the_report_is_written_and_refers_to_what_is_there(tmp_path):
    race = make_race(racer("adamw", 0.3, 0.4, 0.5), racer("no longer registered", 0.2, 0.3, 0.4))
    page, *drawn = report.write_report(race, tmp_path)
    assert page == tmp_path / "leaderboard.md"
    assert sorted(tmp_path.rglob("*.*")) == sorted([page, *drawn])
    assert tmp_path / "surface" / "adamw.png" in drawn
    linked = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert [tmp_path / path for path in linked] == drawn
    assert report.markdown_table(race) in page.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    (tmp_path / "leaderboard.md").mkdir()
    with pytest.raises(RaceError, match=r"cannot write to .*: Is a directory; results\.json is complete"):
        report.write_report(make_race(racer("adamw", 0.3, 0.4, 0.5)), tmp_path)
