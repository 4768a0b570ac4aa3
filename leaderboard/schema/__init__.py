"""JSON Schemas of the file formats, exported from the models: `python -m leaderboard.schema` renews them."""

from __future__ import annotations

import json
from pathlib import Path

from leaderboard.kernels import KernelInfo
from leaderboard.records import RunRecord
from leaderboard.rows import Leaderboard

FOLDER = Path(__file__).parent
# A kernel's is of the `extra_info` of a benchmark in a pytest-benchmark file.
MODELS = {
    "record.schema.json": RunRecord,
    "kernel.schema.json": KernelInfo,
    "leaderboard.schema.json": Leaderboard,
}


def schema_text(name: str) -> str:
    """Return a schema as it must stand in its file."""
    return json.dumps(MODELS[name].model_json_schema(), indent=1, sort_keys=True) + "\n"
