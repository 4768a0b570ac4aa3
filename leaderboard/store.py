"""A results folder: where records and margins stand, and how they are written so that a killed run loses nothing."""

# pyarrow has no types.
# pyright: basic

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError
from leaderboard.parquet_bounds import check_pages, open_parquet
from leaderboard.plain_files import UnfitFileError, read_plain
from leaderboard.records import FileRef, RunRecord, printable

MAX_RECORD_BYTES = 1 << 20
MAX_MARGINS_BYTES = 256 << 20
MAX_MARGINS = 50_000_000  # rows x columns: a few bytes of Parquet can hold any number of equal rows


class ResultsFolder:
    """One suite's results: `records/<dataset>/<method>/<key>.json` and `margins/<dataset>/<method>/<key>.parquet`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def record_path(self, dataset: str, method: str, key: str) -> Path:
        """Return where a record stands."""
        return self.root / "records" / dataset / method / f"{key}.json"

    def margins_name(self, dataset: str, method: str, key: str) -> str:
        """Return the path of a margins file, relative to the folder."""
        return f"margins/{dataset}/{method}/{key}.parquet"

    def write_record(self, record: RunRecord) -> Path:
        """Write a record in its place."""
        path = self.record_path(record.dataset.name, record.method.name, record.key)
        write_atomically(path, record.to_json().encode())
        return path

    def write_margins(self, relative: str, columns: Mapping[str, NDArray[Any]]) -> FileRef:
        """Write columns as Parquet and return the reference with the sha256 of the bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.table(dict(columns)), sink, compression="zstd", write_statistics=False)
        raw = sink.getvalue()
        write_atomically(self.root / relative, raw)
        return FileRef(path=relative, sha256=hashlib.sha256(raw).hexdigest())

    def read_margins(self, ref: FileRef) -> dict[str, NDArray[Any]]:
        """Return the columns of a margins file: `row` int32, any other float32, none of them with nulls.

        Raises DataError when the file is missing, altered, leaves the folder, or holds anything else.
        """
        import pyarrow as pa

        path = (self.root / ref.path).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise DataError(f"margins path {ref.path!r} leaves the results folder")
        try:
            raw = read_plain(path, MAX_MARGINS_BYTES)
        except UnfitFileError as why:
            raise DataError(f"margins file {ref.path} cannot be read: {why}") from why
        if (found := hashlib.sha256(raw).hexdigest()) != ref.sha256:
            raise DataError(f"margins file {ref.path} was altered: sha256 {found}, its record says {ref.sha256}")
        try:
            file = open_parquet(raw)
            _check_columns(ref.path, file)
            check_pages(raw)
            table = file.read(use_threads=False)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as why:
            raise DataError(f"margins file {ref.path} is not Parquet: {printable(str(why))[:300]}") from why
        for name in table.column_names:
            if nulls := table.column(name).null_count:
                raise DataError(f"margins file {ref.path}: column {name!r} has {nulls} nulls; every value is needed")
        return {name: np.asarray(table.column(name)) for name in table.column_names}

    def record_files(self) -> Iterator[Path]:
        """Yield the record files in a stable order."""
        yield from sorted((self.root / "records").glob("*/*/*.json"))


def _check_columns(path: str, file: Any) -> None:
    """Raise DataError unless a Parquet file has columns of the right types and is of a size that can be read."""
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        raise DataError(f"margins file {path} has two columns of one name: {', '.join(names)[:300]}")
    if (size := file.metadata.num_rows * len(names)) > MAX_MARGINS:
        raise DataError(f"margins file {path} has {size} values, at most {MAX_MARGINS} allowed")
    for field in file.schema_arrow:
        wanted = "int32" if field.name == "row" else "float"
        if str(field.type) != wanted:
            kind = {"float": "float32"}.get(wanted, wanted)
            raise DataError(f"margins file {path}: column {field.name!r} is {field.type}; it must be {kind}")


def read_record(path: Path) -> RunRecord:
    """Read and check one record; raises DataError that names the file and every field at fault."""
    try:
        return RunRecord.model_validate_json(read_plain(path.resolve(), MAX_RECORD_BYTES), strict=True)
    except (UnfitFileError, OSError) as why:
        raise DataError(f"{path.name} cannot be read: {why}") from why
    except ValidationError as why:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in why.errors()[:8])
        raise DataError(f"{path.name} is not a whole record ({printable(faults)}). Delete it and run again") from why
