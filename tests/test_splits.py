"""Splits: nested, prompt-disjoint, decided by names alone, and checked by digests."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_registry import load
from datasets_registry.errors import DataError, RequestError
from datasets_registry.protocol import FOLDS
from datasets_registry.records import Card, Comparisons, Items, PreferenceData, Users
from datasets_registry.splits import PARTS, Split, check_manifest, mean_units, split

CARD = Card("made@1", "made", "nobody", "CC0", "none needed", "simulated", "1", "", "none", simulated=True)


def made(n_users=40, n_clusters=30, per_user=20, pairs=2, seed=0, card=CARD, names=None) -> PreferenceData:
    """People who each judge `per_user` of the units, `pairs` comparisons a unit; two units per cluster."""
    rng = np.random.default_rng(seed)
    n_units = 2 * n_clusters
    unit = np.concatenate([rng.permutation(n_units)[:per_user] for _ in range(n_users)]).repeat(pairs)
    n = len(unit)
    first = rng.integers(0, 50, n)
    comparisons = Comparisons.of(
        user=np.repeat(np.arange(n_users), per_user * pairs),
        unit=unit,
        first=first,
        second=(first + rng.integers(1, 50, n)) % 50,
        label=rng.integers(0, 2, n),
    )
    return PreferenceData(
        id=card.name,
        card=card,
        users=Users(tuple(names or (f"person {i}" for i in range(n_users)))),
        items=Items(("",) * 50, tuple(f"item {i}" for i in range(50))),
        comparisons=comparisons,
        unit_cluster=np.repeat(np.arange(n_clusters, dtype=np.int32), 2),
        clusters=tuple(f"cluster {i}" for i in range(n_clusters)),
    )


def clusters_of(data, rows):
    return set(data.unit_cluster[data.comparisons.unit[rows]].tolist())


def pairs_of(data, rows):
    return set(zip(data.comparisons.user[rows].tolist(), data.comparisons.unit[rows].tolist(), strict=True))


def units_per_user(data, rows, users):
    said = pairs_of(data, rows)
    return np.array([sum(u == who for u, _ in said) for who in users])


def test_prompts_are_disjoint_between_parts_and_cut_at_the_shares():
    data = made(n_clusters=50)
    s = split(data)
    parts = [s.train(), s.validation(), s.support("all"), np.r_[s.query("seen"), s.query("unseen")]]
    sets = [clusters_of(data, rows) for rows in parts]
    assert all(not (a & b) for i, a in enumerate(sets) for b in sets[:i])
    assert np.bincount(s.cluster_part).tolist() == [30, 5, 5, 10]


@pytest.mark.parametrize(("n", "expected"), [(4, [1, 1, 1, 1]), (13, [8, 1, 1, 3]), (59, [35, 6, 6, 12])])
def test_few_clusters_still_fill_every_part(n, expected):
    data = made(n_clusters=n, per_user=2 * n)
    assert np.bincount(split(data).cluster_part).tolist() == expected


def test_declared_shares_are_used():
    data = made(n_clusters=20, card=replace(CARD, shares=(0.25, 0.25, 0.25, 0.25)))
    assert np.bincount(split(data).cluster_part).tolist() == [5, 5, 5, 5]


def test_clusters_that_nobody_judged_are_not_cut():
    data = made(n_clusters=10, per_user=20)
    data = replace(data, clusters=(*data.clusters, "nobody met this"))
    assert split(data).cluster_part.tolist()[-1] == -1
    assert (split(data).cluster_part[:-1] >= 0).all()


def test_people_are_disjoint_and_folds_partition_them():
    data = made(n_clusters=20, per_user=40)  # everybody has units in every part
    unseen = [split(data, fold).unseen for fold in range(FOLDS)]
    assert sorted(np.concatenate(unseen).tolist()) == list(range(40))
    for fold in range(FOLDS):
        s = split(data, fold)
        assert not set(s.seen) & set(s.unseen)
        assert set(s.pseudo_unseen) <= set(s.seen)
        assert len(s.seen) == 32
        assert len(s.pseudo_unseen) == 3


def test_only_people_with_units_in_train_support_and_query_are_eligible():
    data = made(n_clusters=30, per_user=8)
    s = split(data)
    part = s.cluster_part[data.unit_cluster[data.comparisons.unit]]
    for who in range(40):
        has = {PARTS[p] for p in part[data.comparisons.user == who]}
        eligible = {"train", "support", "query"} <= has
        assert (who in s.seen or who in s.unseen) == eligible


def test_rows_belong_to_the_people_of_the_regime():
    data = made()
    s = split(data)
    user = data.comparisons.user
    assert set(user[s.train()]) == set(s.seen) == set(user[s.query("seen")])
    assert set(user[s.support("all")]) == set(s.unseen) == set(user[s.query("unseen")])
    assert set(user[s.validation()]) <= set(s.seen)
    assert set(user[s.train(2, n_users=5)]) == set(s.seen[:5]) == set(user[s.query("seen", n_users=5)])
    assert s.query("unseen", n_users=5).tolist() == s.query("unseen").tolist()
    assert len(s.support(0)) == 0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_users=st.integers(8, 30),
    n_clusters=st.integers(6, 25),
    share=st.floats(0.3, 1),
    pairs=st.integers(1, 3),
    fold=st.integers(0, 4),
)
def test_budgets_are_nested_whole_units(seed, n_users, n_clusters, share, pairs, fold):
    data = made(n_users, n_clusters, max(4, int(share * 2 * n_clusters)), pairs, seed)
    try:
        s = split(data, fold)
    except DataError:
        return
    for rows, people in ((s.train, s.seen), (s.support, s.unseen)):
        have = units_per_user(data, rows("all"), people)
        smaller: set[int] = set()
        for n in (1, 2, 3, 5, 8, "all"):
            at = rows(n)
            assert at.dtype == np.int64
            assert (np.diff(at) > 0).all()
            assert smaller <= set(at.tolist())
            smaller = set(at.tolist())
            expected = have if n == "all" else np.minimum(have, n)
            assert units_per_user(data, at, people).tolist() == expected.tolist()
            # rows of a unit stay together
            assert len(at) == pairs * len(pairs_of(data, at))
    assert s.query("seen").tolist() == split(data, fold).query("seen").tolist()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), n_users=st.integers(8, 40))
def test_zipf_keeps_the_total_and_the_bounds(seed, n, n_users):
    data = made(n_users, seed=seed, per_user=30)
    s = split(data)
    have = units_per_user(data, s.train(), s.seen)
    even, skewed = units_per_user(data, s.train(n), s.seen), units_per_user(data, s.train(n, imbalance="zipf"), s.seen)
    assert skewed.sum() == even.sum()
    assert (skewed >= 1).all()
    assert (skewed <= have).all()
    assert set(s.train(n, imbalance="zipf")) <= set(s.train(n + 1, imbalance="zipf"))


def test_zipf_is_proportional_to_one_over_rank_where_nobody_runs_out():
    data = made(n_users=20, n_clusters=300, per_user=600, pairs=1)
    s = split(data)
    given_units = np.sort(units_per_user(data, s.train(16, imbalance="zipf"), s.seen))[::-1]
    total, ranks = given_units.sum(), np.arange(1, len(given_units) + 1)
    exact = total / ranks / (1 / ranks).sum()
    assert np.abs(given_units - exact).max() <= 1
    assert total == 16 * len(s.seen)


def test_the_number_of_seen_people_is_nested():
    data = made()
    s = split(data)
    assert set(s.train(4, n_users=8)) < set(s.train(4, n_users=16)) < set(s.train(4))
    assert s.user_budgets() == ["all"]
    assert replace(s, seen=np.arange(600, dtype=np.int32)).user_budgets() == [32, 128, 512, "all"]


def test_budgets_follow_what_half_of_the_people_have():
    data = made(n_users=40, n_clusters=50, per_user=100)  # 60 train and 10 support units each
    s = split(data)
    assert s.budgets() == [1, 2, 4, 8, 16, 32, "all"]
    assert s.support_budgets() == [0, 1, 2, 4, 8]


def test_mean_units_counts_what_was_given():
    data = made(n_clusters=20, per_user=40)
    s = split(data)
    assert mean_units(data, s.train(4), s.seen) == 4
    assert mean_units(data, s.support(2), s.unseen) == 2
    assert mean_units(data, s.train(4), s.seen[:7]) == 4
    assert mean_units(data, s.support(0), s.unseen) == 0


def test_permuting_people_permutes_the_split():
    data = made()
    old_of_new = np.random.default_rng(1).permutation(40)
    new_of_old = np.argsort(old_of_new).astype(np.int32)
    ids = tuple(data.users.ids[i] for i in old_of_new)
    moved = replace(data, users=Users(ids), comparisons=data.comparisons.for_users(new_of_old[data.comparisons.user]))
    a, b = split(data), split(moved)
    assert [data.users.ids[i] for i in a.seen] == [ids[i] for i in b.seen]
    assert [data.users.ids[i] for i in a.pseudo_unseen] == [ids[i] for i in b.pseudo_unseen]
    for n in (1, 4, "all"):
        assert a.train(n).tolist() == b.train(n).tolist()
        assert a.support(n).tolist() == b.support(n).tolist()
        assert a.train(n, imbalance="zipf").tolist() == b.train(n, imbalance="zipf").tolist()
    assert a.manifest()["people_digest"] == b.manifest()["people_digest"]


def test_renaming_people_leaves_the_prompts_where_they_are():
    data, renamed = made(), made(names=[f"renamed {i}" for i in range(40)])
    assert split(data).cluster_part.tolist() == split(renamed).cluster_part.tolist()
    assert split(data).seen.tolist() != split(renamed).seen.tolist()


def test_renaming_the_dataset_fold_or_draw_reshuffles():
    data = made()
    splits = [split(data), split(data, fold=1), split(data, draw=1), split(replace(data, id="made@1+seed=1"))]
    assert len({s.cluster_part.tobytes() for s in splits}) == 4
    assert len({s.digest for s in splits}) == 4


def tuning_rows(t: Split):
    return [t.train(), t.validation(), t.support("all"), t.query("seen"), t.query("unseen")]


@pytest.mark.parametrize("fold", range(FOLDS))
def test_tuning_never_touches_query_or_support_labels(fold):
    data = made()
    s = split(data, fold)
    t = s.tuning()
    forbidden = {*s.query("seen"), *s.query("unseen"), *s.support("all")}
    off_limits = set(np.flatnonzero(s.cluster_part >= PARTS.index("support")).tolist())
    for rows in tuning_rows(t):
        assert len(rows)
        assert not forbidden & set(rows.tolist())
        assert not clusters_of(data, rows) & off_limits
        assert not set(data.comparisons.user[rows]) & set(s.unseen)
    assert set(t.query("seen")) <= set(s.validation())
    assert set(t.seen) == set(s.seen) - set(s.pseudo_unseen)
    assert set(t.unseen) == set(s.pseudo_unseen)
    assert not set(t.train()) & set(t.support("all"))
    assert not clusters_of(data, t.train()) & clusters_of(data, t.validation())
    assert set(t.train(2)) < set(t.train(4))
    assert t.digest != s.digest
    with pytest.raises(RequestError, match="cannot be tuned on again"):
        t.tuning()


def test_the_manifest_is_json_and_names_what_differs():
    data = made()
    s = split(data)
    told = json.loads(json.dumps(s.manifest()))
    check_manifest(told, s)
    check_manifest(told, split(made()))
    with pytest.raises(DataError, match=r"fold: manifest 0, split 1.*run them again"):
        check_manifest(told, split(data, fold=1))
    told["comparisons"]["train"] += 1
    with pytest.raises(DataError, match=r"comparisons\.train: manifest \d+, split \d+"):
        check_manifest(told, s)
    del told["comparisons"]
    with pytest.raises(DataError, match="'missing'"):
        check_manifest(told, s)
    with pytest.raises(DataError, match="extra: manifest 1"):
        check_manifest({**s.manifest(), "extra": 1}, s)


@pytest.mark.parametrize("column", ["row_part", "row_rank", "cluster_part", "seen", "unseen", "pseudo_unseen"])
def test_the_digest_depends_on_every_assignment(column):
    s = split(made(n_users=12, per_user=40))
    values = getattr(s, column)
    digests = {s.digest}
    for at in range(len(values)):
        changed = values.copy()
        changed[at] += 1
        digests.add(replace(s, **{column: changed}).digest)
    assert len(digests) == len(values) + 1


def test_a_label_or_text_changes_the_digest_through_the_dataset():
    data = made()
    flipped = replace(data, comparisons=data.comparisons.swapped())
    assert split(data).digest != split(flipped).digest
    assert split(data).train().tolist() == split(flipped).train().tolist()


def test_what_cannot_be_split_is_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"3 prompt clusters.*at least 4"):
        split(made(n_clusters=3, per_user=6))
    with pytest.raises(DataError, match=r"nobody can be seen.*more prompts per person"):
        split(made(per_user=1, n_users=5))
    with pytest.raises(DataError, match="sum to 1"):
        split(made(card=replace(CARD, shares=(0.5, 0.1, 0.1, 0.1))))
    with pytest.raises(RequestError, match="fold must be 0 to 4"):
        split(made(), fold=5)


@pytest.mark.parametrize("n", [0, -1, 1.5, "half", True, None])
def test_a_budget_that_is_none_is_refused(n):
    with pytest.raises(RequestError, match="whole number from 1, or 'all'"):
        split(made()).train(n)


def test_wrong_requests_say_what_is_allowed():
    s = split(made())
    with pytest.raises(RequestError, match=r"n_users=33 is more than the \d+ seen people"):
        s.train(1, n_users=33)
    with pytest.raises(RequestError, match="'seen', 'unseen'"):
        s.query("pseudo")
    with pytest.raises(RequestError, match="zipf"):
        s.train(1, imbalance="pareto")


# Protocol 2026.1, fold 0, draw 0. A change here is a change of the data or of the assignment: a new dataset version or
# protocol id, unless nothing has been published under this one.
GOLDEN = {
    "electricity@1": "b5d7bd3a31a0b17955ac47b0ad3c5989fbdef6d81920c34a7586029a59460ef0",
    "train@1": "2e3bc9011ee9d4d07d6d813b02e207c745283295954799b7320378e64709ff0b",
    "swissmetro@1": "0b9864fb9ee51852b9c839876d37689e9c50f64b9748c97ad4c9d9b5a23eef27",
    "movielens100k@1": "7928a69de5f5d3bfcd182df3621682ae055ef3d84d52fac07bfacdf09d1bbd86",
    "planted@1": "f5f49270ee1f09f1218a1c10f9b2ef1e1527322b471eb1d0e4bffec192127177",
}
MIRRORED = {
    "llmfao@1": "34b9a5e0979bcda4f9ae5f324c90824ab56ab75d25d7a429803146865b2e1193",
    "polis-bowling-green@1": "991b524f076f5e9a5cea480561480eea867a4dfa7eacb6b7b16ef90ec1d90f6a",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digests_of_built_in_datasets(name):
    assert split(load(name)).digest == GOLDEN[name]


@pytest.mark.parametrize("name", MIRRORED)
def test_golden_digests_of_mirrored_datasets(name, load_mirrored):
    assert split(load_mirrored(name)).digest == MIRRORED[name]


@pytest.mark.parametrize("fold", range(FOLDS))
@pytest.mark.parametrize("name", GOLDEN)
def test_built_in_datasets_can_be_split_and_tuned_in_every_fold(name, fold):
    data = load(name)
    s = split(data, fold)
    t = s.tuning()
    assert s.budgets()[0] == 1
    assert s.support_budgets()[:2] == [0, 1]
    for rows in (*tuning_rows(t), s.validation()):
        assert len(rows)
    assert not clusters_of(data, s.query("seen")) & clusters_of(data, s.train())
