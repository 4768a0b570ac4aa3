"""Where every token of a mixed batch goes: sorted once per batch, and used by every adapted layer of the step."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Tokens of a batch sorted by user; make one with `plan_batch`.

    `order` is int64 [T]: the tokens, those without an adapter first, then user by user, each user's in the order of the
    batch. `padded_users` int64 [S] ascends, and `padded_offsets` int64 [S + 1] says which of `order` are whose. On the
    CPU S is the number of users present; on a GPU it is a bound that the host knows without waiting, min(T, n_users),
    and the places behind the users present stand for empty segments at T. `users`, `offsets` and `n_active` are exact:
    on a GPU the first use of one waits for the device.
    """

    ids: Tensor
    n_users: int
    order: Tensor
    padded_users: Tensor
    padded_offsets: Tensor
    present: Tensor | int
    in_order: bool = False

    @property
    def tokens(self) -> int:
        """Return T, the number of tokens."""
        return self.order.numel()

    @property
    def device(self) -> torch.device:
        """Return where the plan lies."""
        return self.order.device

    @cached_property
    def n_active(self) -> int:
        """Return how many users are present."""
        return int(self.present)

    @cached_property
    def users(self) -> Tensor:
        """Return the users present, int64 [n_active], ascending."""
        return self.padded_users[: self.n_active]

    @cached_property
    def offsets(self) -> Tensor:
        """Return where each user's tokens begin in `order`, int64 [n_active + 1]; the first counts base-only tokens."""
        return self.padded_offsets[: self.n_active + 1]

    @cached_property
    def bounds(self) -> list[int]:
        """Return `offsets` on the host."""
        return self.offsets.tolist()

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Return where `order`, `users` and `offsets` lie in memory: not kept, as a copy of the plan lies elsewhere."""
        return self.order.data_ptr(), self.users.data_ptr(), self.offsets.data_ptr()

    @cached_property
    def longest(self) -> int:
        """Return how many tokens the user with the most has."""
        return int(np.diff(self.bounds).max(initial=0))

    @property
    def n_base(self) -> int:
        """Return how many tokens have no adapter."""
        return self.bounds[0]

    @cached_property
    def inverse(self) -> Tensor:
        """Return where each token stands in `order`, int64 [T]."""
        inverse = torch.empty_like(self.order)
        inverse[self.order] = torch.arange(self.tokens, device=self.device)
        return inverse

    def __repr__(self) -> str:
        """Return what the plan is for, without its tensors."""
        return f"Plan(tokens={self.tokens}, n_users={self.n_users}, device='{self.device}')"


def plan_batch(user_ids: Tensor, n_users: int, *, device: torch.device | str | None = None, check: bool = True) -> Plan:
    """Return the plan of a batch: which tokens belong to whom.

    `user_ids` is int32 or int64 of any shape, one id per token in 0 .. n_users - 1, or -1 for no adapter (the base
    alone); they may change afterwards. `check=False` leaves out the check of the range of ids on a GPU, which waits for
    it; a plan made while a CUDA graph is captured is never checked. Raises TypeError for ids that are no integers,
    IndexError that names the first id out of range and where it stands, ValueError for a negative `n_users`.

    >>> plan = plan_batch(torch.tensor([2, 0, -1, 2]), n_users=4)
    >>> plan.order.tolist(), plan.users.tolist(), plan.offsets.tolist(), plan.n_active
    ([2, 1, 0, 3], [0, 2], [1, 2, 4], 2)
    """
    if not isinstance(user_ids, Tensor):
        raise TypeError(f"user_ids is {type(user_ids).__name__}; give a tensor of int32 or int64")
    if user_ids.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"user_ids has dtype {user_ids.dtype}; allowed: torch.int32, torch.int64")
    given = n_users
    try:
        n_users = -1 if isinstance(n_users, bool) else operator.index(n_users)
    except TypeError:
        n_users = -1
    if n_users < 0:
        raise ValueError(f"n_users is {given!r}; give the number of users, an integer of at least 0")
    ids, place = user_ids.reshape(-1), torch.device(device or user_ids.device)
    if ids.device.type == "cpu":
        _check_range(ids.numpy(), n_users, user_ids.shape)
    elif check and not (ids.is_cuda and torch.cuda.is_current_stream_capturing()):
        _check_range(ids.cpu().numpy(), n_users, user_ids.shape)
    ids = ids.to(place)
    return _on_host(ids, n_users) if place.type == "cpu" else plan_on_device(ids, n_users)


def _on_host(ids: Tensor, n_users: int) -> Plan:
    """Return a plan by counting; numpy's sort of small integers is a radix sort."""
    told = ids.numpy()
    counts = np.bincount(told + 1, minlength=n_users + 1)
    small = told.astype(np.int16) if n_users < 2**15 else told
    users = np.flatnonzero(counts[1:])
    ends = np.cumsum(counts)
    offsets = np.empty(len(users) + 1, np.int64)
    offsets[0] = counts[0]
    offsets[1:] = ends[users + 1]
    in_order = bool((told[1:] >= told[:-1]).all())
    order = np.arange(len(told)) if in_order else np.argsort(small, kind="stable")
    return Plan(
        ids.to(torch.long, copy=True),
        n_users,
        torch.from_numpy(order),
        torch.from_numpy(users),
        torch.from_numpy(offsets),
        len(users),
        in_order,
    )


def plan_on_device(ids: Tensor, n_users: int) -> Plan:
    """Return a plan by operations of fixed shape, so that the host waits for nothing and a graph can capture it."""
    tokens = ids.numel()
    bound = min(tokens, n_users)
    ids = ids.to(torch.long, copy=True)
    ordered, order = torch.sort(ids, stable=True)
    starts = torch.ones(tokens, dtype=torch.bool, device=ids.device)
    starts[1:] = ordered[1:] != ordered[:-1]
    starts &= ordered >= 0
    place = starts.cumsum(0)  # segment of each token, counted from 1; 0 before the first user's
    # What has no segment is written to one place too many, which is cut off.
    target = torch.where(starts, place - 1, bound)
    users = torch.full((bound + 1,), n_users, device=ids.device).scatter_(0, target, ordered)[:bound]
    rows = torch.arange(tokens, device=ids.device)
    offsets = torch.full((bound + 1,), tokens, device=ids.device).scatter_(0, target, rows)
    offsets[bound] = tokens
    present = place[-1] if tokens else torch.zeros((), dtype=torch.long, device=ids.device)
    return Plan(ids, n_users, order, users, offsets, present)


def _check_range(ids: np.ndarray, n_users: int, shape: torch.Size) -> None:
    """Raise IndexError that names the first id out of range and its position."""
    if not len(ids) or (ids.min() >= -1 and ids.max() < n_users):
        return
    first = int(np.flatnonzero((ids < -1) | (ids >= n_users))[0])
    position = tuple(int(i) for i in np.unravel_index(first, shape)) if len(shape) > 1 else first
    allowed = f"0 to {n_users - 1}, or -1 for no adapter" if n_users else "only -1, as n_users is 0"
    raise IndexError(f"user id {int(ids[first])} at position {position} is out of range; allowed: {allowed}")
