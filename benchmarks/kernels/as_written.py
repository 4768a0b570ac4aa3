"""Rivals as they are written elsewhere: PEFT itself, and the plain loop.

PEFT is one of its LoRA layers with an adapter per user present, driven the way its documentation says. Without
gradients a mixed batch is one call with `adapter_names`. PEFT raises on that in training, so with gradients each user's
tokens go through the layer with that user's adapter set, forward and backward, as `set_adapter` takes the gradients of
the other adapters away. The layer's own base product, which no other contender does, is left out.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kernels.contenders import Contender, Ready, gradient
from benchmarks.kernels.operands import Mode, Operands, Outcome
from benchmarks.kernels.rivals import Restored


class _NoBase(nn.Linear):
    """A base layer whose product is zero and costs nothing but the rows that PEFT adds to."""

    def forward(self, input: Tensor) -> Tensor:
        return input.new_zeros(len(input), self.out_features)


def _layer(given: Operands) -> Any:
    from peft import LoraConfig
    from peft.tuners.lora import Linear as LoraLinear

    cell = given.cell
    config = LoraConfig(r=cell.rank, lora_alpha=cell.rank, init_lora_weights=False)
    with torch.device("meta"):
        base = _NoBase(cell.d_in, cell.d_out, bias=False)
        first, *rest = [str(user) for user in given.users]
        layer = LoraLinear(base, first, config, r=cell.rank, lora_alpha=cell.rank)
        for name in rest:
            layer.update_layer(name, cell.rank, lora_alpha=cell.rank, config=config)
    for user in given.users.tolist():
        layer.lora_A[str(user)].weight = nn.Parameter(given.a[user])
        layer.lora_B[str(user)].weight = nn.Parameter(given.b[user].T.contiguous())
    return layer


def _mixed_batch(given: Operands) -> Ready:
    layer = _layer(given).eval()
    names = ["__base__" if user < 0 else str(user) for user in given.ids]

    def run() -> Tensor:
        with torch.no_grad():
            return layer(given.x, adapter_names=names)

    return Ready(run, Outcome)


def _adapter_by_adapter(given: Operands) -> Ready:
    layer = _layer(given).train()
    names = [str(user) for user in given.users]
    order, lengths = torch.from_numpy(given.order), given.lengths.tolist()
    restored = Restored(given, torch.arange(given.tokens).numpy())

    def run() -> tuple[Tensor, Tensor]:
        parts = given.x.index_select(0, order).split(lengths)
        dys = given.dy.index_select(0, order).split(lengths)
        ys: list[Tensor] = []
        dxs: list[Tensor] = []
        for name, part, dy in zip(names, parts, dys, strict=True):
            layer.set_adapter(name)
            x = part.detach().requires_grad_()
            y = layer(x)
            y.backward(dy)
            ys.append(y.detach())
            dxs.append(gradient(x))
        return restored(torch.cat(ys)), restored(torch.cat(dxs))

    def outcome(result: tuple[Tensor, Tensor]) -> Outcome:
        da = torch.stack([gradient(layer.lora_A[name].weight) for name in names])
        db = torch.stack([gradient(layer.lora_B[name].weight).T for name in names])
        return Outcome(*result, da, db)

    def reset() -> None:
        for name in names:
            layer.lora_A[name].weight.grad = layer.lora_B[name].weight.grad = None

    return Ready(run, outcome, reset)


def _refuses(given: Operands, mode: Mode) -> str | None:
    del mode
    if importlib.util.find_spec("peft") is None:
        return 'peft is not installed; pip install "hetpref[kernels]"'
    if given.cell.variant != "full":
        return "PEFT has no mixed batches for shared factors or cores"
    return None


def _estimate_s(given: Operands, mode: Mode) -> float:
    # It compares every token's name with every adapter's, or goes over all adapters for each adapter set, and for each
    # that is added.
    prepare = 1e-6 * given.active**2
    if mode == "forward":
        return prepare + given.active * (4e-5 + 3.5e-8 * given.cell.tokens)
    return prepare + given.active * (3e-4 + 5e-6 * given.active)


def _plain_loop(given: Operands, mode: Mode) -> Ready:
    """Return the loop over users as it is mostly written: stacked parameters and the batch, both indexed in the loop.

    Autograd then adds a gradient of all users' factors and of the whole batch for every user.
    """
    x, a, b = (t.detach().requires_grad_(mode == "both") for t in (given.x, given.a, given.b))
    core = None if given.core is None else given.core.detach().requires_grad_(mode == "both")
    parts = torch.from_numpy(given.order).split(given.lengths.tolist())
    users = given.users.tolist()

    def run() -> Tensor:
        with torch.set_grad_enabled(mode == "both"):
            y = x.new_zeros(given.cell.tokens, given.cell.d_out)
            for user, tokens in zip(users, parts, strict=True):
                z = x[tokens] @ (a[user] if a.dim() == 3 else a).T
                if core is not None:
                    z = z @ core[user].T if core.dim() == 3 else z * core[user]
                y[tokens] = z @ (b[user] if b.dim() == 3 else b)
        if mode == "both":
            y.backward(given.dy)
        return y

    def outcome(y: Tensor) -> Outcome:
        if mode == "forward":
            return Outcome(y)
        present = torch.from_numpy(given.users)
        da, db = (gradient(t)[present] if t.dim() == 3 else gradient(t) for t in (a, b))
        return Outcome(y.detach(), gradient(x), da, db, None if core is None else gradient(core)[present])

    def reset() -> None:
        for each in (x, a, b, core):
            if each is not None:
                each.grad = None

    return Ready(run, outcome, reset)


def _plain_loop_s(given: Operands, mode: Mode) -> float:
    if mode == "forward":
        return given.active * 3e-5
    cell = given.cell
    numbers = given.a.numel() + given.b.numel() + cell.tokens * (2 * cell.d_in + 3 * cell.d_out)
    return given.active * (1e-4 + numbers * given.x.element_size() / 1e10)


AS_WRITTEN = (
    Contender(
        "peft",
        "rival",
        lambda given, mode: _mixed_batch(given) if mode == "forward" else _adapter_by_adapter(given),
        _refuses,
        _estimate_s,
    ),
    Contender("plain loop", "rival", _plain_loop, estimate_s=_plain_loop_s, grad="dense"),
)
