"""Which numbers of an adapted transformer are shared and which are a person's own, and where each lies in a flat row.

An adapted linear layer computes W x + (alpha / rank) B C A x, with A [rank, d_in], B [rank, d_out] (rank-major, as the
kernels take it) and a core C. Each of A, B, C and the head is shared or per user; a method is a choice of whose they
are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from methods.backbone.soft_prompt import OWN, SoftPrompt

Owner = Literal["shared", "user"]
Core = Literal["none", "kernel", "diagonal"]
HEAD = "head"


@dataclass(frozen=True, slots=True)
class LayerShape:
    """An adapted linear layer of the trunk: its name there, and its widths."""

    name: str
    d_in: int
    d_out: int


@dataclass(frozen=True)
class Layout:
    """Whose each factor is; the shapes of `shared` ones and of a person's `own` follow, in one fixed order.

    `width` is that of the head; a trunk that is trained itself and has no adapters has no `layers`. `soft` is the soft
    prompt before every text, None where there is none, in embeddings of the width `embedding`; `prompt` says whether
    people have a part of it.
    """

    layers: tuple[LayerShape, ...]
    width: int
    rank: int
    a: Owner = "shared"
    b: Owner = "shared"
    core: Core = "none"
    head: Owner = "shared"
    prompt: Owner = "shared"
    soft: SoftPrompt | None = None
    embedding: int = 0

    def _shapes(self, owner: Owner) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            if self.a == owner:
                found[f"{layer.name}/a"] = (self.rank, layer.d_in)
            if self.b == owner:
                found[f"{layer.name}/b"] = (self.rank, layer.d_out)
            if self.core != "none" and owner == "user":
                found[f"{layer.name}/core"] = (self.rank, self.rank) if self.core == "kernel" else (self.rank,)
        if self.soft is not None and owner == "shared":
            found |= self.soft.shared_shapes(self.embedding)
        if self.soft is not None and self.prompt == owner == "user":
            found |= self.soft.own_shapes(self.embedding)
        if self.head == owner:
            found[HEAD] = (self.width,)
        return found

    @cached_property
    def shared(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every shared factor, by name."""
        return self._shapes("shared")

    @cached_property
    def own(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every factor that is a person's own, by name."""
        return self._shapes("user")

    @property
    def personal(self) -> bool:
        """Return whether anything is a person's own."""
        return bool(self.own)

    @property
    def layers_differ(self) -> bool:
        """Return whether an adapted layer has a factor of a person's own, so that it must be told whose a token is."""
        return bool(set(self.own) - {HEAD, OWN})


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the number of values of each shape."""
    counts: list[int] = []
    for shape in shapes.values():
        n = 1
        for side in shape:
            n *= side
        counts.append(n)
    return counts


def unpacked(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the parts of flat rows [..., P] by name, each [..., *shape]; one split, so that its gradient is one copy.

    Each lies in memory of its own: the kernels would copy a view anew at every call.
    """
    if not shapes:
        return {}
    parts: Sequence[Tensor] = flat.split(sizes(shapes), dim=-1)
    return {
        name: part.reshape(*flat.shape[:-1], *shape).contiguous()
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
