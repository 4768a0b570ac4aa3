"""Mutations that know what they change: of JSON text, and of margins in Parquet files."""

import copy
import hashlib
import io
import json
import random
import struct
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.records import canonical_sha256

TOKEN = "@@RAW@@"
RAW = (
    *("1e999", "-1e999", "1" + "0" * 5000, "1" + "0" * 400, "NaN", "Infinity", "-Infinity", "-0", "1.0", "1e0", "0x10"),
    *("01", "+1", "1_000", "true", "null", "[]", "{}", '"\\ud800"', '"\\u0000"', "'a'", "[" * 300 + "]" * 300, "//"),
    *('{"a":1,"a":2}', "9007199254740993", "18446744073709551616", "0.1e-400", "1.0000000000000000001", '"\x00"'),
)
VALUES = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        5,
        14,
        15,
        1.0,
        0.5,
        -0.0,
        1e308,
        2**53,
        2**53 + 1,
        2**64,
        "",
        "a",
        "A",
        "all",
    ),
    *(
        "..",
        "../x",
        "/etc/passwd",
        "C:\\x",
        "a\\b",
        "a\x00b",
        "a\n",
        "\x1b[31m",
        "\ufeff",
        "é",
        "\u202e",
        "ok",
        "failed",
    ),
    *("skipped", "hetpref", "Hetpref", "het-pref", "hetpref ", "random", "pooled-bt", "oracle", "user_shuffle", "zipf"),
    *("seen", "unseen", "known-prompts", "margin", "row", "wrong_user", "2026.1", "2026.1 ", "hub:a/b", "hub:a/b\n"),
    *("tabular@1", "x" * 5000, [], {}, [[]], {"a": {"b": 1}}, {"wrong_user": "margin"}, {"wrong_user": "row"}),
    *("0" * 64, "f" * 64, "made@1+users=3", "planted@1+users=9999999999", "planted@1", "Made@1", "made@01", "made@1\n"),
)


def leaves(told, path=()):
    """Yield the path of every value, of objects and lists too."""
    for key, value in told.items() if isinstance(told, dict) else enumerate(told):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def parent(told, path):
    for key in path[:-1]:
        told = told[key]
    return told


def mutate_told(rng, told, others=()):
    """Change one to three values of a JSON object in place; returns the text, with raw tokens where they were put."""
    raw = None
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = list(leaves(told))
        if not paths:
            break
        path = rng.choice(paths)
        at, key, kind = parent(told, path), path[-1], rng.randrange(9)
        if kind == 0:
            del at[key]
        elif kind == 1 and isinstance(at, dict):
            at[rng.choice(("score", "x", "", "__class__", "Key", f"{key} ", f"{key}".upper()))] = rng.choice(VALUES)
        elif kind == 2:
            at[key], raw = TOKEN, rng.choice(RAW)
        elif kind == 3 and others:
            other = rng.choice(others)
            if path in list(leaves(other)):
                at[key] = copy.deepcopy(parent(other, path)[key])
        elif kind == 4 and isinstance(at[key], str) and at[key]:
            at[key] = _bent(rng, at[key])
        elif kind == 5 and isinstance(at[key], int | float) and not isinstance(at[key], bool):
            at[key] = rng.choice(
                (at[key] + 1, at[key] - 1, float(at[key]), -at[key], at[key] * 1e6, bool(at[key]), str(at[key]))
            )
        elif kind == 6 and isinstance(at, dict):
            at[f"{key}".swapcase()] = at.pop(key)
        else:
            at[key] = copy.deepcopy(rng.choice(VALUES))
    text = json.dumps(told, ensure_ascii=rng.random() < 0.5)
    return text if raw is None else text.replace(f'"{TOKEN}"', raw, 1)


def _bent(rng, text):
    at = rng.randrange(len(text))
    ways = (text.swapcase(), text + " ", " " + text, text + "\n", text[:at] + text[at + 1 :], text + text, text[::-1])
    return rng.choice((*ways, text[:at] + rng.choice("aZ09.-_/\\\x00é@+") + text[at + 1 :]))


def twice(rng, text):
    """Give one key of a JSON text a second time, before or after, with another value or the same."""
    told = json.loads(text)
    path = rng.choice([p for p in leaves(told) if isinstance(parent(told, p), dict)])
    at, key = parent(told, path), path[-1]
    at[key], value = TOKEN, at[key]
    other = rng.choice((value, *VALUES))
    pair = [json.dumps(value), json.dumps(other)]
    rng.shuffle(pair)
    return json.dumps(told).replace(f'"{TOKEN}"', f"{pair[0]}, {json.dumps(key)}: {pair[1]}", 1)


def mutate_bytes(rng, raw):
    """Flip, cut, repeat or insert bytes anywhere."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(out)) if out else 0
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.choice((1, 2, 8, 100))]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice((1, 8, 64))]
        elif kind == 4 and out:
            out[at] = rng.choice((0, 1, 127, 128, 255))
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def mutate_json(rng, raw, others=()):
    """Return the bytes of a JSON text that was changed as a value, as a text or as bytes."""
    kind = rng.randrange(12)
    if kind < 7:
        return mutate_told(rng, json.loads(raw), others).encode("utf-8", "surrogatepass")
    if kind == 7:
        return twice(rng, raw).encode()
    if kind == 8:
        text = raw.decode()
        put = (
            text.encode("utf-16"),
            b"\xef\xbb\xbf" + raw,
            raw + raw,
            raw + b"\x00",
            b" " + raw,
            raw + b"}",
            b"[" + raw + b"]",
        )
        return rng.choice(
            (*put, raw.replace(b'"', b"'"), raw.replace(b":", b"=", 1), raw + b" \n\t", text.encode("utf-32"))
        )
    if kind == 9:
        return rng.choice(
            (b"", b"{}", b"[]", b"null", b"1", b'""', b"[" * 100_000, b'{"a":' * 50_000, rng.randbytes(300))
        )
    return mutate_bytes(rng, raw)


def config(rng, raw):
    """Give a record another configuration with the hash of it, or of one that only equals it."""
    told = json.loads(raw)
    value = rng.choice((1, 1.0, True, 0, -0.0, False, 2**64, "1", None, [1], {"b": 1.0}, 1e16, 10**16))
    equal = rng.choice((value, 1, 1.0, True, 0, "1", 10**16))
    told["method"] |= {"config": {"rank": value}, "config_sha256": canonical_sha256({"rank": equal})}
    return json.dumps(told).encode()


def signed(files, name, raw, where):
    """Put other margins into files by name, and their digest into the record that names them."""
    told = json.loads(files[name])
    ref = told["margins"] if where == "margins" else told["margins"]["validation"]
    ref["sha256"] = hashlib.sha256(raw).hexdigest()
    return {**files, ref["path"]: raw, name: json.dumps(told).encode()}


def written(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def mutate_margins(rng, raw, others):
    """Return another file of margins: other rows, numbers, columns, types, metadata, encodings, or damaged bytes."""
    if rng.random() < 0.3:
        return _damaged(rng, raw, others)
    table = pq.read_table(io.BytesIO(raw))
    columns = {name: np.asarray(table[name]).copy() for name in table.column_names}
    kind, some = rng.randrange(16), rng.choice(list(columns))
    n, options = len(table), {}
    if kind == 0:
        order = np.random.default_rng(rng.randrange(99)).permutation(n)
        columns = {k: v[order] for k, v in columns.items()}
    elif kind == 1:
        rows = columns["row"]
        rows[rng.randrange(n)] = rng.choice((rows[0], -1, 2**31 - 1, rows[-1] + 1, rng.randrange(400)))
    elif kind == 2:
        keep = rng.choice((slice(1, None), slice(0, 0), slice(None, -1), [*range(n), 0]))
        columns = {k: v[keep] for k, v in columns.items()}
    elif kind == 3:
        name = rng.choice([c for c in columns if c != "row"])
        columns[name][rng.randrange(n)] = rng.choice((np.nan, np.inf, -np.inf, 3e38, 0, -0.0))
    elif kind == 4:
        columns[some] = columns[some].astype(
            rng.choice(("float64", "int64", "float16", "uint32", "int16", "str", "bool"))
        )
    elif kind == 5:
        columns[rng.choice(("extra", "Margin", "row ", "", "__index_level_0__", "label"))] = columns[some]
    elif kind == 6:
        columns[rng.choice((some.upper(), some + " ", "x"))] = columns.pop(some)
    elif kind == 7:
        del columns[some]
    made = (
        pa.table(columns)
        if kind != 8
        else table.set_column(
            table.column_names.index(some), some, pa.array([None, *table[some].to_pylist()[1:]], table[some].type)
        )
    )
    if kind == 9:
        made = pa.Table.from_arrays([*table.columns, table[some]], names=[*table.column_names, some])
    elif kind == 10:
        made = table.replace_schema_metadata(rng.choice(({"pandas": "{}"}, {"k": "\x80\x04."}, {"ARROW:schema": "x"})))
    elif kind == 11:
        at = table.schema.get_field_index(some)
        meta = rng.choice(({"k": "v"}, {"ARROW:extension:name": "arrow.py_extension_type"}, {"PARQUET:field_id": "7"}))
        made = table.cast(table.schema.set(at, table.schema.field(some).with_metadata(meta)))
    elif kind == 12:
        options = rng.choice(
            (
                {"compression": "gzip"},
                {"compression": "brotli"},
                {"compression": "none"},
                {"compression": "snappy"},
                {"data_page_version": "2.0"},
                {"use_dictionary": False},
                {"row_group_size": 3},
                {"version": "1.0"},
                {"use_dictionary": False, "column_encoding": dict.fromkeys(columns, "BYTE_STREAM_SPLIT")},
                {"use_dictionary": False, "column_encoding": {"row": "DELTA_BINARY_PACKED"}},
                {"store_schema": False},
                {"data_page_size": 1},
                {"write_page_index": True},
                {"write_page_checksum": True},
                {"compression": "lz4"},
            )
        )
    elif kind == 13:
        nested = rng.choice((pa.array([[1.0]] * n), pa.array([{"a": 1.0}] * n), table[some].dictionary_encode()))
        made = table.set_column(table.column_names.index(some), some, nested)
    elif kind == 14:
        return rng.choice(others)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return written(made, **options)


def _damaged(rng, raw, others):
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(
            (b"", b"PAR1", b"PAR1" * 3, b"PAR1" + b"\xff" * 40 + b"PAR1", b"\x80\x04.", b"PK\x03\x04", b"row,margin\n")
        )
    footer = int.from_bytes(raw[-8:-4], "little")
    start = len(raw) - 8 - footer
    out = bytearray(raw)
    if kind == 1:
        out[-8:-4] = struct.pack("<I", rng.choice((0, 1, footer - 1, footer + 1, len(raw), 2**31, 2**32 - 1)))
    elif kind == 2:
        for _ in range(rng.choice((1, 2, 5))):
            out[rng.randrange(start, len(raw) - 8)] ^= 1 << rng.randrange(8)
    elif kind == 3:
        # The first page header: its sizes are varints a few bytes in.
        out[rng.randrange(4, 24)] = rng.choice((0, 1, 0x15, 0x80, 0xFF, 0x7F, 0xFE))
    elif kind == 4:
        out[6:6] = b"\xff" * rng.randrange(1, 9)
    else:
        return mutate_bytes(rng, raw)
    return bytes(out)


def generator(seed, number):
    """Return the generator of one input: any of them can be made again alone."""
    return random.Random(f"{seed}/{number}")
