"""What a margins file can make its reader allocate is bounded before it is decoded."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaderboard.parquet_bounds import MAX_FOOTER, check_pages, open_parquet

N = 5000


def written(table=None, **options):
    sink = io.BytesIO()
    table = pa.table({"row": np.arange(N, dtype=np.int32)}) if table is None else table
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def checked(raw):
    file = open_parquet(raw)
    check_pages(raw)
    return file.read()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"compression": "none", "use_dictionary": False},
        {"compression": "snappy", "data_page_version": "2.0"},
        {"row_group_size": 7},
        {"data_page_size": 64, "use_dictionary": False},
        {"write_page_checksum": True, "write_page_index": True, "write_statistics": True},
    ],
)
def test_what_arrow_writes_is_read(options):
    assert checked(written(**options))["row"].to_pylist() == list(range(N))


def test_a_page_that_claims_to_unpack_to_more_than_its_rows_is_not_unpacked():
    raw = bytearray(written(compression="zstd"))
    # After the kind of the page, three bytes tell how much it unpacks to.
    assert raw[4:7] == b"\x15\x04\x15"
    assert raw[7] & raw[8] & 0x80
    raw[7:10] = b"\xfe\xff\x7f"
    with pytest.raises(ValueError, match="unpacks to more than its 5000 rows need"):
        checked(bytes(raw))


def test_a_giant_value_in_a_small_file_is_not_unpacked():
    raw = written(pa.table({"row": ["0" * (3 << 20)]}), compression="zstd", use_dictionary=False)
    assert len(raw) < 64 << 10
    with pytest.raises(ValueError, match="unpacks to more"):
        checked(raw)


def test_a_footer_of_many_megabytes_is_not_parsed():
    table = pa.table({f"c{i}": [1] for i in range(2000)})
    raw = written(table)
    with pytest.raises(ValueError, match=f"at most {MAX_FOOTER}"):
        open_parquet(raw)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compression": "gzip"}, "by codec 2"),
        ({"use_dictionary": False, "column_encoding": "DELTA_BINARY_PACKED"}, "encoding that is not read"),
        ({"compression": "lz4"}, "by codec"),
    ],
)
def test_codecs_and_encodings_that_nobody_needs_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        checked(written(**options))


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"row": [1]}).replace_schema_metadata({"pandas": "{}"}),
        pa.table([pa.array([1])], schema=pa.schema([pa.field("row", pa.int64(), metadata={"pickle": "\x80"})])),
        pa.table({f"c{i}": [1] for i in range(40)}),
        pa.table({"row": [[1]]}),
        pa.table({"row": [{"a": 1}]}),
    ],
)
def test_other_metadata_and_shapes_are_refused(table):
    with pytest.raises(ValueError, match=r"metadata beside|columns, from|nested"):
        checked(written(table))


def test_any_cut_of_a_file_is_refused():
    raw = written(compression="zstd")
    for end in range(0, len(raw), 97):
        with pytest.raises((ValueError, OSError)):
            checked(raw[:end])


def test_a_codec_that_does_not_exist_does_not_end_the_process():
    raw = bytearray(written(compression="zstd", write_statistics=False))
    # Of the column's description: its path, one string, then field 4, the codec (zstd is 6, zigzag 12), as an i32.
    at = raw.rfind(b"\x19\x18\x03row\x15\x0c")
    raw[at + 7] = 0x7D
    with pytest.raises(ValueError, match="by codec -63"):
        open_parquet(bytes(raw))
