"""Metrics against their definitions, on panels small enough to count by hand and on made data with a known truth."""

import numpy as np
import pytest
from board_fixtures import METHODS, Bench, made, oracle, pooled, shrunk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from datasets_registry.errors import HetprefError
from datasets_registry.records import Comparisons, Items, PreferenceData, Users
from datasets_registry.splits import mean_units, split
from leaderboard.labels import Query
from leaderboard.metrics import METRICS, Metric, calibration_error, lowest_tenth
from leaderboard.panel import Block, Column, Entrant, Panel, Setting, correctness
from leaderboard.records import canonical_sha256
from leaderboard.scoring import gather, inverse_temperature, panels
from leaderboard.store import read_record


def panel_of(data, rows, margins, names, wrong=None, seeds=1):
    """A panel of one setting; margins: [n, k] in the order of `rows`."""
    setting = Setting(data.id, "tabular@1", "seen", 4, None, "all", None)
    query = Query.of(data, rows)
    m = np.asarray(margins, np.float32)[query.order]
    other = np.full_like(m, np.nan) if wrong is None else np.asarray(wrong, np.float32)[query.order]
    k = m.shape[1]
    columns = [Column(Entrant(n, "hetpref", "1", "0" * 64, "method", "feature", None), setting, {}) for n in names]
    yes, no = np.ones(k, bool), np.zeros(k, bool)
    blocks = [Block(s, query, m, other, yes, no, np.ones(k)) for s in range(seeds)]
    return Panel(data, columns, blocks)


def tiny(user, unit, label):
    n = len(user)
    return PreferenceData(
        id="tiny@1",
        card=made(n_users=30, n_units=12).card,
        users=Users(tuple(f"u{i}" for i in range(max(user) + 1))),
        items=Items(("",) * (2 * n), tuple(f"i{i}" for i in range(2 * n))),
        comparisons=Comparisons.of(user=user, unit=unit, first=np.arange(n), second=n + np.arange(n), label=label),
        unit_cluster=np.arange(max(unit) + 1, dtype=np.int32),
        clusters=tuple(f"c{i}" for i in range(max(unit) + 1)),
    )


def value(panel, name):
    return METRICS[name](panel).value


@pytest.fixture(scope="module")
def world():
    data = made(n_users=60, n_units=60)
    return data, split(data).query("seen")


def test_accuracy_averages_comparisons_then_units_then_people():
    # Person 0: unit 0 has one right of two, unit 1 a predicted tie; person 1: one unit, right, and a labelled tie.
    data = tiny([0, 0, 0, 1, 1], [0, 0, 1, 0, 1], [1, 0, 1, 0, 0.5])
    panel = panel_of(data, np.arange(5), [[2.0], [1.0], [0.0], [-3.0], [5.0]], ["m"])
    assert value(panel, "acc_macro")[0] == pytest.approx(((0.5 + 0.5) / 2 + 1) / 2)
    assert value(panel, "acc_micro")[0] == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_constant_and_always_first_scorers_get_exactly_one_half(world):
    data, rows = world
    n = len(rows)
    margins = np.stack([np.zeros(n), np.full(n, 3.0), np.random.default_rng(0).random(n) + 0.1, -np.ones(n)], axis=1)
    panel = panel_of(data, rows, margins, ["zero", "constant", "first", "second"])
    assert value(panel, "acc_macro").tolist() == [0.5] * 4
    assert value(panel, "acc_micro").tolist() == [0.5] * 4
    assert value(panel, "worst10") == pytest.approx([0.5] * 4)


def test_a_decision_that_never_changes_is_right_where_labels_never_change():
    assert correctness(np.ones((3, 1), np.float32), np.ones(3)).ravel().tolist() == [1, 1, 1]
    assert correctness(np.ones((2, 1), np.float32), np.array([1.0, 0.0])).ravel().tolist() == [0.5, 0.5]


def test_swapping_first_and_second_changes_no_metric(world):
    data, rows = world
    margins = np.stack([pooled(data, rows, 0), oracle(data, rows, 0)], axis=1)
    straight = panel_of(data, rows, margins, ["pooled-bt", "oracle"], wrong=margins[:, ::-1])
    turned = PreferenceData(
        data.id,
        data.card,
        data.users,
        data.items,
        data.comparisons.swapped(),
        data.unit_cluster,
        data.clusters,
        data.truth,
    )
    swapped = panel_of(turned, rows, -margins, ["pooled-bt", "oracle"], wrong=-margins[:, ::-1])
    for name in METRICS:
        np.testing.assert_allclose(value(straight, name), value(swapped, name), atol=1e-6, err_msg=name)


def test_the_reference_gains_nothing_harms_nobody_and_is_not_specific(world):
    data, rows = world
    margins = np.stack([pooled(data, rows, 0), oracle(data, rows, 0)], axis=1)
    stranger = np.stack([margins[:, 0], np.random.default_rng(0).permutation(margins[:, 1])], axis=1)
    panel = panel_of(data, rows, margins, ["pooled-bt", "oracle"], wrong=stranger)
    for name in ("gain", "harm", "specificity", "closed_gap"):
        assert value(panel, name)[0] == 0
    gains = METRICS["gain"](panel)
    low, _ = gains.bounds()
    assert low[1] > 0
    assert value(panel, "closed_gap")[1] == 1
    assert value(panel, "specificity")[1] > 0.2
    assert value(panel, "gain")[1] == pytest.approx(value(panel, "acc_macro")[1] - value(panel, "acc_macro")[0])


def test_harm_counts_people_below_one_standard_error_of_their_paired_difference():
    # Ten people with four units: the method is right on all of eight people and wrong on all of two, pooled half right.
    user, unit = np.repeat(np.arange(10), 4), np.tile(np.arange(4), 10)
    sign = np.where(np.arange(40) % 3 == 0, 1.0, -1.0)
    data = tiny(user.tolist(), unit.tolist(), (sign > 0).astype(float))
    mine = np.where(user < 8, sign, -sign)
    half = np.where(unit < 2, sign, -sign)
    panel = panel_of(data, np.arange(40), np.stack([half, mine], axis=1), ["pooled-bt", "m"])
    assert value(panel, "harm").tolist() == [0.0, 0.2]


def test_worst_tenth_is_not_biased_by_picking_on_the_same_queries():
    rng = np.random.default_rng(0)
    user, unit = np.repeat(np.arange(400), 20), np.tile(np.arange(20), 400)
    label = rng.integers(0, 2, len(user)).astype(float)
    data = tiny(user.tolist(), unit.tolist(), label)
    panel = panel_of(data, np.arange(len(user)), rng.normal(size=(len(user), 1)), ["coin"])
    # A coin serves everybody alike: picked and scored on the same 20 units, its lowest tenth would be near .3.
    assert value(panel, "worst10")[0] == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(400 * 20 * 0.1))


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40))
def test_the_lowest_tenth_is_a_distribution_over_the_lowest(values):
    share = lowest_tenth(np.array(values))
    assert share.sum() == pytest.approx(1)
    assert (share >= 0).all()
    assert np.array(values) @ share <= np.mean(values) + 1e-12


def test_log_loss_and_brier_of_an_undecided_scorer(world):
    data, rows = world
    panel = panel_of(data, rows, np.zeros((len(rows), 1)), ["zero"])
    assert value(panel, "nll")[0] == pytest.approx(np.log(2))
    label = data.comparisons.label[rows]
    assert value(panel, "brier")[0] == pytest.approx(0.25 * (1 - (label == 0.5).mean()), abs=0.01)


def test_the_temperature_is_where_the_log_loss_is_least():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000) * 2
    label = np.where(rng.random(4000) < 0.1, 0.5, rng.random(4000) < 1 / (1 + np.exp(-truth))).astype(float)
    margins = np.stack([truth, 5 * truth, np.zeros(4000)], axis=1).astype(np.float32)
    found = inverse_temperature(margins, label)

    def loss(beta):
        return np.mean(np.logaddexp(0, beta * truth) - label * beta * truth)

    assert found[0] == pytest.approx(minimize_scalar(loss, bounds=(0, 5), method="bounded").x, rel=1e-3)
    assert found[0] == pytest.approx(5 * found[1], rel=1e-4)
    assert found[2] == 1


def test_separable_and_reversed_margins_have_a_bounded_temperature():
    margins = np.array([[1.0, -1], [-1, 1]], np.float32)
    assert inverse_temperature(margins, np.array([1.0, 0.0])).tolist() == pytest.approx([100, 0], abs=1e-6)


def test_calibration_error_of_known_cases():
    n = 3000
    label = (np.arange(n) % 4 != 0).astype(float)
    even = np.full(n, np.log(3))
    assert calibration_error(even, label) == pytest.approx(0, abs=1e-6)
    assert calibration_error(np.full(n, np.log(9)), label) == pytest.approx(0.9 - 0.75, abs=1e-6)
    assert calibration_error(-even, 1 - label) == pytest.approx(0, abs=1e-6)
    assert calibration_error(np.zeros(n), label) == 0


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_calibration_error_does_not_depend_on_the_order_of_comparisons(seed):
    rng = np.random.default_rng(seed)
    logits, label = rng.integers(-3, 4, 200) / 2, rng.integers(0, 2, 200).astype(float)
    shuffled = rng.permutation(200)
    assert calibration_error(logits, label) == pytest.approx(calibration_error(logits[shuffled], label[shuffled]))


def test_regret_is_zero_for_the_truth_and_two_for_its_opposite_in_pairs():
    data = made(n_users=40, n_units=40, per_unit=1)
    rows = split(data).query("seen")
    best = oracle(data, rows, 0)
    panel = panel_of(data, rows, np.stack([best, -best, 0 * best], axis=1), ["oracle", "worst", "tie"])
    np.testing.assert_allclose(value(panel, "regret"), [0, 2, 1], atol=1e-9)


def choices(n_users=200, n_units=6, size=4):
    """People who judged every pair of each unit's `size` items: the pairs of one (user, unit) stand together."""
    rng = np.random.default_rng(0)
    data = made(n_users=n_users, n_units=n_units, per_unit=size - 1, ties=0)
    low, high = np.triu_indices(size, 1)
    user, unit, pair = (a.ravel() for a in np.meshgrid(*map(np.arange, (n_users, n_units, len(low))), indexing="ij"))
    first, second = unit * size + low[pair], unit * size + high[pair]
    flip = rng.random(len(user)) < 0.5
    first, second = np.where(flip, second, first), np.where(flip, first, second)
    table = Comparisons.of(user=user, unit=unit, first=first, second=second, label=rng.integers(0, 2, len(user)))
    return PreferenceData(
        data.id, data.card, data.users, data.items, table, data.unit_cluster, data.clusters, data.truth
    )


def test_regret_in_choice_sets_is_zero_for_the_truth_and_one_for_chance():
    data = choices()
    rows = np.arange(len(data.comparisons))
    best, coin = oracle(data, rows, 0), np.random.default_rng(1).normal(size=len(rows))
    panel = panel_of(data, rows, np.stack([best, coin, 0 * best], axis=1), ["oracle", "random", "tie"])
    found, (low, high) = value(panel, "regret"), METRICS["regret"](panel).bounds()
    assert found[0] == 0
    assert low[1] < 1 < high[1]
    assert abs(found[1] - 1) < 0.1
    assert found[2] == pytest.approx(1)


def test_regret_leaves_out_choices_of_which_only_the_chosen_item_was_recorded():
    data = choices()
    c, unit = data.comparisons, 6  # pairs of a unit
    utility = np.einsum("nd,nd->n", data.truth.theta[c.user], data.items.attributes[c.first] * 1.0)
    other = np.einsum("nd,nd->n", data.truth.theta[c.user], data.items.attributes[c.second] * 1.0)
    top = np.repeat(np.maximum(utility, other).reshape(-1, unit).max(axis=1), unit)
    star = np.flatnonzero(np.maximum(utility, other) == top)
    assert len(star) == len(c) / 2
    panel = panel_of(data, star, oracle(data, star, 0)[:, None], ["oracle"])
    assert np.isnan(value(panel, "regret")).all()
    # With one unit of every pair beside, it alone counts.
    mixed = np.union1d(star, np.arange(unit))
    worst = panel_of(data, mixed, -oracle(data, mixed, 0)[:, None], ["worst"])
    u = np.unique(np.concatenate([utility[:unit], other[:unit]]))
    assert value(worst, "regret")[0] == pytest.approx((u[-1] - u[0]) / (u[-1] - u.mean()), rel=1e-4)


def test_the_area_is_over_the_settings_own_budgets_whichever_seeds_an_entrant_has(tmp_path):
    bench = Bench(tmp_path, data={"made@1": made(n_users=23, n_units=30)}, n_train=(1, 4, "all"), n_support=())
    bench.run({"pooled-bt": pooled, "shrunk": shrunk})
    for n in bench.n_train:
        bench.write("late", shrunk, "made@1", 2, n, "seen", None)
    gathered = gather([tmp_path], bench.labels)
    (panel,) = panels(gathered, bench.labels)
    own, areas = value(panel, "acc_macro"), value(panel, "aulc")
    split_of = [bench.labels.split("made@1", fold, 0) for fold in range(3)]
    x = np.log2([1 + np.mean([mean_units(panel.data, s.train(n), s.seen) for s in split_of]) for n in (1, 4, "all")])
    for name in ("pooled-bt", "shrunk", "late"):
        by_n = {c.setting.n: k for k, c in enumerate(panel.columns) if c.entrant.method == name}
        y = own[[by_n[n] for n in (1, 4, "all")]]
        area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (x[-1] - x[0])
        np.testing.assert_allclose(areas[list(by_n.values())], area, atol=1e-6)


def test_the_reference_is_our_own_the_most_recent_and_the_default(world, tmp_path):
    data, rows = world
    record = read_record(Bench(tmp_path).write("pooled-bt", pooled, "made@1", 0, "all", "seen", None))
    margins = np.random.default_rng(0).normal(size=(len(rows), 6))
    straight = panel_of(data, rows, margins, ["pooled-bt"] * 6)
    versions, configs = ["9.1", "0.9", "0.10", "0.10", "0.10", "0.10"], [{}, {}, {"r": 1.0}, {"r": None}, {}, {}]
    dists = ["somebody-else", "hetpref", "hetpref", "hetpref", "hetpref", "another"]
    columns = []
    for k, column in enumerate(straight.columns):
        digest = canonical_sha256([k])
        part = record.method.model_copy(update={"config": configs[k]})
        control = "user_shuffle" if k == 4 else None
        entrant = Entrant("pooled-bt", dists[k], versions[k], digest, "control", "feature", control)
        columns.append(Column(entrant, column.setting, {0: record.model_copy(update={"method": part})}))
    panel = Panel(data, columns, straight.blocks)
    assert panel.reference.tolist() == [3] * 6
    assert panel.oracle.tolist() == [-1] * 6
    backwards = Panel(data, columns[::-1], straight.blocks)
    assert backwards.reference.tolist() == [2] * 6


def test_an_interval_ends_where_the_metric_does():
    """Five people answer the same four prompts and all of them miss the same one: prompts widen what people tell."""
    user, unit = np.repeat(np.arange(5), 4), np.tile(np.arange(4), 5)
    margins = np.where(unit == 0, -1.0, 1.0)[:, None] * np.ones(2)
    margins[0] = 1.0
    panel = panel_of(tiny(user, unit, np.ones(20)), np.arange(20), margins, ["m", "pooled-bt"])
    estimate = METRICS["acc_macro"](panel)
    assert estimate.value[0] == pytest.approx(0.8)
    assert (estimate.widened(0) > 1).mean() > 0.025
    low, high = estimate.bounds()
    assert high[0] == 1
    assert low[0] < 0.8


def test_every_metric_is_one_entry_with_a_meaning():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.meaning
        assert metric.direction in ("higher", "lower")
    with pytest.raises(HetprefError, match="either"):
        Metric("both", "Both", "higher", "nothing")


def test_permuting_people_permutes_nothing_else(world):
    data, rows = world
    margins = np.stack([scorer(data, rows, 8) for scorer in (pooled, shrunk)], axis=1)
    straight = panel_of(data, rows, margins, ["pooled-bt", "shrunk"])
    place = np.random.default_rng(0).permutation(len(data.users)).astype(np.int32)
    renamed = data.comparisons.for_users(place[data.comparisons.user])
    other = PreferenceData(data.id, data.card, data.users, data.items, renamed, data.unit_cluster, data.clusters)
    for name in ("acc_macro", "acc_micro", "gain", "harm", "nll", "ece"):
        again = value(panel_of(other, rows, margins, ["pooled-bt", "shrunk"]), name)
        np.testing.assert_allclose(value(straight, name), again, atol=1e-9)
    assert set(METHODS) >= {"pooled-bt", "shrunk"}
