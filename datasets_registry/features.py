"""Frozen features, cached by content: encoded once per dataset and encoder, memory-mapped by every process."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from datasets_registry.encoders import Encoder, find_encoder
from datasets_registry.errors import DataError
from datasets_registry.records import Float32, PreferenceData


def features(data: PreferenceData, encoder_id: str = "tabular@1") -> Float32:
    """Return float32 [n_items, d], a read-only memory map of the cached file, which is made when it is not there.

    Raises RequestError for an unknown encoder or one that cannot read this dataset, DataError for features that are
    not finite, and where they cannot be written.
    """
    return np.load(features_path(data, encoder_id), mmap_mode="r", allow_pickle=False)


def features_path(data: PreferenceData, encoder_id: str = "tabular@1") -> Path:
    """Return the .npy file of the features, verified; a file that is damaged or missing is made anew."""
    from datasets_registry.sources import home

    encoder = find_encoder(encoder_id)
    path = home() / "features" / f"{features_key(data.digest, encoder)}.npy"
    if not _whole(path, len(data.items)):
        _build(data, encoder, path)
    return path


def features_key(dataset_digest: str, encoder: Encoder) -> str:
    """Return the sha256 that names a features file: dataset content, encoder, revision, template and pooling."""
    template = hashlib.sha256(encoder.template.encode()).hexdigest()
    parts = (dataset_digest, encoder.id, encoder.revision, template, encoder.pooling)
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def features_facts(data: PreferenceData, encoder_id: str = "tabular@1") -> dict[str, Any]:
    """Return what is known of the features: dataset, encoder, revision, shape, sha256, number of truncated texts."""
    return json.loads(_facts_path(features_path(data, encoder_id)).read_text(encoding="utf-8"))


def _build(data: PreferenceData, encoder: Encoder, path: Path) -> None:
    from datasets_registry.sources import writable, writing

    writable(path.parent)  # before the encoder runs for minutes
    found = encoder.encode(data.items)
    table = np.ascontiguousarray(found.features, np.float32)
    if table.ndim != 2 or len(table) != len(data.items):
        raise DataError(f"{encoder.id} gave shape {table.shape} for {len(data.items)} items of {data.id}")
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        raise DataError(
            f"{encoder.id} gave features that are not finite for {len(bad)} items of {data.id}, first item {bad[0]}: "
            f"{data.items.text(int(bad[0]))!r:.80}"
        )
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    try:
        with writing(path):
            np.save(scratch, table, allow_pickle=False)
            facts = {
                "dataset": data.id,
                "dataset_digest": data.digest,
                "encoder": encoder.id,
                "revision": encoder.revision,
                "pooling": encoder.pooling,
                "shape": list(table.shape),
                "truncated": found.truncated,
                "sha256": _sha256(scratch),
            }
            noted = scratch.with_suffix(".json")
            noted.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            # The array first: facts without their array are found wanting, and the file is made again.
            scratch.replace(path)
            noted.replace(_facts_path(path))
    finally:
        scratch.unlink(missing_ok=True)
        scratch.with_suffix(".json").unlink(missing_ok=True)


def _whole(path: Path, n_items: int) -> bool:
    """Return whether a cached file is there and is what was written."""
    try:
        facts = json.loads(_facts_path(path).read_text(encoding="utf-8"))
        return facts["shape"][0] == n_items and facts["sha256"] == _sha256(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False


def _facts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
