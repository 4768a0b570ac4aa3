"""What people said: cards, sources, items, comparisons, splits, probes and frozen features.

>>> from datasets_registry import load
>>> load("electricity").card.title
'Electricity plans, stated choice'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets_registry.registry import Listing, canonical_id, cards, find_dataset, load

__all__ = ["Listing", "canonical_id", "cards", "find_dataset", "load"]


def __getattr__(name: str) -> Any:
    # The command line imports this package for its errors alone, and must not pay for numpy to print its help.
    if name in __all__:
        from datasets_registry import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
