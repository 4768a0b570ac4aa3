"""What each backbone method is: identities between methods, controls, new people, and what is shared."""

import numpy as np
import pytest
from backbone_fixtures import BUDGET, NEW, PEOPLE, accuracy, fitted, said, states_of, world

from datasets_registry.encoders import find_encoder
from datasets_registry.errors import RequestError
from methods.catalog.full_finetune import FullFinetune
from methods.catalog.lora_global import LoraGlobal
from methods.catalog.lora_global_local_a import LoraGlobalLocalA
from methods.catalog.lora_local import LoraLocal
from methods.catalog.p_share_lora import PShareLora
from methods.catalog.pooled_bt import PooledBT
from methods.conformance import check
from methods.interface import Histories

SEEN, UNSEEN = range(PEOPLE), range(PEOPLE, PEOPLE + NEW)
VARIANTS = [
    {"init": "independent"},
    {"init": "copied"},
    {"init": "warmup"},
    {"share": "A"},
    {"core": "kernel"},
    {"core": "diagonal", "init": "warmup"},
]


@pytest.fixture(scope="module")
def shared_b():
    return fitted(PShareLora, init="copied")


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_conforms_where_it_really_learns(options):
    results = check("p-share-lora", rank=4, lr=0.003, epochs=2, adapt_steps=3, head_init="probe", **options)
    assert not [(r.name, r.why) for r in results if r.status == "failed"]


@pytest.mark.parametrize("options", [{"init": "independent"}, {"share": "A"}, {"core": "kernel"}], ids=str)
def test_it_learns_what_each_person_likes_and_the_wrong_state_does_not_help(options):
    method = fitted(PShareLora, **options)
    states = states_of(method, SEEN, 8)
    assert accuracy(method, states, SEEN) > 0.9
    assert accuracy(method, states, SEEN, wrong=True) < 0.1


def test_a_shared_adapter_cannot_tell_two_halves_apart():
    method = fitted(LoraGlobal)
    states = states_of(method, SEEN, 8)
    assert not states[0].arrays
    assert accuracy(method, states, SEEN) == accuracy(method, states, SEEN, wrong=True)
    assert 0.3 < accuracy(method, states, SEEN) < 0.7


def test_new_people_are_fitted_from_what_they_said(shared_b):
    before = states_of(shared_b, UNSEEN, 0)
    after = states_of(shared_b, UNSEEN, 8)
    assert accuracy(shared_b, after, UNSEEN) > 0.85
    assert accuracy(shared_b, after, UNSEEN, wrong=True) < 0.15
    assert accuracy(shared_b, before, UNSEEN) == accuracy(shared_b, before, UNSEEN, wrong=True)


def test_who_said_nothing_gets_the_mean_person(shared_b):
    (state,) = states_of(shared_b, [PEOPLE], 0)
    seen = [s.arrays["factors"] for s in states_of(shared_b, SEEN, 8)]
    np.testing.assert_allclose(state.arrays["factors"], np.mean(seen, 0), rtol=1e-5, atol=1e-6)


def test_seen_people_are_looked_up_whatever_their_history(shared_b):
    one, other = states_of(shared_b, SEEN, 8), states_of(shared_b, SEEN, 0)
    assert all((a.arrays["factors"] == b.arrays["factors"]).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("encoder", ["tiny-bert@1", "tiny-llama@1"])
def test_without_a_step_it_is_pooled_bradley_terry_on_the_frozen_model(encoder):
    """The reference of `gain` stands at the start of every method of the track."""
    there = world(encoder)
    train, val = said(SEEN, 6, 1), said(SEEN, 2, 2)
    queries = said(SEEN, 5, 4).hidden()
    reference = PooledBT()
    features = find_encoder(encoder).encode(there.items).features
    reference.fit(train, val, world(encoder, features), BUDGET)
    expected = reference.margins(states_of(reference, SEEN, 0), queries)
    for cls in (LoraGlobal, PShareLora, FullFinetune):
        method = cls(epochs=0, head_init="probe")
        method.fit(train, val, there, BUDGET)
        got = method.margins(states_of(method, SEEN, 0), queries)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("encoder", ["tiny-bert@1", "tiny-llama@1"])
def test_one_person_makes_it_plain_lora(encoder):
    together = fitted(PShareLora, encoder, people=1, init="copied", select="last", epochs=3)
    plain = fitted(LoraGlobal, encoder, people=1, select="last", epochs=3)
    queries = said([0], 10, 4).hidden()
    got = together.margins(states_of(together, [0], 8), queries)
    expected = plain.margins(states_of(plain, [0], 8), queries)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_people_trained_together_are_what_each_would_be_alone():
    """lora-local shares nothing: others only scale the loss of a person, which Adam undoes."""
    options = {"select": "last", "epochs": 3, "batch": 10_000, "people": 4, "head_init": "zero"}
    together = fitted(LoraLocal, **options)
    rows = states_of(together, range(4), 0)
    train, val = said(range(4), 8, 1), said(range(4), 2, 2)
    for person in range(4):
        alone = LoraLocal(**{**together.config})
        alone.fit(train.take(train.user == person), val.take(val.user == person), world(), BUDGET)
        (row,) = alone.adapt([person], Histories.group(train.take([]), [person]), BUDGET)
        apart = np.abs(row.arrays["factors"] - rows[person].arrays["factors"])
        # Adam's eps is not scaled: gradients near it are told apart, in a few entries and by less than a step of .01
        assert np.mean(apart > 2e-4) < 0.01
        assert apart.max() < 2e-3


def test_local_a_leaves_what_was_learned_globally():
    plain, staged = fitted(LoraGlobal, select="last", epochs=4), fitted(LoraGlobalLocalA, select="last", epochs=4)
    first = plain._factors.shared
    assert set(staged._factors.shared) == {n for n in first if not n.endswith("/a")}
    for name, value in staged._factors.shared.items():
        np.testing.assert_allclose(value.numpy(), first[name].numpy(), atol=1e-4, err_msg=name)
    still = fitted(LoraGlobalLocalA, select="last", epochs=4, local_epochs=0)
    copies = np.concatenate([v.numpy().ravel() for n, v in first.items() if n.endswith("/a")])
    np.testing.assert_allclose(still.table_, np.tile(copies, (PEOPLE, 1)), atol=1e-4)


def test_a_warm_up_of_everything_is_the_global_run():
    warm = fitted(PShareLora, init="warmup", warmup=1.0, select="last", epochs=3)
    plain = fitted(LoraGlobal, select="last", epochs=3)
    queries = said(SEEN, 3, 4).hidden()
    got = warm.margins(states_of(warm, SEEN, 0), queries)
    expected = plain.margins(states_of(plain, SEEN, 0), queries)
    assert np.corrcoef(got, expected)[0, 1] > 0.999 or np.allclose(got, expected, atol=1e-3)


def test_independent_draws_are_within_the_bound_and_a_persons_own():
    method = fitted(PShareLora, epochs=0, init_scale=0.5)
    bound = 0.5 / 32**0.5
    assert np.abs(method.table_).max() <= bound
    assert np.abs(method.table_).max() > 0.95 * bound
    assert len(np.unique(method.table_[:, 0])) == PEOPLE
    copied = fitted(PShareLora, epochs=0, init="copied").table_
    assert (copied == copied[0]).all()


def test_adapting_moves_nothing_that_is_shared(shared_b):
    before = shared_b.shared_.copy(), {n: v.clone() for n, v in shared_b._factors.shared.items()}
    states_of(shared_b, UNSEEN, 4)
    assert (before[0] == shared_b.shared_).all()
    assert all((before[1][n] == v).all() for n, v in shared_b._factors.shared.items())


@pytest.mark.parametrize("options", [{}, {"share": "A"}, {"core": "kernel"}, {"core": "diagonal"}], ids=str)
def test_parameters_are_as_many_as_the_paper_counts(options):
    method = fitted(PShareLora, epochs=0, **options)
    d, r, layers = 32, 4, 4  # query and value of two layers
    own = {"share": layers * r * d, "kernel": layers * r * r, "diagonal": layers * r}
    expected = own.get(options.get("core", "share"), own["share"])
    assert method.table_.shape == (PEOPLE, expected)
    both = layers * r * 2 * d + d
    assert method.n_trained == (both if "core" in options else both - layers * r * d)


def test_micro_batches_take_the_same_steps():
    whole = fitted(PShareLora, select="last", epochs=2)
    parts = fitted(PShareLora, select="last", epochs=2, micro_batch=7)
    np.testing.assert_allclose(parts.table_, whole.table_, atol=2e-3)
    assert whole.comparisons_trained == parts.comparisons_trained == 2 * PEOPLE * 8


def test_fewer_layers_are_adapted_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("HETPREF_HOME", str(tmp_path))
    method = fitted(PShareLora, adapt_layers=1)
    assert accuracy(method, states_of(method, SEEN, 8), SEEN) > 0.85
    assert method.table_.shape[1] == 2 * 4 * 32
    assert len(list((tmp_path / "activations").glob("*.npy"))) == 1


def test_the_pass_with_the_least_validation_loss_is_kept():
    """With a rate that destroys what the probe found, the best pass is the start."""
    method = fitted(LoraGlobal, head_init="probe", lr=30.0, epochs=2)
    start = fitted(LoraGlobal, head_init="probe", epochs=0)
    np.testing.assert_array_equal(method.shared_, start.shared_)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 0}, "rank=0; allowed: whole numbers from 1"),
        ({"init": "copyed"}, "copied"),
        ({"share": "C"}, "share of p-share-lora"),
        ({"core": "kernels"}, "kernel"),
        ({"head_init": "best"}, "random, zero, probe"),
        ({"targets": ["querry"]}, "query"),
        ({"targets": "query"}, "a list of names"),
        ({"micro_batch": -5}, "micro_batch=-5; allowed: whole numbers from 1"),
        ({"lr": float("nan")}, "lr=nan; allowed: numbers above 0"),
        ({"lr_head": "a"}, "lr_head='a'; allowed"),
        ({"epochs": float("inf")}, "epochs=inf; allowed"),
        ({"user_balanced": "no"}, "true, false"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"warmup": 2.0}, "warmup=2.0; allowed: a share"),
        ({"core": "kernel", "share": "A"}, "leave one of the two out"),
        ({"max_tokens": 2}, "whole numbers from 3"),
    ],
    ids=str,
)
def test_wrong_options_say_what_is_allowed(options, told):
    with pytest.raises(RequestError, match=told):
        fitted(PShareLora, **options)


def test_options_that_contradict_a_method_are_refused():
    with pytest.raises(RequestError, match="round most steps"):
        fitted(FullFinetune, dtype="bfloat16")
    with pytest.raises(RequestError, match="local_epochs=-1; allowed"):
        fitted(LoraGlobalLocalA, local_epochs=-1)
    with pytest.raises(RequestError, match="core of p-share-lora"):
        PShareLora(core="kernels").memory_estimate("minilm-l6@1", 10)


def test_what_frozen_layers_give_is_kept_by_the_precision_that_they_were_run_in(empty_home):
    alone = fitted(LoraGlobal, adapt_layers=1, epochs=1).shared_
    narrow = fitted(LoraGlobal, adapt_layers=1, epochs=1, dtype="bfloat16").shared_
    again = fitted(LoraGlobal, adapt_layers=1, epochs=1).shared_
    assert not np.array_equal(alone, narrow)
    np.testing.assert_array_equal(alone, again)
    (empty_home / "activations").rename(empty_home / "aside")
    fitted(LoraGlobal, adapt_layers=1, epochs=1, dtype="bfloat16")
    np.testing.assert_array_equal(alone, fitted(LoraGlobal, adapt_layers=1, epochs=1).shared_)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_new_people_are_fitted_alike_however_many_comparisons_are_run_at_once(size):
    whole, parts = (fitted(PShareLora, epochs=2, micro_batch=m) for m in (None, size))
    parts.table_, parts.shared_, parts.new_ = whole.table_, whole.shared_, whole.new_
    parts._model, parts._factors = whole._model, whole._factors
    for one, other in zip(states_of(whole, UNSEEN, 6), states_of(parts, UNSEEN, 6), strict=True):
        np.testing.assert_allclose(one.arrays["factors"], other.arrays["factors"], atol=2e-5)


@pytest.mark.parametrize("name", ["lora-global", "p-share-lora", "full-finetune"])
def test_estimates_grow_with_people_only_where_people_have_their_own(name):
    from methods.registry import create

    method = create(name)
    few, many = (method.memory_estimate("minilm-l6@1", n) for n in (10, 1000))
    assert few is not None and many is not None  # noqa: PT018
    assert few["weights"] == many["weights"] > 4 * 22_000_000
    assert (sum(many.values()) > sum(few.values())) == (name == "p-share-lora")


def test_the_estimate_counts_the_adapters_that_a_fit_makes():
    method = fitted(PShareLora, epochs=0)
    told = method.memory_estimate("tiny-bert@1", PEOPLE)
    assert told is not None
    assert told["adapters"] == 4 * (method.n_trained + method.table_.size)
