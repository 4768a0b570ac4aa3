"""Properties of `verify`: total over anything, refuses any one forgery by its field, accepts what is free."""

import copy
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from fuzz.bundle_mutations import resigned, zipped
from fuzz.fuzz_verify import fuzz
from fuzz.judge import MANIFEST_FIELDS
from fuzz.mutations import leaves, parent, signed, written
from fuzz.originals import originals
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from leaderboard.records import canonical_sha256
from leaderboard.strict_json import parse
from leaderboard.verify import UNFORESEEN, verify

# The same examples each time, so that a gate is a gate; fuzz_verify.py is for new ones.
quick = settings(
    max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Where a forged field is named by another one that it is bound to.
NAMED_BY = {
    "split.fold": {"seed"},
    "split.draw": {"split.draw"},
    "split.regime": {"key", "split.n_support"},
    "fit_key": {"key"},
    "key": {"key", "path"},
    "method.name": {"path"},
    "dataset.name": {"path"},
    "method.config": {"method.config_sha256"},
    "margins": {"margins"},
    "status": {"margins", "reason"},
}
FREE = ("cost", "environment", "source", "reason", "method.", "dataset.encoder", "dataset.licence", "counts.truncated")
PARTS = ("method", "dataset", "split", "counts", "margins", "cost", "environment", "source", "")
BOUND = ("method.name", "method.config", "method.role", "method.config_sha256")
WHOLE = st.characters(exclude_categories=["Cs"])
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(WHOLE, max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(WHOLE, max_size=8), inner, max_size=3),
    max_leaves=6,
)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FAULTS = ("not finite", "other row", "row twice", "fewer", "type", "extra", "lacking", "renamed", "null")
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=50)


def as_json(value):
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return originals(tmp_path_factory.mktemp("properties"))


@pytest.fixture
def alone(made, tmp_path):
    """Give a function that verifies one record of a results folder after some of its files were replaced."""
    shutil.copytree(made.bench.root, tmp_path / "r")

    def verified(name, files):
        for each, raw in files.items():
            if raw is not made.files.get(each):
                (tmp_path / "r" / each).write_bytes(raw)
        reasons = verify(tmp_path / "r" / name, made.labels)
        for each in files:
            if each in made.files:
                (tmp_path / "r" / each).write_bytes(made.files[each])
        assert UNFORESEEN not in {r.required for r in reasons}
        return {r.field for r in reasons}

    return verified


def is_bound(path):
    dotted = ".".join(map(str, path))
    free = dotted.startswith(FREE) and not dotted.startswith(BOUND)
    # A single record may be of another seed on its fold, or of the control; its validation may be left out.
    return not free and dotted not in ("seed", "control", "split.imbalance", "margins.validation")


@quick
@given(
    value=ANY | st.sampled_from(["seen", "unseen", "failed", "made@1", 1.0, True, "0" * 64]),
    which=st.integers(0, 5),
    where=st.integers(0, 1000),
)
def test_a_record_with_one_forged_field_is_refused_by_its_name(made, alone, value, which, where):
    name = made.records[which]
    told = json.loads(made.files[name])
    paths = [p for p in leaves(told) if is_bound(p)]
    path = paths[where % len(paths)]
    at, dotted = parent(told, path), ".".join(map(str, path))
    assume(json.dumps(at[path[-1]]) != json.dumps(value))
    assume(dotted != "split.n_train" and not (dotted.endswith("_mean") and value == at[path[-1]]))
    at[path[-1]] = value
    found = alone(name, {name: json.dumps(told).encode()})
    named = {*NAMED_BY.get(dotted, ()), dotted}
    assert any(f in named or f.startswith((f"{dotted}.", *(f"{n}." for n in named))) for f in found), (dotted, found)


@quick
@given(which=st.integers(0, 5), where=st.integers(0, 1000))
def test_a_record_without_one_of_its_bound_fields_is_refused(made, alone, which, where):
    name = made.records[which]
    told = json.loads(made.files[name])
    lacking = {("schema_version",), ("kind",), ("margins", "control", "wrong_user")}
    bound = [p for p in leaves(told) if is_bound(p) and p not in lacking and parent(told, p)[p[-1]] is not None]
    path = bound[where % len(bound)]
    del parent(told, path)[path[-1]]
    dotted = ".".join(map(str, path))
    assert any(f == dotted or f.startswith(f"{dotted}.") for f in alone(name, {name: json.dumps(told).encode()}))


@quick
@given(key=st.text(WHOLE, min_size=1, max_size=12), part=st.sampled_from(PARTS), value=ANY)
def test_an_unknown_field_anywhere_is_refused_by_its_name(made, alone, key, part, value):
    told = json.loads(made.files[made.records[0]])
    target = told[part] if part else told
    assume(key not in target)
    target[key] = value
    found = alone(made.records[0], {made.records[0]: json.dumps(told).encode()})
    assert found
    assert not key.isalnum() or f"{part}.{key}".removeprefix(".") in found


@quick
@given(
    fit_s=st.floats(0, 1e300) | st.none(),
    threads=st.integers(0, 2**53),
    texts=st.tuples(TEXT, TEXT, TEXT),
    config=st.dictionaries(
        TEXT, st.integers(-(2**63), 2**63) | st.floats(-1e9, 1e9) | TEXT | st.booleans(), max_size=3
    ),
)
def test_a_record_whose_free_fields_are_others_is_accepted(made, alone, fit_s, threads, texts, config):
    name = made.records[0]
    told = json.loads(made.files[name])
    told["cost"]["fit_s"], told["environment"]["threads"] = fit_s, threads
    told["method"]["version"], told["dataset"]["licence"], told["environment"]["device"] = texts
    told["method"] |= {"config": config, "config_sha256": canonical_sha256(config)}
    assert alone(name, {name: json.dumps(told).encode()}) == set()


@quick
@given(values=st.lists(FINITE, min_size=1, max_size=9), seed=st.integers(0, 99))
def test_margins_of_any_finite_numbers_in_any_order_are_accepted(made, alone, values, seed):
    name, columns = a_table(made)
    order = np.random.default_rng(seed).permutation(len(columns["row"]))
    columns["margin"] = np.resize(np.array(values, np.float32), len(order))
    raw = written(pa.table({k: v[order] for k, v in columns.items()}))
    assert alone(name, signed(made.files, name, raw, "margins")) == set()


@quick
@given(
    kind=st.sampled_from(FAULTS),
    column=st.sampled_from(["row", "margin", "wrong_user"]),
    at=st.integers(0, 1000),
    other=st.integers(-(2**31), 2**31 - 1),
    infinite=st.sampled_from([np.nan, np.inf, -np.inf]),
    dtype=st.sampled_from(["float64", "int64", "uint32", "str"]),
    extra=st.sampled_from(["Row", "margin ", "label", "__index_level_0__"]),
)
def test_margins_with_one_fault_are_refused_by_their_column(
    made, alone, kind, column, at, other, infinite, dtype, extra
):
    name, columns = a_table(made)
    n, field = len(columns["row"]), "margins.columns"
    at %= n
    if kind == "not finite":
        column = "margin" if column == "row" else column
        columns[column][at], field = infinite, f"margins.{column}"
    elif kind == "other row":
        assume(other not in set(columns["row"].tolist()))
        columns["row"][at], field = other, "margins.rows"
    elif kind == "row twice":
        columns["row"][at], field = columns["row"][at - 1], "margins.rows"
    elif kind == "fewer":
        columns, field = {k: np.delete(v, at) for k, v in columns.items()}, "margins.rows"
    elif kind == "type":
        columns[column] = columns[column].astype(dtype)
    elif kind == "extra":
        columns[extra] = columns[column]
    elif kind == "lacking":
        del columns[column]
    elif kind == "renamed":
        columns[column.title()] = columns.pop(column)
    else:
        columns[column], field = pa.array(columns[column], mask=np.arange(n) == at), f"margins.{column}"
    raw = written(pa.table(columns))
    assert field in alone(name, signed(made.files, name, raw, "margins"))


def a_table(made):
    name = made.records[0]
    ref = json.loads(made.files[name])["margins"]["path"]
    table = pa.parquet.read_table(pa.BufferReader(made.files[ref]))
    return name, {c: np.asarray(table[c]).copy() for c in table.column_names}


@quick
@given(
    which=st.integers(0, 1000),
    kind=st.sampled_from(["changed", "gone", "added", "moved"]),
    added=st.sampled_from(["a.txt", "run.py", "x/y.json", "records/a.json", "margins/a.parquet"]),
    content=st.binary(max_size=20),
    at=st.integers(0, 10**6),
    flip=st.integers(1, 255),
    zipped_too=st.booleans(),
)
def test_a_bundle_with_any_one_file_changed_added_or_gone_is_refused(
    made, tmp_path, which, kind, added, content, at, flip, zipped_too
):
    files = dict(made.bundle)
    name = sorted(files)[which % len(files)]
    if kind == "gone":
        assume(name != "manifest.json" or zipped_too)  # without it a folder is one of results
        del files[name]
    elif kind == "added":
        files[added], name = content, added
    elif kind == "moved":
        assume(name != "manifest.json")
        files[f"{name}.txt"] = files.pop(name)
    else:
        raw = bytearray(files[name])
        raw[at % len(raw)] ^= flip
        files[name] = bytes(raw)
        assume(name != "manifest.json" or _other(files[name], made.bundle[name]))
    reasons = verify(_placed(files, tmp_path, zipped_too), made.labels)
    assert reasons
    if name != "manifest.json":  # a name that was altered there is told by the file that lacks, and the one too many
        assert {name, "manifest.json"} & {r.file for r in reasons}
    assert UNFORESEEN not in {r.required for r in reasons}


@quick
@given(value=ANY, field=st.sampled_from(sorted(MANIFEST_FIELDS)))
def test_a_manifest_that_disagrees_with_its_records_is_refused_by_the_field(made, tmp_path, value, field):
    told = json.loads(made.bundle["manifest.json"])
    assume(json.dumps(told[field]) != json.dumps(value))
    files = {**made.bundle, "manifest.json": json.dumps(told | {field: value}).encode()}
    reasons = verify(_placed(files, tmp_path, zipped_too=False), made.labels)
    found = {r.field for r in reasons if r.file == "manifest.json"} | {
        r.field for r in reasons if r.field == "manifest"
    }
    named = {field, "manifest"} if field == "files" else {field}
    if field == "method":
        found |= {"method" for r in reasons if r.field == "method.name"}
    assert any(f in named or f.startswith(f"{field}.") for f in found)


@pytest.mark.parametrize("field", ["commits", "dirty", "failed", "truncated", "records"])
def test_what_a_manifest_says_of_its_records_is_counted(made, tmp_path, field):
    record = next(n for n in made.bundle if n.startswith("records/"))
    told = json.loads(made.bundle[record])
    told["counts"]["truncated"], told["source"] = 7, {"commit": "d" * 40, "dirty": True}
    files = resigned({**made.bundle, record: json.dumps(told).encode()}, counts=True)
    assert verify(_placed(files, tmp_path, zipped_too=False), made.labels) == []
    said = json.loads(files["manifest.json"])
    said[field] = json.loads(made.bundle["manifest.json"])[field] if field not in ("failed", "records") else 1
    files["manifest.json"] = json.dumps(said).encode()
    reasons = verify(_placed(files, tmp_path, zipped_too=False), made.labels)
    assert {(r.file, r.field) for r in reasons} == {("manifest.json", field)}


def _placed(files, folder, zipped_too):
    if zipped_too:
        (folder / "b.zip").write_bytes(zipped(files))
        return folder / "b.zip"
    shutil.rmtree(folder / "b", ignore_errors=True)
    for each, raw in files.items():
        path = folder / "b" / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return folder / "b"


def _other(raw, before):
    """Say whether a manifest with a changed byte says something else: between its words any blank will do."""
    try:
        return parse(raw) != parse(before)
    except ValueError:
        return True


@quick
@given(
    raw=st.binary(max_size=300) | ANY.map(lambda v: json.dumps(v).encode()), name=st.sampled_from(["a.json", "b.zip"])
)
def test_verify_is_total_over_bytes(tmp_path, raw, name):
    (tmp_path / name).write_bytes(raw)
    reasons = verify(tmp_path / name)
    assert reasons
    assert UNFORESEEN not in {r.required for r in reasons}


@quick
@given(files=st.dictionaries(st.text(min_size=1, max_size=12), st.binary(max_size=50), max_size=4), raw=ANY)
def test_verify_is_total_over_archives(tmp_path, files, raw):
    held = {**files, "manifest.json": json.dumps(raw).encode()}
    try:
        (tmp_path / "b.zip").write_bytes(zipped(held))
    except ValueError:  # what zipfile cannot write
        assume(False)
    reasons = verify(tmp_path / "b.zip")
    assert reasons
    assert UNFORESEEN not in {r.required for r in reasons}


@pytest.mark.parametrize(
    "text",
    [
        *('{"a":1,"a":1}', '{"a":{"b":1,"b":2}}', "NaN", "[Infinity]", "[-Infinity]", "1e999", "1" + "0" * 5000),
        *('"\\ud800"', '{"\\udfff":1}', "\ufeff{}", "[" * 100_000, '{"a":' * 5000, "[" * 65 + "]" * 65, "", "{}{}"),
    ],
    ids=range(15),
)
def test_json_that_two_readers_may_read_in_two_ways_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse(text.encode("utf-8", "surrogatepass"))
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        with pytest.raises(ValueError, match=r"."):
            parse(b'{"a": 1}'.decode().encode(encoding))


@quick
@given(value=ANY)
def test_json_of_one_meaning_is_read_as_it_is(value):
    assert parse(as_json(value)) == copy.deepcopy(value)


def test_a_little_fuzzing_finds_nothing(tmp_path):
    found = fuzz(tmp_path, inputs=120, seed=2026)
    assert found.failures == []
    assert sum(found.tried.values()) == 120
    assert all(found.accepted[kind] for kind in ("record", "margins", "zip"))
