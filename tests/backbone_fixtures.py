"""A small world of people who like one of two words, for backbone methods on tiny models."""

import numpy as np

from datasets_registry.records import Comparisons, Items
from methods.interface import Budget, Histories, World

WORDS = ("red", "blue")
PEOPLE, NEW = 12, 4
BUDGET = Budget(seed=5)
# Rates at which a model of two layers and width 32 learns in seconds.
FAST = {"rank": 4, "alpha": 8.0, "lr": 0.01, "epochs": 12, "batch": 64, "adapt_steps": 20}


def world(encoder="tiny-bert@1", features=None):
    """Return items that say one word or the other, a few times."""
    texts = [f"{WORDS[n % 2]} thing number {n // 2}" for n in range(24)]
    items = Items(("",) * len(texts), tuple(texts))
    return World(dataset="words", items=items, n_users=PEOPLE + NEW, encoder=encoder, features=features)


def said(people, each, seed):
    """Return comparisons of a red thing and a blue one; person u likes WORDS[u % 2]."""
    draw = np.random.default_rng(seed)
    user = np.repeat(np.asarray(people), each)
    red, blue = 2 * draw.integers(0, 12, len(user)), 2 * draw.integers(0, 12, len(user)) + 1
    turned = draw.random(len(user)) < 0.5
    likes_first = (user % 2 == 1) == turned
    return Comparisons.of(
        user=user,
        unit=np.arange(len(user)) // 2,
        first=np.where(turned, blue, red),
        second=np.where(turned, red, blue),
        label=likes_first.astype(float),
    )


def fitted(cls, encoder="tiny-bert@1", people=PEOPLE, each=8, **config):
    """Return a method fitted on seen people, with a quarter of their comparisons held out."""
    method = cls(**{**FAST, **config})
    method.fit(said(range(people), each, 1), said(range(people), each // 4, 2), world(encoder), BUDGET)
    return method


def states_of(method, people, each, seed=3):
    """Return states of people after so many comparisons each."""
    histories = Histories.group(said(people, each, seed) if each else Comparisons.empty(), list(people))
    return method.adapt(list(people), histories, BUDGET)


def accuracy(method, states, people, *, wrong=False):
    """Return the share of queries that are answered as the person would, or with the next person's state."""
    queries = said(people, 10, 4)
    place = queries.for_users(np.searchsorted(list(people), queries.user))
    if wrong:
        states = [*states[1:], states[0]]
    margins = method.margins(states, place.hidden())
    return float(((margins > 0) == (queries.label > 0.5)).mean())
