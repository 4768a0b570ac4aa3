"""Whether a margins file holds exactly what its record says: each row of the split once, finite, and nothing else."""

# pyarrow has no types.
# pyright: basic

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboard.labels import Query
from leaderboard.parquet_bounds import check_pages, most_bytes, open_parquet
from leaderboard.plain_files import Folder, UnfitFileError
from leaderboard.records import FileRef
from leaderboard.refusals import Report

_Say = Callable[[str, object, object], None]


def check_margins(
    name: str, folder: Folder, where: str, ref: FileRef, query: Query, columns: Sequence[str], report: Report
) -> None:
    """Check a margins file: in place, unaltered, Parquet of these columns, each row of the split once, all finite."""
    import pyarrow as pa

    def say(part: str, found: object, required: object) -> None:
        report(name, f"{where}.{part}", found, required)

    try:
        raw = folder.read(ref.path, most_bytes(len(query), len(columns) + 1))
    except UnfitFileError as why:
        say("size" if why.part == "size" else "path", f"{ref.path}: {why.found}", why.required)
        return
    if (digest := folder.digests[ref.path]) != ref.sha256:
        say("sha256", digest, ref.sha256)
    try:
        file = open_parquet(raw)
        if file.metadata.num_rows != len(query):
            say("rows", file.metadata.num_rows, f"{len(query)}: exactly the split's, each once")
            return
        present = _check_columns(file.schema_arrow, columns, say)
        check_pages(raw)
        table = file.read(columns=present, use_threads=False)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as why:
        say("file", f"{type(why).__name__}: {why}", "Parquet as the harness writes it")
        return
    for column in present:
        found: NDArray[Any] = np.asarray(table.column(column))
        if nulls := table.column(column).null_count:
            say(column, f"{nulls} nulls", "a number in every row")
        elif column == "row" and not np.array_equal(np.sort(found), query.rows):
            say("rows", query.difference(found), "exactly the split's, each once")
        elif not np.isfinite(found).all():
            say(column, f"{int((~np.isfinite(found)).sum())} not finite", "finite numbers")


def _check_columns(schema: Any, columns: Sequence[str], say: _Say) -> list[str]:
    """Return the columns that are there and of the right type; every other is reported."""
    names: list[str] = schema.names
    if len(set(names)) < len(names):
        say("columns", ", ".join(names), "each name once")
        return []
    wanted = {"row": "int32"} | {column: "float" for column in columns}
    types = {field.name: str(field.type) for field in schema}
    for column, kind in wanted.items():
        if types.get(column) != kind:
            say("columns", f"{column}: {types.get(column)}", f"a column {column!r} of type {kind}")
    if others := sorted(set(types) - set(wanted)):
        say("columns", ", ".join(others), f"none but {', '.join(wanted)}")
    return [column for column, kind in wanted.items() if types.get(column) == kind]
