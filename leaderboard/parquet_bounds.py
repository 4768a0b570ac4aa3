"""Opening a foreign Parquet file: what it can make a reader allocate is bounded before anything is decoded.

A few kilobytes of Parquet may claim pages of gigabytes, and zstd can fill them; a codec that does not exist ends the
process where pyarrow is asked for its name. The footer says where pages stand, and every page says in its header how
much it unpacks to: both are read here first. Format: parquet.thrift of apache/parquet-format.
"""

# pyarrow has no types.
# pyright: basic

from __future__ import annotations

from typing import Any

from leaderboard.thrift_compact import read_struct

MAX_FOOTER = 256 << 10
MAX_PAGES = 20_000
MAX_COLUMNS = 32
_MAGIC = b"PAR1"
# Plain, dictionary and run lengths are what is written; other encodings would be code that nobody needs here.
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 8: "RLE_DICTIONARY"}
_CODECS = {0: "none", 1: "snappy", 6: "zstd"}
_TYPES = {0: "BOOLEAN", 1: "INT32", 2: "INT64", 4: "FLOAT", 5: "DOUBLE", 6: "BYTE_ARRAY", 7: "FIXED_LEN_BYTE_ARRAY"}
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
# Of each kind of page: the field of its own header, and in it that of its encoding.
_PAGES = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}
_PER_VALUE = 16
_SLACK = 64 << 10
_MAX_PAGE_HEADER = 8 << 10


def most_bytes(rows: int, columns: int) -> int:
    """Return how many bytes a file of so many four-byte values may have, by far."""
    return _PER_VALUE * rows * columns + _SLACK + MAX_FOOTER


def open_parquet(raw: bytes) -> Any:
    """Return a pyarrow ParquetFile whose footer is one that can be read, of flat columns and no foreign metadata.

    Raises ValueError or pyarrow.ArrowException that says why not. Before its columns are read, bound its
    `metadata.num_rows` and call `check_pages`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_footer(_footer(raw))
    file = pq.ParquetFile(
        pa.BufferReader(raw),
        pre_buffer=False,  # it is in memory: threads that fetch it would only be waited for
        thrift_string_size_limit=MAX_FOOTER,
        thrift_container_size_limit=MAX_FOOTER,
    )
    others = [key.decode("utf-8", "replace") for key in (file.schema_arrow.metadata or {})]
    for field in file.schema_arrow:
        keys = (key.decode("utf-8", "replace") for key in (field.metadata or {}) if key != b"PARQUET:field_id")
        others += [f"{field.name}: {key}" for key in sorted(keys)]
    _refuse_metadata(others)
    return file


def check_pages(raw: bytes) -> None:
    """Raise ValueError unless what the pages of a file claim to hold and to unpack to fits its rows."""
    footer = _footer(raw)
    end = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    pages = 0
    for group in footer[4]:
        for chunk in group[1]:
            pages += _check_chunk(raw, chunk[3], group[3], end)
            if pages > MAX_PAGES:
                raise ValueError(f"more than {MAX_PAGES} pages")


def _footer(raw: bytes) -> dict[int, Any]:
    if len(raw) < 12 or raw[:4] != _MAGIC or raw[-4:] != _MAGIC:
        raise ValueError("it does not begin and end as Parquet does")
    length = int.from_bytes(raw[-8:-4], "little")
    if length > min(MAX_FOOTER, len(raw) - 12):
        raise ValueError(f"a footer of {length} bytes, at most {min(MAX_FOOTER, len(raw) - 12)} allowed")
    return read_struct(raw[-8 - length : -8])[0]


def _check_footer(footer: dict[int, Any]) -> None:
    """Raise ValueError unless a footer (FileMetaData) describes flat columns, whole in each of its row groups."""
    try:
        columns = _check_schema(footer[2])
        keys = [pair[1].decode("utf-8", "replace") for pair in footer.get(5, []) if pair[1] != b"ARROW:schema"]
        _refuse_metadata(keys)
        rows = [_whole(group[3]) for group in footer[4]]
        if min([*rows, _whole(footer[3])]) < 0 or sum(rows) != footer[3]:
            raise ValueError(f"{footer[3]} rows, but its row groups have another number of them")
        for group in footer[4]:
            if [(*each[3][3], each[3][1]) for each in group[1]] != columns:
                raise ValueError("a row group does not have each of the columns, in their order")
            for chunk in group[1]:
                _check_description(chunk, group[3])
    except (LookupError, TypeError, AttributeError) as why:
        raise ValueError(f"a footer that lacks what every footer has: {type(why).__name__} {why}") from why


def _check_schema(elements: list[dict[int, Any]]) -> list[tuple[bytes, int]]:
    """Return name and type of each column; raises ValueError for none, for too many, and for nested ones."""
    root, *leaves = elements
    if root.get(5) != len(leaves) or not 1 <= len(leaves) <= MAX_COLUMNS:
        nested = next((e[4] for e in leaves if e.get(5)), b"").decode("utf-8", "replace")
        if nested:
            raise ValueError(f"the column {nested[:80]!r} is nested")
        raise ValueError(f"{len(leaves)} columns, from 1 to {MAX_COLUMNS} allowed")
    for element in leaves:
        name = element[4].decode("utf-8", "replace")[:80]
        if element.get(5) or element[3] not in (0, 1):
            raise ValueError(f"the column {name!r} is nested")
        if element[1] not in _TYPES:
            raise ValueError(f"the column {name!r} is of a type that is not read")
    return [(element[4], element[1]) for element in leaves]


def _check_description(chunk: dict[int, Any], rows: int) -> None:
    """Check the description of a column in a row group (ColumnChunk and the ColumnMetaData in it)."""
    told = chunk[3]
    where = f"column {told[3][0].decode('utf-8', 'replace')[:80]!r}"
    if chunk.get(1):
        raise ValueError(f"{where} stands in another file")
    if told[4] not in _CODECS:
        raise ValueError(f"{where} is compressed by codec {told[4]}; allowed: {', '.join(_CODECS.values())}")
    if not set(told[2]) <= set(_ENCODINGS):
        raise ValueError(f"{where} has an encoding that is not read; allowed: {', '.join(_ENCODINGS.values())}")
    if told[5] != rows:
        raise ValueError(f"{where} has {told[5]} values in a row group of {rows} rows")
    places = [told[6], told[7], told[9], told.get(10, 0), told.get(11, 0)]
    if not all(0 <= _whole(place) < 2**40 for place in places):
        raise ValueError(f"{where} is said to stand outside of the file")


def _check_chunk(raw: bytes, told: dict[int, Any], rows: int, end: int) -> int:
    """Check the pages of a column in a row group and return how many they are."""
    where = f"column {told[3][0].decode('utf-8', 'replace')[:80]!r}"
    at = told[9]
    if 0 < told.get(11, 0) < at:
        at = told[11]
    stop = at + told[7]
    if at < 4 or stop > end:
        raise ValueError(f"{where} is said to stand outside of the file")
    values = unpacked = pages = 0
    while at < stop:
        header, length = read_struct(raw[at : min(stop, at + _MAX_PAGE_HEADER)])
        more, unpacks, packed = _page(header, where)
        pages, values, unpacked, at = pages + 1, values + more, unpacked + unpacks, at + length + packed
        if unpacked > _PER_VALUE * rows + _SLACK or values > rows or pages > MAX_PAGES:
            raise ValueError(f"{where} unpacks to more than its {rows} rows need")
    if at != stop or values != rows:
        raise ValueError(f"the pages of {where} hold {values} values of {rows}, or do not end where they must")
    return pages


def _page(header: dict[int, Any], where: str) -> tuple[int, int, int]:
    """Return how many values a page brings, none for a dictionary, and its size unpacked and packed, in bytes."""
    try:
        kind = header[1]
        part, encoding = _PAGES[kind]
        if header[part][encoding] not in _ENCODINGS:
            raise LookupError
        sizes = [_whole(number) for number in (header[part][1], header[2], header[3])]
    except (LookupError, TypeError) as why:
        raise ValueError(f"a page of {where} is of a kind or encoding that is not read") from why
    if min(sizes) < 0:
        raise ValueError(f"a page of {where} has a size below zero")
    return 0 if kind == _DICTIONARY else sizes[0], sizes[1], sizes[2]


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("no whole number where one must be")
    return value


def _refuse_metadata(keys: list[str]) -> None:
    if keys:
        raise ValueError(f"metadata beside the schema of Arrow, which nobody reads: {', '.join(keys)[:200]}")
