"""Whether what `verify` accepted may be accepted: written from the contract, and by other means than `verify`'s own.

Most fields of a record are bound by the registry, by a hash or by where a file stands; what is free here is what nobody
can know but who ran it. Margins may have other values, not other rows.
"""

import hashlib
import io
import json
import math
import re

import numpy as np
import pyarrow.parquet as pq

from datasets_registry.encoders import ENCODERS

COUNT, AMOUNT, TEXT, FLAG = "count", "amount", "text", "flag"
FREE = {
    "method.version": TEXT,
    "method.dist": TEXT,
    "method.level": TEXT,
    "method.transductive": FLAG,
    "method.source_sha256": TEXT,
    "dataset.encoder": TEXT,
    "dataset.encoder_revision": TEXT,
    "dataset.licence": TEXT,
    "counts.truncated": COUNT,
    "environment.python": TEXT,
    "environment.device": TEXT,
    "environment.device_class": TEXT,
    "environment.dtype": TEXT,
    "environment.threads": COUNT,
    "source.commit": TEXT,
    "source.dirty": FLAG,
    "reason": TEXT,
    **dict.fromkeys((f"cost.{k}" for k in ("trained_params", "peak_device_bytes", "peak_rss_delta_bytes")), COUNT),
    **dict.fromkeys(
        (
            f"cost.{k}"
            for k in (
                *("fit_s", "adapt_s_per_user", "comparisons_per_s", "train_comparisons_per_s", "params_per_user"),
                "state_bytes_per_user",
            )
        ),
        AMOUNT,
    ),
}
# What a record of an older release may lack, and what that means.
LACKING = {
    **{"schema_version": 1, "kind": "quality", "method.source_sha256": None, "method.transductive": False},
    **{"dataset.encoder_revision": None, "split.imbalance": None, "control": None, "reason": None},
    **dict.fromkeys((k for k in FREE if k.startswith("cost.")), None),
}
MANIFEST_FIELDS = {
    "schema_version",
    "protocol",
    "method",
    "records",
    "files",
    "commits",
    "dirty",
    "failed",
    "truncated",
}
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class WrongAcceptanceError(Exception):
    """Something was accepted that must not be."""


def wrong(unless, why):
    if not unless:
        raise WrongAcceptanceError(why)


def strictly(raw):
    """Parse JSON that has one meaning only."""

    def unique(pairs):
        wrong(len({k for k, _ in pairs}) == len(pairs), "a key twice")
        return dict(pairs)

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=lambda c: wrong(False, c))
    except ValueError as why:
        raise WrongAcceptanceError(f"no JSON: {why}") from why


def flat(told, prefix=""):
    """Return leaves by dotted path; `method.config`, `margins.control`, `files` and packages count as leaves."""
    out = {}
    for key, value in told.items():
        path = f"{prefix}{key}"
        whole = ("method.config", "margins.control", "environment.packages", "files")
        if isinstance(value, dict) and path not in whole:
            out |= flat(value, f"{path}.")
        else:
            out[path] = value
    return out


def same(a, b):
    """Equal and of one type: 1 is not 1.0, nor true."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def fits(kind, value):
    if value is None:
        return True
    if kind == TEXT:
        return isinstance(value, str) and len(value) <= 4000 and not CONTROLS.search(value)
    if kind == FLAG:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int if kind == COUNT else int | float):
        return False
    return value >= 0 and math.isfinite(value) and (kind == AMOUNT or value <= 2**53)


def judge_record(name, files, original, *, alone):
    """Raise WrongAcceptanceError unless the record says what the original does, but for what is free."""
    told, wanted = strictly(files[name]), flat(strictly(original[name]))
    wrong(isinstance(told, dict), "no object")
    found = flat(told)
    failed = found.get("status") != "ok"
    if failed:
        wrong(found["status"] in ("failed", "timeout", "out_of_memory", "skipped"), "status")
        wrong(isinstance(found.get("reason"), str) and found["reason"].strip(), "no reason")
        wrong(found.get("margins", 0) is None or "margins" not in told, "margins of what failed")
    for path in sorted(set(wanted) | set(found)):
        value = found.get(path, LACKING.get(path, "absent"))
        if same(value, wanted.get(path, "absent")) or (failed and path.split(".")[0] in ("margins", "status")):
            continue
        if path in FREE:
            wrong(fits(FREE[path], value), f"{path} = {value!r}")
        else:
            _other(path, value, found, wanted, alone)
    wrong(found["dataset.encoder"] in ENCODERS or found["dataset.encoder"].startswith("hub:"), "encoder")
    wrong(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", found["method.dist"]), "dist")
    digest = json.dumps(found["method.config"], sort_keys=True, separators=(",", ":"))
    wrong(hashlib.sha256(digest.encode()).hexdigest() == found["method.config_sha256"], "config hash")
    if not failed:
        judge_margins(files, found, original, name)
    return found


def _other(path, value, found, wanted, alone):
    """Judge the fields that are bound to others."""
    if path in ("method.config", "method.config_sha256"):
        wrong(isinstance(found["method.config"], dict), "config")
    elif path == "environment.packages":
        wrong(isinstance(value, dict) and all(isinstance(v, str) and fits(TEXT, v) for v in value.values()), path)
    elif path == "method.role":
        wrong(found["method.dist"] != "hetpref" and value in ("method", "control"), "the role of hetpref's own")
    elif path == "seed":
        wrong(type(value) is int and 0 <= value < 15 and value % 5 == wanted["split.fold"], f"seed {value}")
        wrong(alone, "another seed in a bundle")
    elif path == "control":
        wrong(value == "user_shuffle" and alone, f"control {value!r}")
    elif path == "split.imbalance":
        # Whoever gives all that they have gives the same, however it is handed out.
        wrong(value == "zipf" and found["split.n_train"] == "all", path)
    elif path == "split.n_train":
        wrong(type(value) is int and value == wanted["split.n_train_mean"], f"n_train {value!r}")
    elif path in ("split.n_train_mean", "split.n_support_mean"):
        wrong(isinstance(value, int | float) and not isinstance(value, bool), path)
        wrong(abs(value - wanted[path]) <= 1.1e-6, f"{path} = {value}")
    elif path in ("margins.sha256", "margins.validation.sha256", "margins.control"):
        pass  # judged with the file
    elif path == "margins.validation.path" and value != "absent":
        # Validation margins of another fit of one's own, on the same rows: only the temperature is from them.
        wrong(alone and isinstance(value, str) and value.startswith("margins/made@1/shrunk/"), path)
    elif path in ("margins.validation", "margins.validation.path"):
        # Without it there is no temperature, and nobody's numbers are better.
        wrong(found.get("margins.validation") is None and "margins.validation.path" not in found, path)
    else:
        wrong(False, f"{path} = {str(value)[:80]!r}")


def judge_margins(files, found, original, name):
    wanted = flat(strictly(original[name]))
    control = found["margins.control"]
    wrong(isinstance(control, dict) and all(k == v for k, v in control.items()), "control columns")
    wrong("wrong_user" in control or found.get("control"), "no wrong_user")
    parts = [("margins", ["margin", *control])]
    if "margins.validation.path" in found:
        parts.append(("margins.validation", ["margin"]))
    for where, columns in parts:
        raw = files.get(found[f"{where}.path"], b"")
        wrong(hashlib.sha256(raw).hexdigest() == found[f"{where}.sha256"], f"{where}: sha256")
        table = _table(raw, where)
        before = pq.read_table(io.BytesIO(original[wanted[f"{where}.path"]]))
        wrong(sorted(table.column_names) == sorted(["row", *columns]), f"{where}: columns {table.column_names}")
        rows = np.sort(np.asarray(table["row"]))
        wrong(str(table["row"].type) == "int32" and np.array_equal(rows, np.sort(np.asarray(before["row"]))), "rows")
        for column in columns:
            values = np.asarray(table[column])
            wrong(str(table[column].type) == "float" and np.isfinite(values).all(), f"{where}: {column}")


def _table(raw, where):
    try:
        file = pq.ParquetFile(io.BytesIO(raw))
        wrong(set(file.metadata.metadata or {}) <= {b"ARROW:schema"}, f"{where}: metadata")
        wrong(not file.schema_arrow.metadata, f"{where}: metadata in the schema of Arrow")
        return file.read()
    except WrongAcceptanceError:
        raise
    except Exception as why:
        raise WrongAcceptanceError(f"{where}: no Parquet: {why}") from why


def judge_bundle(files, original):
    """Raise WrongAcceptanceError unless files by name are a submission that says what the original does.

    Without a manifest they are a results folder, which may hold fewer records, and what nobody reads.
    """
    if "manifest.json" not in files:
        for name in (n for n in files if n.startswith("records/")):
            wrong(name in original, f"another record, {name}")
            judge_record(name, files, original, alone=True)
        return
    manifest = strictly(files["manifest.json"])
    wrong(set(manifest) == MANIFEST_FIELDS, "fields of the manifest")
    first = strictly(original["manifest.json"])
    for field in ("schema_version", "protocol", "method", "records"):
        wrong(same(manifest[field], first[field]), f"manifest: {field}")
    digests = {n: hashlib.sha256(raw).hexdigest() for n, raw in files.items() if n != "manifest.json"}
    wrong(same(manifest["files"], digests), "manifest: files")
    names = sorted(n for n in original if n.startswith("records/"))
    wrong(sorted(n for n in files if n.startswith("records/")) == names, "other records")
    found = [judge_record(name, files, original, alone=False) for name in names]
    entrant = [f"method.{k}" for k in ("version", "dist", "role", "level", "config_sha256")] + ["dataset.encoder"]
    for regime in ("seen", "unseen"):
        who = {tuple(f[k] for k in entrant) for f in found if f["split.regime"] == regime}
        wrong(len(who) <= 1, "seeds of several entrants")
    used = {f[k] for f in found for k in ("margins.path", "margins.validation.path") if k in f}
    wrong(used == {n for n in files if n.endswith(".parquet") or n.startswith("margins/")}, "margins of no record")
    for name in set(files) - used - set(names) - {"manifest.json"}:
        text = files[name].decode("utf-8", "replace")
        wrong(name.endswith((".md", ".txt", ".jsonl", ".json")) and "\ufffd" not in text, f"{name} is no text")
        wrong(not CONTROLS.search(text.replace("\r\n", "\n")), f"{name} has control characters")
    counted = {
        "commits": sorted({f["source.commit"] or "unknown" for f in found}),
        "dirty": any(f["source.dirty"] for f in found),
        "failed": sum(f["status"] != "ok" for f in found),
        "truncated": sum(f["counts.truncated"] for f in found),
    }
    for field, value in counted.items():
        wrong(same(manifest[field], value), f"manifest: {field}")
