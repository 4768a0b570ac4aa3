"""What people said: cards, sources, items, comparisons, splits, probes and frozen features."""

from datasets_registry.registry import Listing, canonical_id, cards, find_dataset, load

__all__ = ["Listing", "canonical_id", "cards", "find_dataset", "load"]
