"""The bootstrap against closed forms and simulated truth, and the corrections against their definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.statistics import (
    Crossing,
    Sample,
    Units,
    bootstrap,
    holm,
    interval,
    pairwise,
    point,
    rank_bounds,
    ranks,
    tiers,
    widened,
)


def one_seed(person, values, prompt=None):
    values, person = np.asarray(values, float), np.asarray(person)
    prompt = np.arange(len(person)) if prompt is None else np.asarray(prompt)
    return Sample([Units(person, prompt)], [values], np.ones((1, values.shape[1]), bool))


def test_with_one_unit_each_it_is_the_plain_bootstrap_over_people():
    n = 80
    values = np.random.default_rng(0).random((n, 2))
    (draws,) = bootstrap(n, [one_seed(np.arange(n), values)], "plain", draws=10_000)
    plain = values.std(axis=0) / np.sqrt(n)
    np.testing.assert_allclose(draws.mean(axis=1), values.mean(axis=0), atol=4 * plain.max() / 100)
    np.testing.assert_allclose(draws.std(axis=1), plain, rtol=0.03)


def test_the_variance_is_that_between_means_of_people_and_counts_the_noise_of_units_once():
    n, m = 60, 5
    person = np.repeat(np.arange(n), m)
    rng = np.random.default_rng(1)
    values = rng.random((n, 1))[person] + rng.normal(size=(n * m, 1))
    (draws,) = bootstrap(n, [one_seed(person, values)], "people", draws=10_000)
    table = values.reshape(n, m)
    closed = table.mean(axis=1).var() / n
    assert draws[0].var() == pytest.approx(closed, rel=0.06)
    assert draws[0].mean() == pytest.approx(table.mean(), abs=4 * np.sqrt(closed / 10_000))


def test_people_with_different_numbers_of_units_weigh_the_same():
    person = np.array([0, 1, 1, 1, 2, 2])
    values = np.array([[0.0], [1], [1], [1], [1], [1]])
    sample = one_seed(person, values)
    assert point(sample) == pytest.approx(2 / 3)
    (draws,) = bootstrap(3, [sample], "unequal", draws=2000)
    assert set(np.round(draws[0] * 3, 9)) == {0, 1, 2, 3}


def test_seeds_are_averaged_and_not_drawn():
    units = Units(np.arange(4), np.arange(4))
    sample = Sample([units, units], [np.zeros((4, 1)), np.ones((4, 1))], np.ones((2, 1), bool))
    (draws,) = bootstrap(4, [sample], "seeds", draws=400)
    assert set(draws[0]) == {0.5}


def test_a_person_has_the_same_weight_in_every_seed_and_column_so_that_differences_are_paired():
    n = 40
    effect = np.random.default_rng(2).random((n, 1))
    units = [Units(np.arange(n), np.arange(n)), Units(np.arange(n), np.arange(n))]
    values = np.hstack([effect, effect - 0.1])
    sample = Sample(units, [values, values], np.ones((2, 2), bool))
    (draws,) = bootstrap(n, [sample], "paired", draws=500)
    np.testing.assert_allclose(draws[0] - draws[1], 0.1, atol=1e-12)


def test_a_column_without_a_seed_is_averaged_over_the_others():
    units = Units(np.arange(3), np.arange(3))
    present = np.array([[True, True], [True, False]])
    sample = Sample([units, units], [np.zeros((3, 2)), np.ones((3, 2))], present)
    assert point(sample).tolist() == [0.5, 0.0]
    (draws,) = bootstrap(3, [sample], "lacking", draws=200)
    assert not draws[1].any()
    assert not Crossing.of([units]).influence(sample).any()


def test_draws_do_not_depend_on_the_columns_beside():
    n = 30
    values = np.random.default_rng(3).random((n, 3))
    (alone,) = bootstrap(n, [one_seed(np.arange(n), values[:, :1])], "same", draws=300)
    (beside,) = bootstrap(n, [one_seed(np.arange(n), values)], "same", draws=300)
    np.testing.assert_allclose(alone[0], beside[0], rtol=1e-12)


def crossed(n, m, k, seed):
    """Everybody judges the same m prompts, k columns."""
    person, prompt = np.repeat(np.arange(n), m), np.tile(np.arange(m), n)
    return one_seed(person, np.random.default_rng(seed).normal(size=(n * m, k)), prompt)


def test_the_two_way_variance_is_that_of_a_balanced_table():
    n, m = 20, 8
    sample = crossed(n, m, 2, 0)
    crossing = Crossing.of(sample.units)
    influence = crossing.influence(sample)
    table = sample.values[0].reshape(n, m, 2)
    grand = table.mean(axis=(0, 1))
    people = ((table.mean(axis=1) - grand) ** 2).sum(axis=0) / n**2
    prompts = ((table.mean(axis=0) - grand) ** 2).sum(axis=0) / m**2
    cells = ((table - grand) ** 2).sum(axis=(0, 1)) / (n * m) ** 2
    more = np.maximum(m / (m - 1) * (prompts - cells), 0)
    np.testing.assert_allclose(crossing.widening(influence), np.sqrt(1 + more / people))
    difference = (influence[:, :1] - influence[:, 1:])[:, 0]
    whole = m / (m - 1) * ((crossing.prompts(difference[:, None]) ** 2).sum() - (difference**2).sum())
    assert crossing.shared_variance(influence)[0, 1] == pytest.approx(max(whole, 0), abs=1e-12)
    assert (np.diag(crossing.shared_variance(influence)) < 1e-15).all()


def test_nothing_is_widened_where_every_prompt_is_one_persons_own_or_there_is_but_one():
    person, values = np.repeat(np.arange(20), 3), np.random.default_rng(0).random((60, 2))
    own = one_seed(person, values)
    one = one_seed(np.arange(20), values[:20], np.zeros(20, int))
    for sample in (own, one):
        crossing = Crossing.of(sample.units)
        influence = crossing.influence(sample)
        assert crossing.widening(influence).tolist() == [1, 1]
        assert not crossing.shared_variance(influence).any()
    draws = np.random.default_rng(1).random((2, 50))
    assert widened(np.zeros(2), draws, np.ones(2)) is draws
    np.testing.assert_allclose(widened(np.ones(2), draws, np.array([1.0, 3])) - 1, (draws - 1) * [[1], [3]])


def test_influences_are_the_derivative_of_the_estimate_by_the_weight_of_a_person():
    rng = np.random.default_rng(0)
    units = [Units(np.repeat(np.arange(6), 2), np.tile([0, 1], 6)), Units(np.arange(1, 5), np.full(4, 2))]
    sample = Sample(units, [rng.random((12, 1)), rng.random((4, 1))], np.ones((2, 1), bool))
    crossing = Crossing.of(units)
    by_person = crossing.people(crossing.influence(sample))[:, 0]

    def estimate(weight):
        means = [each[:, 0] for each in sample.people]
        return np.mean([np.average(m, weights=weight[u.present]) for m, u in zip(means, units, strict=True)])

    step = 1e-6
    for i in range(6):
        slope = (estimate(np.ones(6) + step * (np.arange(6) == i)) - estimate(np.ones(6))) / step
        assert slope == pytest.approx(by_person[i], abs=1e-5)


def simulated(people, prompts, noise, *, n, m, seeds, n_prompts, repetitions=150):
    """Whether 95 % intervals cover the truth (0), and their mean standard error over the true one.

    `n` people are asked `m` prompts in each of `seeds` seeds: the same people in each seed, no prompt twice; each
    their own, or `n_prompts` that they share.
    """
    covered, errors, estimates = [], [], []
    for repetition in range(repetitions):
        rng = np.random.default_rng([n, m, seeds, repetition])
        effect, difficulty = people * rng.normal(size=n), prompts * rng.normal(size=(n_prompts or n * m * seeds))
        asked = np.arange(n * m * seeds).reshape(n, -1) % len(difficulty)
        asked = rng.permuted(asked, axis=1) if n_prompts else asked
        units = [Units(np.repeat(np.arange(n), m), np.sort(a, axis=1).ravel()) for a in np.split(asked, seeds, axis=1)]
        values = [effect[u.person] + difficulty[u.prompt] + noise * rng.normal(size=n * m) for u in units]
        sample = Sample(units, [v[:, None] for v in values], np.ones((seeds, 1), bool))
        (draws,) = bootstrap(n, [sample], "simulated", repetition, draws=600)
        crossing, value = Crossing.of(units), point(sample)
        draws = widened(value, draws, crossing.widening(crossing.influence(sample)))
        (low,), (high,) = interval(draws)
        covered.append(low <= 0 <= high)
        errors.append(draws.std())
        estimates.append(value[0])
    return np.mean(covered), np.mean(errors) / np.sqrt(np.mean(np.square(estimates)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_where_people_differ_and_units_are_noisy(seeds):
    coverage, ratio = simulated(0.2, 0, 0.4, n=60, m=3, seeds=seeds, n_prompts=0)
    assert 0.86 <= coverage <= 1
    assert 0.75 <= ratio <= 1.25


@pytest.mark.parametrize(("seeds", "m"), [(1, 12), (3, 4)])
def test_intervals_cover_where_people_share_prompts(seeds, m):
    coverage, ratio = simulated(0.1, 0.15, 0.4, n=50, m=m, seeds=seeds, n_prompts=12)
    assert coverage >= 0.85
    assert 0.75 <= ratio <= 1.25


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
    low, high = rank_bounds(values, told.p)
    assert low.tolist() == [1, 1, 3]
    assert high.tolist() == [2, 2, 3]
    assert ranks(values).tolist() == [1, 2, 3]
    # What prompts add to a difference can make it as uncertain as any other.
    wide = pairwise(values, draws, np.full((3, 3), 0.1**2))
    assert wide.error[0, 1] == pytest.approx(np.hypot(told.error[0, 1], 0.1))
    assert tiers(values, wide.p).tolist() == [1, 1, 1]


def test_equal_methods_share_rank_and_tier():
    draws = np.tile(np.random.default_rng(5).random(100), (3, 1))
    values = np.full(3, 0.5)
    p = pairwise(values, draws).p
    assert tiers(values, p).tolist() == [1, 1, 1]
    assert ranks(values).tolist() == [1, 1, 1]
    low, high = rank_bounds(values, p)
    assert (low.tolist(), high.tolist()) == ([1, 1, 1], [3, 3, 3])


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.01, 1))
def test_tiers_and_rank_intervals_agree(seed, k, spread):
    rng = np.random.default_rng(seed)
    values = np.round(spread * rng.random(k), 2)
    # Some are noisy and some precise, some noise is shared.
    draws = values[:, None] + rng.gamma(0.5, 0.1, (k, 1)) * (rng.normal(size=(k, 200)) + rng.normal(size=200))
    p = pairwise(values, draws).p
    tier, ordinal, (low, high) = tiers(values, p), ranks(values), rank_bounds(values, p)
    assert (low <= ordinal).all()
    assert (ordinal <= high).all()
    assert set(tier) == set(range(1, tier.max() + 1))
    # The leader is the best of its tier that no tier above took.
    leaders = [max(np.flatnonzero(tier == t), key=lambda i: (values[i], -i)) for t in range(1, tier.max() + 1)]
    for i in range(k):
        assert all(p[leaders[t - 1], i] < 0.05 and values[leaders[t - 1]] > values[i] for t in range(1, tier[i]))
        leader = leaders[tier[i] - 1]
        assert i == leader or p[leader, i] >= 0.05
        # Separability is transitive along accuracy, so nobody's interval lies apart from that of their leader.
        assert low[i] <= high[leader]
    assert (tier <= low).all()
    for i, j in itertools.permutations(range(k), 2):
        if high[i] < low[j]:
            assert p[i, j] < 0.05
        if (low[i], high[i]) == (low[j], high[j]) and low[i] == 1:
            assert tier[i] == tier[j] == 1


def test_members_of_a_tier_may_be_separable_from_each_other_where_its_leader_is_noisy():
    values = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    noise = np.array([0.5, 0.001, 0.001, 0.001, 0.001])
    draws = values[:, None] + noise[:, None] * np.random.default_rng(0).normal(size=(5, 500))
    p = pairwise(values, draws).p
    low, high = rank_bounds(values, p)
    assert tiers(values, p).tolist() == [1] * 5
    assert (low.tolist(), high.tolist()) == ([1, 1, 2, 3, 4], [5, 2, 3, 4, 5])
