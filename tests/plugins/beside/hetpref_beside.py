"""A dataset and a method from another distribution."""

import numpy as np

from datasets_registry.records import Card, Comparisons, Items, Users
from datasets_registry.registry import Pieces, dataset
from methods.interface import Histories, LinearMethod, MethodSpec, stack, unstack


@dataset(
    Card(
        name="beside-tea@1",
        title="Made tea preferences",
        population="60 made people, half of whom like it strong",
        licence="CC0",
        consent="made by a program",
        source="simulated",
        revision="1",
        sha256="",
        citation="none",
        simulated=True,
    )
)
def tea(*, people: int = 60) -> Pieces:
    """Return people who like strong or weak tea, and sugar alike."""
    draw = np.random.default_rng(7)
    pots, each = 20, 6
    attributes = draw.normal(size=(pots * each, 2)).astype(np.float32)
    taste = np.stack([np.where(np.arange(people) % 2, 2.0, -2.0), np.full(people, 0.5)], axis=1)
    units = 20
    user = np.repeat(np.arange(people), units)
    unit = np.arange(people * units)
    pot = unit % pots
    first = pot * each + draw.integers(0, 3, len(user))
    second = pot * each + draw.integers(3, 6, len(user))
    margin = ((attributes[first] - attributes[second]) * taste[user]).sum(1)
    return Pieces(
        users=Users(tuple(f"guest-{i}" for i in range(people))),
        items=Items(
            ("Which tea?",) * len(attributes),
            tuple(f"A tea of strength {a:.2f} with sugar {b:.2f}." for a, b in attributes),
            attributes,
            ("strength", "sugar"),
        ),
        comparisons=Comparisons.of(user=user, unit=unit, first=first, second=second, label=margin > 0),
        unit_cluster=pot.astype(np.int32),
        clusters=tuple(f"pot-{i}" for i in range(pots)),
    )


class Average(LinearMethod):
    """theta_u = mean of y (phi(first) - phi(second)) over the history, y in {-1, 1}."""

    spec = MethodSpec(
        name="beside-average",
        title="Mean signed difference",
        level="feature",
        adaptation="closed-form",
        citation="none",
        equation="theta_u = mean_n y_n dphi_n",
        shared_parameters="0",
        per_user_parameters="d",
        cold_start="0",
        deviations="none",
    )

    def fit(self, train, val, world, budget):
        self.world = world

    def adapt(self, users, history, budget):
        table = Histories.of(history).table
        signed = self.world.differences(table) * (2 * table.label - 1)[:, None]
        total = np.zeros((len(users), signed.shape[1]), np.float32)
        np.add.at(total, table.user, signed)
        return unstack(theta=total / np.maximum(Histories.of(history).lengths, 1)[:, None].astype(np.float32))

    def weights(self, states):
        return stack(states, "theta")
