"""The bootstrap against closed forms, and the corrections against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.statistics import (
    Sample,
    Units,
    bootstrap,
    holm,
    interval,
    pairwise,
    point,
    rank_interval,
    ranks,
    tiers,
)


def one_seed(person, values):
    values = np.asarray(values, float)
    return Sample("units", [Units(np.asarray(person))], [values], np.ones((1, values.shape[1]), bool))


def test_with_one_unit_each_it_is_the_plain_bootstrap_over_people():
    n = 80
    values = np.random.default_rng(0).random((n, 2))
    (draws,) = bootstrap(n, [one_seed(np.arange(n), values)], "plain", draws=10_000)
    plain = values.std(axis=0) / np.sqrt(n)
    np.testing.assert_allclose(draws.mean(axis=1), values.mean(axis=0), atol=4 * plain.max() / 100)
    np.testing.assert_allclose(draws.std(axis=1), plain, rtol=0.03)


def test_the_variance_of_two_stages_is_between_people_plus_within_people():
    n, m = 60, 5
    person = np.repeat(np.arange(n), m)
    rng = np.random.default_rng(1)
    values = (rng.random((n, 1))[person // 1] + rng.normal(size=(n * m, 1))).astype(float)
    (draws,) = bootstrap(n, [one_seed(person, values)], "two stages", draws=10_000)
    table = values.reshape(n, m)
    closed = table.mean(axis=1).var() / n + (table.var(axis=1) / m).mean() / n
    assert draws[0].var() == pytest.approx(closed, rel=0.06)
    assert draws[0].mean() == pytest.approx(table.mean(), abs=4 * np.sqrt(closed / 10_000))


def test_people_with_different_numbers_of_units_weigh_the_same():
    person = np.array([0, 1, 1, 1, 2, 2])
    values = np.array([[0.0], [1], [1], [1], [1], [1]])
    sample = one_seed(person, values)
    assert point(sample) == pytest.approx(2 / 3)
    (draws,) = bootstrap(3, [sample], "unequal", draws=2000)
    assert set(np.round(draws[0] * 3, 9)) == {0, 1, 2, 3}


def test_seeds_are_resampled_as_the_outer_level():
    units = Units(np.arange(4))
    sample = Sample("units", [units, units], [np.zeros((4, 1)), np.ones((4, 1))], np.ones((2, 1), bool))
    (draws,) = bootstrap(4, [sample], "seeds", draws=4000)
    assert {0.0, 0.5, 1.0} == set(draws[0])
    assert (draws[0] == 0.5).mean() == pytest.approx(0.5, abs=0.04)


def test_a_person_has_the_same_weight_in_every_seed_and_column_so_that_differences_are_paired():
    n = 40
    effect = np.random.default_rng(2).random((n, 1))
    units = [Units(np.arange(n)), Units(np.arange(n))]
    values = np.hstack([effect, effect - 0.1])
    sample = Sample("units", units, [values, values], np.ones((2, 2), bool))
    (draws,) = bootstrap(n, [sample], "paired", draws=500)
    np.testing.assert_allclose(draws[0] - draws[1], 0.1, atol=1e-12)


def test_a_column_without_a_seed_is_averaged_over_the_others():
    units = Units(np.arange(3))
    present = np.array([[True, True], [True, False]])
    sample = Sample("units", [units, units], [np.zeros((3, 2)), np.ones((3, 2))], present)
    assert point(sample).tolist() == [0.5, 0.0]
    (draws,) = bootstrap(3, [sample], "lacking", draws=200)
    assert not draws[1].any()


def test_draws_do_not_depend_on_the_columns_beside():
    n = 30
    values = np.random.default_rng(3).random((n, 3))
    (alone,) = bootstrap(n, [one_seed(np.arange(n), values[:, :1])], "same", draws=300)
    (beside,) = bootstrap(n, [one_seed(np.arange(n), values)], "same", draws=300)
    np.testing.assert_allclose(alone[0], beside[0], rtol=1e-12)


def test_percentile_intervals():
    low, high = interval(np.arange(1001.0)[None])
    assert (low[0], high[0]) == pytest.approx((25, 975))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_at_least_the_raw_and_at_most_bonferroni(raw):
    p = np.array(raw)
    adjusted = holm(p)
    order = np.argsort(p, kind="stable")
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-12).sum() >= 1
    assert (np.diff(adjusted[order]) >= -1e-15).all()
    assert adjusted[order[0]] == pytest.approx(min(1, p.min() * len(p)))


def test_pairs_tiers_and_ranks():
    rng = np.random.default_rng(4)
    shared = rng.normal(size=4000)
    draws = np.stack([0.7 + 0.05 * shared, 0.69 + 0.05 * shared + 0.02 * rng.normal(size=4000), 0.5 + 0.05 * shared])
    values = np.array([0.7, 0.69, 0.5])
    told = pairwise(values, draws)
    # All three share the noise of the people, so the paired difference of the first and last has none.
    assert told.error[0, 2] == pytest.approx(0, abs=1e-6)
    assert told.p[0, 2] < 1e-6
    assert told.p[0, 1] > 0.05
    assert told.error[0, 1] == pytest.approx((draws[0] - draws[1]).std(ddof=1), rel=1e-6)
    assert tiers(values, told.p).tolist() == [1, 1, 2]
    low, high = rank_interval(draws)
    assert low.tolist() == [1, 1, 3]
    assert high.tolist() == [2, 2, 3]
    assert ranks(values).tolist() == [1, 2, 3]


def test_equal_methods_share_rank_and_tier():
    draws = np.tile(np.random.default_rng(5).random(100), (3, 1))
    values = np.full(3, 0.5)
    assert tiers(values, pairwise(values, draws).p).tolist() == [1, 1, 1]
    assert ranks(values).tolist() == [1, 1, 1]
    low, high = rank_interval(draws)
    assert (low.tolist(), high.tolist()) == ([1, 1, 1], [3, 3, 3])
