"""The heterogeneity index: closed forms of its solver, zero without heterogeneity, blind to query labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from datasets_registry import heterogeneity as module
from datasets_registry.errors import DataError
from datasets_registry.heterogeneity import (
    BUILT_IN,
    MOST_FEATURES,
    People,
    fit_personal,
    fit_pooled,
    heterogeneity,
    measured,
    projected,
)
from datasets_registry.protocol import PROTOCOL
from datasets_registry.records import Card, Comparisons, Items, PreferenceData, Users
from datasets_registry.splits import PARTS, split

CARD = Card("made@1", "made", "nobody", "CC0", "none needed", "simulated", "1", "", "none", simulated=True)


def made(spread, n_users=60, per_user=60, d=4, seed=0):
    """People with weights mean + spread * noise who answer by Bradley-Terry; a unit is one of 60 prompts."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(300, d)).astype(np.float32)
    theta = 1.5 * np.eye(d)[0] + spread * rng.normal(size=(n_users, d))
    n = n_users * per_user
    user = np.repeat(np.arange(n_users), per_user)
    first = rng.integers(0, 300, n)
    second = (first + rng.integers(1, 300, n)) % 300
    margin = np.einsum("nd,nd->n", features[first] - features[second], theta[user])
    data = PreferenceData(
        id=CARD.name,
        card=CARD,
        users=Users(tuple(map(str, range(n_users)))),
        items=Items(("",) * 300, tuple(map(str, range(300))), features, tuple("abcd"[:d])),
        comparisons=Comparisons.of(
            user=user,
            unit=np.tile(np.arange(per_user), n_users),
            first=first,
            second=second,
            label=rng.random(n) < 1 / (1 + np.exp(-margin)),
        ),
        unit_cluster=np.arange(per_user, dtype=np.int32),
        clusters=tuple(map(str, range(per_user))),
    )
    return data, features


def test_people_who_differ_gain_and_people_who_agree_do_not():
    differ = heterogeneity(*made(spread=1.5), folds=(0, 1))
    agree = heterogeneity(*made(spread=0.0), folds=(0, 1))
    assert differ.low > 0.03
    assert agree.index < 0.02
    assert agree.low <= 0 or agree.index < 0.01
    assert differ.low < differ.index < differ.high
    assert differ.n_users > 40


def test_query_labels_are_never_read():
    data, features = made(spread=1.0)
    s = split(data)
    turned = data.comparisons.label.copy()
    beyond = s.row_part >= PARTS.index("support")
    turned[beyond] = 1 - turned[beyond]
    other = replace(data, comparisons=replace(data.comparisons, label=turned))
    assert heterogeneity(other, features, folds=(0,)) == heterogeneity(data, features, folds=(0,))


def test_the_order_of_people_does_not_matter():
    data, features = made(spread=1.0)
    new = np.random.default_rng(0).permutation(60).astype(np.int32)
    ids = tuple(data.users.ids[i] for i in np.argsort(new))
    moved = replace(data, users=Users(ids), comparisons=data.comparisons.for_users(new[data.comparisons.user]))
    a, b = heterogeneity(data, features, folds=(0,)), heterogeneity(moved, features, folds=(0,))
    assert a.index == pytest.approx(b.index, abs=1e-9)


def some_people(sizes=(3, 0, 7, 1, 30, 7), d=3, seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(sizes)), sizes)
    y = rng.choice([0.0, 0.5, 1.0, 0.3], len(user))
    return People(rng.normal(size=(len(user), d)), y, user, len(sizes))


@pytest.mark.parametrize("batch", [1, 50, 4_000_000])
@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
def test_newton_finds_the_minimum_for_every_person(batch, strength, monkeypatch):
    monkeypatch.setattr(module, "BATCH_VALUES", batch)
    people, centre = some_people(), np.array([0.5, -1.0, 2.0])
    got = fit_personal(people, centre, strength, np.zeros((people.n_users, 3)))
    for who in range(people.n_users):
        x, y = people.x[people.user == who], people.y[people.user == who]

        def loss(theta, x=x, y=y):
            m = x @ theta
            return (np.logaddexp(0, m) - y * m).sum() + strength / 2 * ((theta - centre) ** 2).sum()

        np.testing.assert_allclose(got[who], minimize(loss, centre, tol=1e-12).x, atol=2e-5)


def test_infinite_strength_and_no_comparisons_give_the_pooled_weights():
    people, centre = some_people(), np.array([0.5, -1.0, 2.0])
    start = np.ones((people.n_users, 3))
    assert (fit_personal(people, centre, np.inf, start) == centre).all()
    assert (fit_personal(people, centre, 1.0, start)[1] == centre).all()


def test_swapping_first_and_second_changes_nothing():
    people = some_people()
    np.testing.assert_allclose(fit_pooled(-people.x, 1 - people.y), fit_pooled(people.x, people.y), atol=1e-9)


def test_separable_comparisons_stay_finite():
    x = np.array([[1.0], [2.0], [100.0]])
    assert np.isfinite(fit_pooled(x, np.ones(3), ridge=1e-3)).all()


def test_projection_keeps_distances_as_well_as_64_columns_can():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 10)) @ rng.normal(size=(10, 100)) + 5
    got = projected(table)
    assert got.shape == (200, MOST_FEATURES)
    between = np.linalg.norm(table[:50] - table[50:100], axis=1)
    np.testing.assert_allclose(np.linalg.norm(got[:50] - got[50:100], axis=1), between, rtol=1e-6)
    np.testing.assert_allclose(projected(table[:, :3]), table[:, :3] - table[:, :3].mean(axis=0))


def test_too_few_clusters_are_refused():
    data, features = made(spread=1.0)
    few = replace(data, unit_cluster=(data.unit_cluster % 4).astype(np.int32), clusters=data.clusters[:4])
    with pytest.raises(DataError, match="3 are needed"):
        heterogeneity(few, features)


def test_what_was_measured_is_read_and_in_a_stable_order():
    told = json.loads(module.MEASURED.read_text(encoding="utf-8"))
    assert list(told) == sorted(told)
    for name, row in told.items():
        assert list(row) == ["encoder", "index", "low", "high", "n_users", "protocol"]
        assert measured(name) == row
        assert row["low"] <= row["index"] <= row["high"]
        assert row["protocol"] == PROTOCOL
    assert set(BUILT_IN) <= set(told)
    assert measured("nobody-measured-this@1") is None


def test_measuring_writes_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "MEASURED", tmp_path / "measured.json")
    module._all_measured.cache_clear()
    try:
        assert module.main(["train@1", "no-such-dataset"]) == 1
        assert list(json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))) == ["train@1"]
        row = measured("train@1")
    finally:
        module._all_measured.cache_clear()
    assert row is not None
    assert row["encoder"] == "tabular@1"
    assert "no-such-dataset was not measured: unknown dataset" in capsys.readouterr().err
