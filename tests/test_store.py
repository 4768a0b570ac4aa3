"""Margins files hold row numbers and margins, none missing; anything else is said with the file and the column."""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_registry.errors import DataError
from leaderboard.records import FileRef
from leaderboard.store import ResultsFolder

ROW = pa.array([0, 1, 2], pa.int32())
MARGIN = pa.array([0.5, -1.0, 2.0], pa.float32())


def written(root, table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    (root / "m.parquet").write_bytes(sink.getvalue())
    return FileRef(path="m.parquet", sha256=hashlib.sha256(sink.getvalue()).hexdigest())


def test_what_a_run_writes_is_read_back(tmp_path):
    folder = ResultsFolder(tmp_path)
    columns = {"row": np.arange(3, dtype=np.int32), "margin": np.array([1, -1, 0.5], np.float32)}
    read = folder.read_margins(folder.write_margins("m.parquet", columns))
    assert {k: v.dtype for k, v in read.items()} == {k: v.dtype for k, v in columns.items()}
    np.testing.assert_array_equal(read["margin"], columns["margin"])


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"row": ROW, "margin": pa.array(["a", "b", "c"])}, "margin"),
        ({"row": ROW, "margin": pa.array([None, None, None], pa.float32())}, "margin"),
        ({"row": ROW, "margin": pa.array([None, None, None])}, "margin"),
        ({"row": ROW, "margin": pa.array([0.5, None, 1.0], pa.float32())}, "margin"),
        ({"row": ROW, "margin": pa.array([1, 2, 3], pa.int64())}, "margin"),
        ({"row": pa.array([0, None, 2], pa.int32()), "margin": MARGIN}, "row"),
        ({"row": pa.array(["0", "1", "2"]), "margin": MARGIN}, "row"),
        ({"row": pa.array([0.0, 1.0, 2.0]), "margin": MARGIN}, "row"),
        ({"row": ROW, "margin": MARGIN, "wrong_user": pa.array([[1.0], [2.0], [3.0]])}, "wrong_user"),
    ],
)
def test_columns_of_other_types_and_nulls_name_file_and_column(tmp_path, columns, named):
    ref = written(tmp_path, pa.table(columns))
    with pytest.raises(DataError, match=rf"m\.parquet.*'{named}'"):
        ResultsFolder(tmp_path).read_margins(ref)


def test_two_columns_of_one_name_are_refused(tmp_path):
    ref = written(tmp_path, pa.Table.from_arrays([ROW, MARGIN, MARGIN], names=["row", "margin", "margin"]))
    with pytest.raises(DataError, match=r"m\.parquet"):
        ResultsFolder(tmp_path).read_margins(ref)


def test_a_small_file_of_very_many_rows_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("leaderboard.store.MAX_MARGINS", 1000)
    many = pa.table({"row": pa.array(np.zeros(1000, np.int32)), "margin": pa.array(np.zeros(1000, np.float32))})
    with pytest.raises(DataError, match="2000 values, at most 1000"):
        ResultsFolder(tmp_path).read_margins(written(tmp_path, many))


@pytest.mark.parametrize("raw", [b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_what_is_no_parquet_is_said(tmp_path, raw):
    (tmp_path / "m.parquet").write_bytes(raw)
    with pytest.raises(DataError, match=r"m\.parquet"):
        ResultsFolder(tmp_path).read_margins(FileRef(path="m.parquet", sha256=hashlib.sha256(raw).hexdigest()))
