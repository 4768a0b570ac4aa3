"""The work lists of a plan: every token once, no tile of two users, and never more of them than the host expects."""

import pytest
import torch

from methods.lowrank.plan import plan_batch, plan_on_device
from methods.lowrank.tiles import most_tiles, pieces_of, tiles_of

PLANS = {"exact": plan_batch, "padded": plan_on_device}
IDS = {
    "uniform": torch.randint(-1, 11, (90,), generator=torch.Generator().manual_seed(0)),
    "skewed": torch.cat([torch.full((80,), 4), torch.arange(-1, 9)]),
    "base only but one": torch.cat([torch.full((89,), -1), torch.tensor([3])]),
    "one user": torch.full((90,), 10),
    "each of its own": torch.arange(11),
    "one token": torch.tensor([2]),
}


@pytest.mark.parametrize("padded", PLANS)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("size", [1, 16, 64])
def test_tiles_hold_every_token_once(ids, padded, size):
    plan = PLANS[padded](IDS[ids], 11)
    tiles = tiles_of(plan, size)
    assert tiles is tiles_of(plan, size)
    assert len(tiles) == most_tiles(plan, size)
    held = []
    for user, start, count in tiles.tolist():
        assert 0 <= count <= size
        places = plan.order[start : start + count]
        assert (plan.ids[places] == user).all()
        held += places.tolist()
    assert sorted(held) == list(range(plan.tokens))


@pytest.mark.parametrize("padded", PLANS)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("longest", [1, 7, 1024])
def test_pieces_hold_every_row_and_every_adapted_token(ids, padded, longest):
    plan = PLANS[padded](IDS[ids], 11)
    pieces, longs, slots = pieces_of(plan, longest)
    rows, held, used = set(), [], {}
    for row, user, start, stop, slot in pieces.tolist():
        if row == len(plan.padded_users):
            continue
        rows.add(row)
        assert stop - start <= longest
        held += range(start, stop)
        assert (plan.ids[plan.order[start:stop]] == user).all()
        if slot >= 0:
            used.setdefault(row, []).append(slot)
    assert rows == set(range(len(plan.padded_users)))
    assert sorted(held) == list(range(plan.n_base, plan.tokens))
    told = {row: list(range(first, first + count)) for row, _, first, count in longs.tolist() if count}
    assert told == used
    flat = [slot for each in used.values() for slot in each]
    assert len(flat) == len(set(flat)) <= slots or not flat
    assert max(flat, default=-1) < max(slots, 1)


def test_the_bound_on_tiles_is_reached():
    plan = plan_on_device(torch.tensor([-1, 0, 1, 2, 3, 3, 3, 3, 3]), 4)
    assert int((tiles_of(plan, 4)[:, 2] > 0).sum()) == most_tiles(plan, 4) == 6


def test_no_tokens_make_no_tiles():
    plan = plan_on_device(torch.empty(0, dtype=torch.long), 3)
    assert tiles_of(plan, 16).shape == (0, 3)
