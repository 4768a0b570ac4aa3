"""Gaussian process preference learning: the kernel form, conformance, and people whose utilities are curved."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import Kernel
from sklearn.metrics.pairwise import rbf_kernel

from datasets_registry.records import Comparisons, Items
from methods.catalog.gp_preference import GRID, joint_mode, penalties
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Budget, Histories, World
from methods.registry import create


class PreferenceKernel(Kernel):
    """kappa of rows (person, x, x'): a ((1 - s) + s [same person]) (k(a,c) - k(a,d) - k(b,c) + k(b,d))."""

    def __init__(self, gamma=1.0, share=0.5, amplitude=1.0):
        self.gamma, self.share, self.amplitude = gamma, share, amplitude

    def __call__(self, X, Y=None, eval_gradient=False):
        Y = X if Y is None else Y
        d = (X.shape[1] - 1) // 2
        k = [[rbf_kernel(X[:, i : i + d], Y[:, j : j + d], self.gamma) for j in (1, 1 + d)] for i in (1, 1 + d)]
        who = (1 - self.share) + self.share * (X[:, :1] == Y[:, 0])
        return self.amplitude * who * (k[0][0] - k[0][1] - k[1][0] + k[1][1])

    def diag(self, X):
        return np.diag(self(X)).copy()

    def is_stationary(self):
        return False


@pytest.fixture
def stage():
    return small_stage(create("gp-preference").spec)


def fitted(stage, **config):
    method = create("gp-preference", **config)
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    return method


def kernel_form(method, table, labels):
    """Return scikit-learn's Laplace approximation of the same model, and its rows of a table."""
    size = float((method.embedded(table.first[:1]) ** 2).sum())  # k(x, x) = 1 before phi is brought to unit size
    kernel = PreferenceKernel(method.gamma_, method.share_, method.amplitude_ * size)
    found = GaussianProcessClassifier(kernel, optimizer=None, max_iter_predict=1000)
    return found.fit(rows_of(method, table), labels).base_estimator_


def rows_of(method, table):
    """Return a table as rows (person, x, x') on scaled features."""
    x = method.world.features * method.scale_
    return np.column_stack([table.user, x[table.first], x[table.second]]).astype(np.float64)


@pytest.mark.parametrize("kernel", ["rbf", "laplacian"])
def test_conformance(kernel):
    assert [r for r in check("gp-preference", landmarks=16, kernel=kernel) if r.status == "failed"] == []


def test_the_mode_is_that_of_the_kernel_form_for_everybody_at_once(stage):
    hard = stage.train.take((stage.train.label == 0) | (stage.train.label == 1))
    method = create("gp-preference", landmarks=48, length=0.5, share=0.3, amplitude=4.0)
    method.fit(hard, stage.val.take([]), stage.world, BUDGET)
    used = np.unique([hard.first, hard.second])
    assert len(method.points_) == len(used)
    people = np.unique(hard.user)
    states = method.adapt(people.tolist(), Histories.group(hard, people), BUDGET)
    inner = kernel_form(method, hard, hard.label > 0.5)
    np.testing.assert_allclose(expit(method.margins(states, hard)), inner.pi_, atol=2e-4)
    asked = stage.queries
    asked = asked.take(np.isin(asked.first, used) & np.isin(asked.second, used) & np.isin(asked.user, people))
    assert len(asked) > 20
    elsewhere = inner.kernel_(rows_of(method, asked), inner.X_train_) @ (inner.y_train_ - inner.pi_)
    np.testing.assert_allclose(method.margins(states, asked), elsewhere, atol=2e-3)


def test_a_new_persons_mode_is_the_fixed_point_of_the_kernel_form_given_the_population(stage):
    method = fitted(stage, landmarks=20, length=0.5, share=0.3, amplitude=4.0)
    history = stage.histories.take(stage.histories.user == stage.people[-1])
    history = replace(history, label=np.array([0, 1, 0.5, 0.8, 0.3], np.float32), weight=np.arange(5, dtype=np.float32))
    state = method.adapt([99], [history], BUDGET)
    margin = method.margins(state, history.for_users(0 * history.user))
    phi = method.embedded(history.first) - method.embedded(history.second)
    gram = method.amplitude_ * method.share_ * phi @ phi.T
    np.testing.assert_allclose(
        margin, phi @ method.v_ + gram @ (history.weight * (history.label - expit(margin))), atol=1e-3
    )
    nobody = method.adapt([99], [Comparisons.empty()], BUDGET)
    np.testing.assert_allclose(method.margins(nobody, history.for_users(0 * history.user)), phi @ method.v_, atol=1e-5)


def test_landmarks_on_every_item_make_the_kernel_exact(stage):
    method = fitted(stage, landmarks=48)
    used = np.unique([stage.train.first, stage.train.second])
    x = (stage.world.features[used] * method.scale_).astype(np.float64)
    phi = method.embedded(used)
    np.testing.assert_allclose(phi @ phi.T / (phi[0] @ phi[0]), rbf_kernel(x, gamma=method.gamma_), atol=1e-6)
    apart = method.embedded(stage.train.first) - method.embedded(stage.train.second)
    assert (apart**2).sum(1).mean() == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_newtons_method_ends_where_the_objective_is_flat(stage, share):
    method = fitted(stage, landmarks=12, length=1.0, share=share, amplitude=100.0)
    histories = Histories.group(stage.train, np.unique(stage.train.user))
    table = histories.table
    design = method.embedded(table.first) - method.embedded(table.second)
    common, personal = penalties(share, 100.0)
    v, own = joint_mode(method.problem(histories), common, personal)
    pull = (table.label - expit(design @ v + np.einsum("nm,nm->n", design, own[table.user])))[:, None] * design
    np.testing.assert_allclose(common * v, pull.sum(0), atol=2e-3)
    for user in range(len(histories)):
        np.testing.assert_allclose(personal * own[user], pull[table.user == user].sum(0), atol=2e-3)


def test_a_person_without_comparisons_is_the_population_and_only_v_is_trained(stage):
    method = fitted(stage, landmarks=10)
    states = method.adapt([0], [Comparisons.empty()], BUDGET)
    assert method.n_trained == states[0].n_parameters == 10
    assert not states[0].arrays["v"].any()


def test_tuning_stays_within_its_trials(stage, monkeypatch):
    import methods.catalog.gp_preference as module

    asked = []
    monkeypatch.setattr(module, "joint_mode", lambda *given: asked.append(given) or joint_mode(*given))
    for trials in (1, 2, 6, 20):
        asked.clear()
        method = create("gp-preference", landmarks=8)
        method.fit(stage.train, stage.val, stage.world, Budget(trials=trials))
        whole = 1 + sum(len(values) - 1 for values in GRID.values())
        assert len(asked) == 1 + min(trials, whole)  # and the fit itself
        assert all(getattr(method, f"{name}_") in values for name, values in GRID.items())


def ideal_points(n_users, each, *, d=2, seed=0):
    """People who like best what is nearest to a point of their own, by squared distance: utilities are curved."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(1000, d)).astype(np.float32)
    centres = 0.7 * draw.normal(size=(n_users, d))
    sharp = np.exp(0.7 * draw.normal(size=n_users))
    utility = -sharp[:, None] * ((features[None] - centres[:, None]) ** 2).sum(2)  # (people, items)

    def said(m):
        user = np.repeat(np.arange(n_users), m)
        first, second = draw.integers(0, 1000, (2, len(user)))
        label = draw.random(len(user)) < expit(utility[user, first] - utility[user, second])
        return Comparisons.of(user=user, unit=first, first=first, second=second, label=label)

    blank = ("x",) * len(features)
    return World("planted", Items(blank, blank), n_users, features), said(each), said(5), said(200), utility


def test_curved_utilities_are_learned_to_the_oracle_and_better_than_by_weights_per_person():
    world, train, val, query, utility = ideal_points(60, 100)
    people = np.arange(60)

    def accuracy(margin):
        return np.bincount(query.user, (margin > 0) == (query.label > 0.5)) / np.bincount(query.user)

    def served(name):
        method = create(name)
        method.fit(train, val, world, Budget())
        states = method.adapt(people.tolist(), Histories.group(train, people), Budget())
        return accuracy(method.margins(states, query.hidden()))

    own = served("gp-preference")
    oracle = accuracy(utility[query.user, query.first] - utility[query.user, query.second])
    assert own.mean() > oracle.mean() - 2 * own.std() / np.sqrt(len(own))
    assert own.mean() > served("per-user-bt").mean() + 0.1
