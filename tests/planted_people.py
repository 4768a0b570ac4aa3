"""People made with known linear rewards, what they say, and how well a method serves them next to the truth."""

import numpy as np

from datasets_registry.records import Comparisons, Items
from methods.bradley_terry import sigmoid
from methods.interface import Budget, Histories, World


def world_of(features, n_users):
    blank = ("x",) * len(features)
    return World("planted", Items(blank, blank), n_users, np.ascontiguousarray(features, np.float32))


def planted(theta, each, *, n_val=5, n_query=100, seed=0):
    """People with weights `theta` [n_users, d]: a world, what they say in training, validation and queries."""
    draw = np.random.default_rng(seed)
    n_users, d = theta.shape
    world = world_of(draw.standard_normal((2000, d)), n_users)

    def said(m):
        user = np.repeat(np.arange(n_users), m)
        first, second = draw.integers(0, 2000, (2, len(user)))
        label = draw.random(len(user)) < sigmoid(margins_of(theta, world, user, first, second))
        return Comparisons.of(user=user, unit=first, first=first, second=second, label=label)

    return world, said(each), said(n_val), said(n_query)


def margins_of(theta, world, user, first, second):
    return np.einsum("nd,nd->n", world.features[first] - world.features[second], theta[user])


def low_rank(n_users, *, d=12, rank=2, seed=0):
    """Return weights theta = V a_u, [n_users, d], with a_u ~ 2 N(.3, I), and V [d, rank]."""
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.normal(size=(d, rank)))[0]
    return 2 * (0.3 + draw.normal(size=(n_users, rank))) @ basis.T, basis


def per_person(margin, query):
    """Return everybody's accuracy on their queries, [n_users]."""
    right = (margin > 0) == (query.label > 0.5)
    return np.bincount(query.user, right) / np.bincount(query.user)


def oracles(theta, world, train, val, query):
    """Return everybody's accuracy with their true weights, [n_users]."""
    return per_person(margins_of(theta, world, query.user, query.first, query.second), query)


def interval(accuracies):
    """Return two standard errors of the mean over people."""
    return 2 * accuracies.std() / np.sqrt(len(accuracies))


def served(method, world, train, val, query):
    method.fit(train, val, world, Budget())
    people = np.unique(query.user)
    states = method.adapt(people.tolist(), Histories.group(train, people), Budget())
    return per_person(method.margins(states, query.hidden()), query), states
