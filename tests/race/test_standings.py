"""The leaderboard: divergence, the choice of the learning rate, and who is said to be better."""

import numpy as np
import pytest
from scipy import stats

from optax_zoo.race import standings
from tests.race.records import make_race, make_result


def falling_to(*finals):
    return [[[2.0, 1.0, final] for final in finals]]


def test_divergence_is_not_finite_or_far_above_the_start():
    loss = np.array([[[2.0, np.nan, 1.0], [2.0, 9.0, 1.0], [2.0, 1.0, 4.1], [2.0, np.inf, np.inf]]])
    np.testing.assert_array_equal(standings.find_diverged(loss), [[True, False, True, True]])
    np.testing.assert_array_equal(standings.find_diverged(np.ones((1, 4, 3)), loss), [[True, False, True, True]])


def test_the_learning_rate_is_chosen_on_the_selection_split():
    result = make_result("adamw", [[[2, 0.5]], [[2, 0.1]]], selection=[[[2, 0.3]], [[2, 0.4]]])
    assert result.best == 0
    assert standings.final_losses(result) == 0.5


def test_a_divergence_on_the_report_split_does_not_choose_the_learning_rate():
    chosen = [[[2, 0.3], [2, 0.3]], [[2, 0.4], [2, 0.4]]]
    result = make_result("adamw", [[[2, np.nan], [2, np.nan]], [[2, 0.4], [2, 0.4]]], selection=chosen)
    np.testing.assert_array_equal(result.diverged, [[True, True], [False, False]])
    assert result.best == 0
    (row,) = standings.leaderboard(make_race(result))
    assert row.diverged and row.loss == 2.0


def test_a_divergence_on_the_training_split_chooses_the_learning_rate():
    train, selection = np.array([[[2, np.inf]], [[2, 0.5]]]), np.array([[[2, 0.3]], [[2, 0.4]]])
    assert standings.choose_best(train, selection) == 1


def test_a_diverged_learning_rate_is_best_only_among_diverged_ones():
    lucky = [[2, 0.01], [2, np.nan]]
    assert make_result("adamw", [lucky, [[2, 1.5], [2, 1.5]]]).best == 1
    assert make_result("adamw", [[[2, np.nan], [2, np.nan]], lucky]).best == 1
    everywhere = make_result("adamw", [[[2, np.nan]], [[2, 99]]])
    (row,) = standings.leaderboard(make_race(everywhere))
    assert row.diverged and row.loss == 2.0


def test_a_diverged_seed_counts_as_untrained():
    result = make_result("adamw", [[[2.0, 1.0, 0.5], [3.0, 1.0, np.nan]]])
    np.testing.assert_array_equal(standings.report_curves(result), [[2.0, 1.0, 0.5], [3.0, 3.0, 3.0]])
    (row,) = standings.leaderboard(make_race(result))
    assert (row.diverged_runs, row.seeds, row.diverged) == (1, 2, False)
    assert row.loss == 1.75


def test_a_diverged_seed_counts_with_its_accuracy_before_training():
    accuracy = np.array([[[0.1, 0.8, 0.9], [0.2, 0.9, 0.95]]])
    result = make_result("adamw", [[[2.0, 1.0, 0.5], [3.0, 1.0, 9.0]]], accuracy=accuracy)
    (row,) = standings.leaderboard(make_race(result))
    assert row.accuracy == pytest.approx((0.9 + 0.2) / 2)
    assert row.accuracy_spread == pytest.approx(np.std([0.9, 0.2], ddof=1))


def test_there_are_no_steps_to_a_loss_that_adamw_never_had():
    race = make_race(make_result("adamw", falling_to(np.nan, np.nan)), make_result("lion", falling_to(0.4, 0.5)))
    assert [row.steps_to_reference for row in standings.leaderboard(race)] == [None, None]


@pytest.mark.parametrize("seeds", [2, 9, 20, 100])
def test_adamw_reaches_its_own_loss_with_any_number_of_seeds(seeds):
    finals = np.random.default_rng(0).uniform(0.1, 0.9, seeds)
    (row,) = standings.leaderboard(make_race(make_result("adamw", falling_to(*finals))))
    assert row.steps_to_reference == 20.0


@pytest.mark.parametrize(("target", "steps"), [(2.0, 0.0), (1.5, 5.0), (1.0, 10.0), (0.6, 18.0), (0.4, np.inf)])
def test_steps_to_reach_are_interpolated(target, steps):
    assert standings.steps_to_reach(make_result("adamw", falling_to(0.5)), target) == pytest.approx(steps)


def test_paired_test_agrees_with_scipy():
    differences = np.random.default_rng(0).normal(0.3, 1.0, (20, 5))
    for row in differences:
        assert standings.paired_p(row) == pytest.approx(stats.ttest_1samp(row, 0.0).pvalue)


def test_paired_test_without_variation_or_seeds():
    assert standings.paired_p(np.zeros(3)) == 1.0
    assert standings.paired_p(np.full(3, 0.5)) == 0.0
    assert standings.paired_p(np.ones(2)) is None


def test_holm_by_hand():
    assert standings.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert standings.holm([0.6, 0.9]) == [1.0, 1.0]
    assert standings.holm([]) == []


def test_verdicts_need_consistent_differences():
    adamw = make_result("adamw", falling_to(0.50, 0.60, 0.70))
    race = make_race(
        adamw,
        make_result("steady", falling_to(0.40, 0.501, 0.60)),
        make_result("lucky", falling_to(0.10, 0.65, 0.75)),
        make_result("poor", falling_to(0.80, 0.901, 1.00)),
    )
    verdicts = {name: comparison.verdict for name, comparison in standings.compare(race).items()}
    assert verdicts == {"steady": "better", "lucky": "unclear", "poor": "worse"}
    assert standings.compare(race)["steady"].difference == pytest.approx(-0.0996667, abs=1e-6)


def test_correction_grows_with_the_number_of_optimizers():
    adamw = make_result("adamw", falling_to(0.50, 0.60, 0.70))
    steady = make_result("steady", falling_to(0.39, 0.52, 0.60))
    others = [make_result(f"other{n}", falling_to(0.5, 0.7, 0.6)) for n in range(9)]
    alone = standings.compare(make_race(adamw, steady))["steady"]
    crowd = standings.compare(make_race(adamw, steady, *others))["steady"]
    assert alone.p == crowd.p and alone.p_holm is not None
    assert crowd.p_holm == pytest.approx(10 * alone.p_holm)
    assert (alone.verdict, crowd.verdict) == ("better", "unclear")


def test_few_seeds_decide_nothing():
    race = make_race(make_result("adamw", falling_to(0.5, 0.5)), make_result("lion", falling_to(0.1, 0.1)))
    assert standings.compare(race)["lion"].verdict == "too few seeds"


def test_leaderboard_is_ordered_by_loss_with_the_diverged_last():
    race = make_race(
        make_result("adamw", falling_to(0.5, 0.6, 0.7), accuracy=np.full((1, 3, 3), 0.75)),
        make_result("broken", falling_to(np.nan, np.nan, np.nan)),
        make_result("lion", falling_to(0.4, 0.5, 0.6)),
    )
    rows = standings.leaderboard(race)
    assert [row.name for row in rows] == ["lion", "adamw", "broken"]
    lion, adamw, broken = rows
    assert adamw.comparison is None and adamw.accuracy == 0.75 and adamw.steps_to_reference == 20.0
    assert lion.accuracy is None and lion.steps_to_reference == pytest.approx(10 + 10 * 0.4 / 0.5)
    assert lion.loss == pytest.approx(0.5) and lion.loss_spread == pytest.approx(0.1)
    assert broken.steps_to_reference is None and broken.diverged


@pytest.mark.parametrize(("finals", "edge"), [((1, 2, 3), "lowest"), ((3, 2, 1), "highest"), ((3, 1, 2), None)])
def test_a_best_rate_at_the_edge_of_the_grid_is_told(finals, edge):
    race = make_race(make_result("adamw", [[[4.0, final]] for final in finals]))
    assert standings.leaderboard(race)[0].at_edge == edge


def test_without_adamw_nothing_is_compared():
    race = make_race(make_result("lion", falling_to(0.5, 0.6, 0.7)))
    assert standings.compare(race) == {}
    assert standings.leaderboard(race)[0].steps_to_reference is None
