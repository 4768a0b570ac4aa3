"""Planted worlds of what people say of items, and how the answers of a method about them are scored."""

import numpy as np
from scipy.special import expit

from datasets_registry.records import Comparisons
from methods.interface import Budget, Histories


def said(utility, each, draw, people=None):
    """What people say, [n] comparisons of random items: utility [n_people, n_items]."""
    people = np.arange(len(utility)) if people is None else people
    n_items = utility.shape[1]
    user = np.repeat(people, each)
    first = draw.integers(0, n_items, len(user))
    second = (first + draw.integers(1, n_items, len(user))) % n_items
    label = draw.random(len(user)) < expit(utility[user, first] - utility[user, second])
    return Comparisons.of(user=user, unit=np.minimum(first, second), first=first, second=second, label=label)


def accuracy(margin, query):
    """Return everybody's accuracy on their queries; people without any are left out."""
    right = (margin > 0) == (query.label > 0.5)
    total = np.bincount(query.user)
    return (np.bincount(query.user, right) / np.maximum(total, 1))[total > 0]


def oracle(utility, query):
    return accuracy(utility[query.user, query.first] - utility[query.user, query.second], query)


def served(method, history, query):
    people = np.arange(int(query.user.max()) + 1)
    states = method.adapt(people.tolist(), Histories.group(history, people), Budget())
    return accuracy(method.margins(states, query.hidden()), query)


def interval(accuracies):
    """Return two standard errors of the mean over people."""
    return 2 * accuracies.std() / np.sqrt(len(accuracies))


def table_of(user, first, second, label, weight=None):
    return Comparisons.of(user=user, unit=first, first=first, second=second, label=label, weight=weight)
