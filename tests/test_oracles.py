"""On people made as a method assumes, it serves them as well as their true rewards would, and better than pooled."""

import numpy as np
import pytest
from planted_people import interval, low_rank, oracles, planted, served

from methods.registry import create


def mixtures_of_two(n_users=60, d=12):
    """Return weights [n_users, d] that mix two rewards, with Dirichlet(.3) shares: LoRe's."""
    draw = np.random.default_rng(5)
    rewards = 2 * draw.normal(size=(2, d))
    return draw.dirichlet(np.full(2, 0.3), n_users) @ rewards


def low_rank_around_a_mean(n_users=60, d=12):
    """Return weights theta_0 + B a_u, [n_users, d], of rank 2 around theta_0: P-ShareLoRA's."""
    return low_rank(n_users, d=d)[0] + np.eye(d)[0]


def normal_people(n_users=60):
    """Return weights [n_users, 6] drawn from one normal that is wide in few directions: the mixed logit's."""
    return np.random.default_rng(9).normal(size=(n_users, 6)) * [3, 1, 0.3, 0.3, 0, 0]


def three_kinds(n_users=60):
    """Return weights [n_users, 6] of three kinds of people: hard clusters."""
    return 1.4 * np.random.default_rng(3).normal(size=(3, 6))[np.arange(n_users) % 3]


@pytest.mark.parametrize(
    ("name", "config", "theta", "each"),
    [
        ("lore", {"rank": 2}, mixtures_of_two(), 200),
        ("p-share-lora-linear", {"rank": 2}, low_rank_around_a_mean(), 120),
        ("hierarchical-bt", {}, normal_people(), 120),
        ("clustered-bt", {}, three_kinds(), 100),
    ],
)
def test_it_reaches_the_oracle_on_people_of_its_own_kind(name, config, theta, each):
    data = planted(theta, each)
    own, common = served(create(name, **config), *data)[0], served(create("pooled-bt"), *data)[0]
    assert own.mean() > oracles(theta, *data).mean() - interval(own)
    assert own.mean() > common.mean() + 0.1
