"""Opening a foreign Parquet file: what it can make a reader allocate is bounded before anything is decoded.

A few kilobytes of Parquet may claim pages of gigabytes, and zstd can fill them. The footer says where pages stand, and
every page says in its header how much it unpacks to; both are read here first. Format: parquet.thrift of
apache/parquet-format (PageHeader), in Thrift's compact protocol.
"""

# pyarrow has no types.
# pyright: basic

from __future__ import annotations

from typing import Any

MAX_FOOTER = 256 << 10
MAX_PAGES = 20_000
MAX_COLUMNS = 32
_MAGIC = b"PAR1"
# Plain, dictionary and run lengths are what is written; other encodings would be code that nobody needs here.
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 8: "RLE_DICTIONARY"}
_CODECS = frozenset({"UNCOMPRESSED", "SNAPPY", "ZSTD"})
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PER_VALUE = 16
_SLACK = 64 << 10


def most_bytes(rows: int, columns: int) -> int:
    """Return how many bytes a file of so many four-byte values may have, by far."""
    return _PER_VALUE * rows * columns + _SLACK + MAX_FOOTER


def open_parquet(raw: bytes) -> Any:
    """Return a pyarrow ParquetFile whose reading allocates in proportion to its rows.

    Nothing but flat columns, plain or dictionary encodings and the schema of Arrow as metadata is taken. Raises
    ValueError or pyarrow.ArrowException that says why not; `metadata.num_rows` is for the caller to bound before.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(raw) < 12 or raw[:4] != _MAGIC or raw[-4:] != _MAGIC:
        raise ValueError("it does not begin and end as Parquet does")
    footer = int.from_bytes(raw[-8:-4], "little")
    if footer > min(MAX_FOOTER, len(raw) - 12):
        raise ValueError(f"a footer of {footer} bytes, at most {min(MAX_FOOTER, len(raw) - 12)} allowed")
    limits = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": MAX_FOOTER}
    file = pq.ParquetFile(pa.BufferReader(raw), **limits)
    _check_schema(file)
    return file


def check_pages(raw: bytes, file: Any) -> None:
    """Raise ValueError unless what the pages claim to hold and to unpack to fits the rows of the file."""
    told, rows, pages = file.metadata, 0, 0
    end = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    for number in range(told.num_row_groups):
        group = told.row_group(number)
        if group.num_rows < 0 or group.num_columns != told.num_columns:
            raise ValueError(f"row group {number} has {group.num_rows} rows and {group.num_columns} columns")
        rows += group.num_rows
        if rows > told.num_rows:
            break
        for index in range(told.num_columns):
            pages += _check_chunk(raw, group.column(index), group.num_rows, end)
            if pages > MAX_PAGES:
                raise ValueError(f"more than {MAX_PAGES} pages")
    if rows != told.num_rows:
        raise ValueError(f"{told.num_rows} rows, but its row groups have another number of them")


def _check_schema(file: Any) -> None:
    told, schema = file.metadata, file.schema
    if not 1 <= told.num_columns <= MAX_COLUMNS:
        raise ValueError(f"{told.num_columns} columns, from 1 to {MAX_COLUMNS} allowed")
    others = sorted(key.decode("utf-8", "replace") for key in (told.metadata or {}) if key != b"ARROW:schema")
    others += sorted(key.decode("utf-8", "replace") for key in (file.schema_arrow.metadata or {}))
    for field in file.schema_arrow:
        keys = (key.decode("utf-8", "replace") for key in (field.metadata or {}) if key != b"PARQUET:field_id")
        others += [f"{field.name}: {key}" for key in sorted(keys)]
    if others:
        raise ValueError(f"metadata beside the schema of Arrow, which nobody reads: {', '.join(others)[:200]}")
    for index in range(told.num_columns):
        column = schema.column(index)
        if column.max_repetition_level or column.max_definition_level > 1 or column.path != column.name:
            raise ValueError(f"the column {column.path!r} is nested")
        if column.physical_type not in ("INT32", "INT64", "FLOAT", "DOUBLE", "BYTE_ARRAY"):
            raise ValueError(f"the column {column.path!r} is of {column.physical_type}")


def _check_chunk(raw: bytes, chunk: Any, rows: int, end: int) -> int:
    """Check the pages of a column in a row group and return how many they are."""
    where = f"column {chunk.path_in_schema!r}"
    if chunk.file_path:
        raise ValueError(f"{where} stands in another file, {chunk.file_path[:80]!r}")
    if chunk.compression not in _CODECS:
        raise ValueError(f"{where} is compressed by {chunk.compression}; allowed: {', '.join(sorted(_CODECS))}")
    if chunk.num_values != rows:
        raise ValueError(f"{where} has {chunk.num_values} values in a row group of {rows} rows")
    start, length = chunk.data_page_offset, chunk.total_compressed_size
    if chunk.dictionary_page_offset and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    if start < 4 or length < 0 or start + length > end:
        raise ValueError(f"{where} is said to stand outside of the file")
    values = unpacked = pages = 0
    at, stop = start, start + length
    while at < stop:
        header, at = _page_header(raw[at : min(stop, at + _SLACK)], at)
        pages += 1
        unpacked += header.get((2,), 0)
        at += header.get((3,), 0)
        values += _page_values(header, where)
        if unpacked > _PER_VALUE * rows + _SLACK or values > rows or pages > MAX_PAGES:
            raise ValueError(f"{where} unpacks to more than its {rows} rows need")
    if at != stop or values != rows:
        raise ValueError(f"the pages of {where} hold {values} values of {rows}, or do not end where they must")
    return pages


def _page_values(header: dict[tuple[int, ...], int], where: str) -> int:
    """Return how many values a page brings, zero for a dictionary; raises ValueError for what it must not be."""
    kind = header.get((1,))
    part, encoding = {_DATA: ((5, 1), (5, 2)), _DATA_V2: ((8, 1), (8, 4)), _DICTIONARY: ((7, 1), (7, 2))}.get(
        -1 if kind is None else kind, (None, None)
    )
    if part is None or encoding is None or part not in header or header.get(encoding) not in _ENCODINGS:
        raise ValueError(f"a page of {where} is of a kind or encoding that is not read")
    if min(header[part], header.get((2,), -1), header.get((3,), -1)) < 0:
        raise ValueError(f"a page of {where} has a size below zero, or none")
    return 0 if kind == _DICTIONARY else header[part]


def _page_header(raw: bytes, at: int) -> tuple[dict[tuple[int, ...], int], int]:
    """Return the whole numbers of a Thrift struct by field path, and where it ends; raises ValueError."""
    reader = _Thrift(raw)
    try:
        reader.struct(())
    except IndexError as why:
        raise ValueError(f"a page header at byte {at} does not end") from why
    return reader.numbers, at + reader.at


class _Thrift:
    """Thrift's compact protocol, as far as page headers need it: whole numbers are kept, all else is passed over."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0
        self.numbers: dict[tuple[int, ...], int] = {}

    def struct(self, path: tuple[int, ...]) -> None:
        if len(path) > 4:
            raise ValueError("a page header is nested too deeply")
        name = 0
        while (head := self._byte()) != 0:
            name = name + (head >> 4) if head >> 4 else self._zigzag()
            if (*path, name) in self.numbers:
                raise ValueError("a page header has a field twice")
            self._value(head & 15, (*path, name))

    def _value(self, kind: int, path: tuple[int, ...]) -> None:
        if kind in (4, 5, 6):
            self.numbers[path] = self._zigzag()
        elif kind == 3:
            self._byte()
        elif kind == 7:
            self._skip(8)
        elif kind == 8:
            self._skip(self._varint())
        elif kind == 12:
            self.struct(path)
        elif kind not in (1, 2):
            raise ValueError("a page header holds what no page header has")

    def _byte(self) -> int:
        self.at += 1
        return self.raw[self.at - 1]

    def _skip(self, n: int) -> None:
        self.at += n
        if self.at > len(self.raw):
            raise IndexError

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            if (shift := shift + 7) > 63:
                raise ValueError("a page header has a number of too many bytes")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
