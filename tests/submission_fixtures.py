"""A real run of three seeds on made people, whose records say that they were measured on a commit."""

import json
import os
import subprocess
import sys

import numpy as np

from leaderboard.records import RunRecord
from leaderboard.store import ResultsFolder, read_record

SUITE = """
title = "Submissions"
seeds = 3
time_limit_s = 60
memory_limit_mb = 2048
user_shuffle = false
methods = ["pooled-bt", "per-user-bt", "hierarchical-bt"]

[[datasets]]
name = "planted@1+users=60"
encoder = "tabular@1"
n_train = ["all"]
n_support = [4]
"""
METHOD = "hierarchical-bt"


def run(folder):
    """Run the suite into `folder / "results"`, and return that."""
    (folder / "submissions.toml").write_text(SUITE)
    command = [sys.executable, "-m", "benchmarks.cli", "run", folder / "submissions.toml", "--no-pages"]
    done = subprocess.run(
        [*command, "--out", folder / "results"], env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for path in ResultsFolder(folder / "results").record_files():
        changed(path, source={"commit": "c0ffee" * 6 + "c0ff", "dirty": False})
    return folder / "results"


def changed(path, **parts):
    """Rewrite a record with other parts; a dict is merged into the part that is there."""
    told = json.loads(path.read_text())
    for name, value in parts.items():
        told[name] = {**told[name], **value} if isinstance(value, dict) and told[name] else value
    path.write_text(RunRecord.model_validate_json(json.dumps(told), strict=True).to_json())


def records(results, method=METHOD):
    """Return the records of a method by path."""
    found = {p: read_record(p) for p in ResultsFolder(results).record_files() if p.parent.name == method}
    assert found
    return found


def forge(results, path, margin):
    """Put other margins into a record: `margin` is given those that are there; all digests are made right."""
    record, folder = read_record(path), ResultsFolder(results)
    columns = dict(folder.read_margins(record.margins))
    columns["margin"] = np.asarray(margin(columns["margin"]), np.float32)
    told = json.loads(path.read_text())
    told["margins"]["sha256"] = folder.write_margins(record.margins.path, columns).sha256
    path.write_text(json.dumps(told))
