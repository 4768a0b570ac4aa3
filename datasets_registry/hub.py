"""The source `hub`: one split of a dataset of the Hugging Face hub, at a pinned revision, as an arrow table.

Looked for in the folders of `HETPREF_MIRROR` first, then in the hub client's own cache (`HF_HOME`), which other tools
share, then on the hub itself; `HF_ENDPOINT` and `HF_HUB_OFFLINE` are honoured by the client. The client is asked for
exactly the revision, and never answers with another one that happens to be cached. The hub converts its datasets to
parquet under the revision `refs/convert/parquet`, laid out as `<config>/<split>/0000.parquet`; a dataset that has this
layout at a commit can be pinned by the commit, and so can any other, by naming the files of each split.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_registry.errors import DataError, RequestError
from datasets_registry.receipts import note
from datasets_registry.sources import UnreachableError, mirror_folders

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = "refs/convert/parquet"
# One JSON line must fit in a block; a post with its summaries takes some kilobytes.
JSON_BLOCK = 1 << 24
# How much of a JSON file is looked at to learn the types of its columns.
JSON_HEAD = 1 << 22
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubSource:
    """What a loader reads from the hub, and what is checked before it is used.

    `columns` are the leaves of the schema that the loader needs, with dots for nesting; lists are passed through, so
    that `summaries.text` is the text of each of a row's summaries. `rows` is the number of rows of each split on the
    hub, checked where the table comes from there; a mirror may hold a part of it. `files` names, for a split, its files
    at the revision (parquet, or JSON lines, which may be gzipped), where they are not laid out as the hub converts.
    """

    repository: str
    config: str
    revision: str
    columns: tuple[str, ...]
    rows: Mapping[str, int] = field(default_factory=dict[str, int])
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def pin(self) -> str:
        """Return the sha256 of what is checked: repository, config, revision, columns, rows per split, files.

        It stands on the card, as the hub's client checks files against the revision and not against a sha256 of ours.
        """
        told: list[Any] = [self.repository, self.config, self.revision, sorted(self.columns), dict(self.rows)]
        if self.files:
            told.append({split: list(files) for split, files in self.files.items()})
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def hub_table(source: HubSource, split: str) -> pa.Table:
    """Return one split as an arrow table with the top-level columns that hold `source.columns`, rows in hub order.

    A mirror holds it as `<owner>/<repository>/<revision>/<config>/<split>.parquet`, as `<split>.jsonl`, or as the hub
    does: `<split>/*.parquet`, or the files of `source.files` under `<owner>/<repository>/<revision>`. Raises DataError
    naming the columns found and expected, or the rows; UnreachableError where the table is neither mirrored nor cached
    and cannot be downloaded; RequestError without the hub's client.
    """
    import pyarrow as pa

    files = _mirrored(source, split)
    mirrored = bool(files)
    if not mirrored:
        files = _downloaded(source, split)
    table = pa.concat_tables([_read(source, split, file) for file in files], promote_options="default")
    expected = source.rows.get(split)
    if not mirrored and expected is not None and table.num_rows != expected:
        raise DataError(
            f"{_named(source, split)} has {table.num_rows:,} rows on the hub, expected {expected:,}: its content has "
            "changed, or the download is a part of it. Numbers would not be comparable; the loader must be looked at, "
            "under a new version of the dataset"
        )
    return table


def _mirrored(source: HubSource, split: str) -> list[Path]:
    """Return the files of the first folder of HETPREF_MIRROR that holds the split, or none."""
    for folder in mirror_folders():
        place = folder / _place(source)
        named = [place.parent / file for file in source.files.get(split, ())]
        shards = sorted((place / split).glob("*.parquet"))
        for files in ([place / f"{split}.parquet"], [place / f"{split}.jsonl"], shards, named):
            if files and all(file.is_file() for file in files):
                note(((file.relative_to(folder).as_posix(), file) for file in files), "mirror")
                return files
    return []


def _downloaded(source: HubSource, split: str) -> list[Path]:
    """Return the split's files in the hub client's cache, downloaded where they are not there."""
    place = (_place(source) / split).as_posix()
    mirror = f"set HETPREF_MIRROR to a folder that holds it as <folder>/{place}.parquet (or .jsonl)"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as why:
        raise RequestError(
            f"{source.repository} comes from the Hugging Face hub, and huggingface_hub is not installed: "
            f"pip install 'hetpref[hub]', or {mirror}"
        ) from why
    wanted = list(source.files.get(split, ())) or [f"{source.config}/{split}/*.parquet"]

    def found(folder: str) -> list[Path]:
        files = [sorted(Path(folder).glob(each)) for each in wanted]
        return [file for each in files for file in each] if all(files) else []

    def get(*, cached: bool) -> list[Path]:
        options: dict[str, Any] = {"revision": source.revision, "allow_patterns": wanted, "local_files_only": cached}
        return found(snapshot_download(source.repository, repo_type="dataset", **options))

    # The client raises OSError, ValueError and its HTTP library's own errors, which have no base class of their own.
    try:
        before = get(cached=True)
    except Exception:
        before = []
    # Files that are named, at a commit, cannot be others on the hub: it need not be asked.
    fixed = bool(before and source.files and _COMMIT.fullmatch(source.revision))
    try:
        files = before if fixed else get(cached=False)
    except Exception as why:
        told = f"{type(why).__name__}: {str(why).partition(chr(10))[0]:.200}"
        raise UnreachableError(
            f"cannot get {_named(source, split)} from the hub ({told}), and it is neither cached nor mirrored. Run "
            f"once with internet access and HF_HUB_OFFLINE unset (HF_ENDPOINT names another hub), or {mirror}"
        ) from why
    if not files:
        raise UnreachableError(
            f"{_named(source, split)} is not to be had: there is no {' or '.join(wanted)} in what the hub, or the "
            f"cache without it, has of this revision. Run once with internet access, or {mirror}"
        )
    snapshot = Path(*files[0].parts[: files[0].parts.index("snapshots") + 2])
    names = [f"{source.repository}/{file.relative_to(snapshot).as_posix()}" for file in files]
    note(zip(names, files, strict=True), "cache" if files == before else "download")
    return files


def _read(source: HubSource, split: str, file: Path) -> pa.Table:
    """Return the needed columns of one file; raises DataError for a damaged file and for columns that are not there."""
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".jsonl" and not source.files:
            table = pj.read_json(file, read_options=pj.ReadOptions(block_size=JSON_BLOCK))
            _check_columns(source, split, table.schema)
            return table.select(_tops(source))
        if file.suffix != ".parquet":
            return _read_json(source, split, file)
        with pq.ParquetFile(file) as opened:
            _check_columns(source, split, opened.schema_arrow)
            return opened.read(columns=_tops(source))
    except (pa.ArrowInvalid, OSError) as why:
        told = str(why).partition("\n")[0]
        raise DataError(
            f"{file} ({_named(source, split)}) cannot be read ({told:.200}); it is damaged, or no such file: remove "
            "it, and it is downloaded anew, or put the right one in its place"
        ) from why


def _read_json(source: HubSource, split: str, file: Path) -> pa.Table:
    """Return the needed leaves of JSON lines: what else stands in a file may change its type from line to line."""
    import pyarrow as pa
    import pyarrow.json as pj

    options = pj.ReadOptions(block_size=JSON_BLOCK)
    with pa.input_stream(str(file), compression="detect") as opened:
        head = opened.read(JSON_HEAD)
    if b"\n" in head:
        head = head[: head.rindex(b"\n") + 1]
    known = pj.read_json(io.BytesIO(head), read_options=options).schema
    _check_columns(source, split, known)
    wanted = [pa.field(f.name, kind) for f in known if (kind := _needed(source, f.name, f.type)) is not None]
    parse = pj.ParseOptions(explicit_schema=pa.schema(wanted), unexpected_field_behavior="ignore")
    with pa.input_stream(str(file), compression="detect") as opened:
        return pj.read_json(opened, read_options=options, parse_options=parse)


def _needed(source: HubSource, name: str, kind: Any) -> Any:
    """Return a type with the leaves that the source reads only, None where it reads none; numbers are floats.

    A column of whole numbers at the head of a file may hold others further on.
    """
    import pyarrow as pa

    if pa.types.is_struct(kind):
        children = [(child.name, _needed(source, f"{name}.{child.name}", child.type)) for child in kind]
        kept = [(label, each) for label, each in children if each is not None]
        return pa.struct(kept) if kept else None
    if pa.types.is_list(kind):
        inner = _needed(source, name, kind.value_type)
        return None if inner is None else pa.list_(inner)
    if name not in source.columns:
        return None
    if pa.types.is_integer(kind):
        return pa.float64()
    return pa.string() if pa.types.is_null(kind) else kind


def _check_columns(source: HubSource, split: str, schema: pa.Schema) -> None:
    found = [leaf for column in schema for leaf in _leaves(column.name, column.type)]
    if missing := [name for name in source.columns if name not in found]:
        raise DataError(
            f"{_named(source, split)} has not the columns that its loader reads: {', '.join(missing)} missing. Found: "
            f"{', '.join(found)}. Expected: {', '.join(source.columns)}"
        )


def _leaves(name: str, kind: Any) -> Iterator[str]:
    """Yield the dotted names of a column's leaves; a list has the name of its elements."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(f"{name}.{child.name}", child.type)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(name, kind.value_type)
    else:
        yield name


def _tops(source: HubSource) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in source.columns))


def _place(source: HubSource) -> Path:
    return Path(*source.repository.split("/"), *source.revision.split("/"), source.config)


def _named(source: HubSource, split: str) -> str:
    return f"{source.repository} {source.config}/{split} at {source.revision}"
