"""Valid inputs to `verify` on tiny made people: a results folder, a bundle of it by file name, and its labels."""

import json
from pathlib import Path

from board_fixtures import Bench, made, shrunk

from datasets_registry.errors import unknown
from datasets_registry.splits import split
from leaderboard.labels import Labels, Query
from leaderboard.submission import bundle

METHOD = "shrunk"


class Originals:
    """`files`: a valid results folder by name; `bundle`: a valid, smaller bundle; `labels` are kept between inputs.

    No dataclass: what a property test tells of its arguments must be short, and of one it tells every field.
    """

    def __init__(self, bench: Bench, files: dict[str, bytes], bundle: dict[str, bytes], labels: Labels):
        self.bench, self.files, self.bundle, self.labels = bench, files, bundle, labels

    @property
    def records(self):
        return sorted(name for name in self.files if name.startswith("records/"))


def count_queries(bench):
    """Give every record the counts of its split, which the fixture's scorers do not know."""
    for path in bench.root.glob("records/*/*/*.json"):
        told = json.loads(path.read_text())
        at, data = told["split"], bench.data[told["dataset"]["name"]]
        query = Query.of(data, split(data, fold=at["fold"]).query(at["regime"]))
        told["counts"] = {"users": len(set(query.user.tolist())), "units": len(query.starts), "comparisons": len(query)}
        path.write_text(json.dumps(told | {"counts": {**told["counts"], "truncated": 0}}))


def originals(folder: Path) -> Originals:
    """Write the valid inputs of one method below a folder."""
    data = {"made@1": made(n_users=15, n_units=15, per_unit=1)}
    bench = Bench(folder / "results", data=data, n_train=("all",), n_support=(4,))
    bench.n_support = ()
    bench.run({METHOD: shrunk})
    count_queries(bench)
    bundled = _files(bundle(METHOD, bench.root, folder / "bundle"))
    bench.n_support = (2,)
    bench.run({METHOD: shrunk})
    count_queries(bench)

    def load(name):
        if name not in data:
            raise unknown("dataset", name, data)
        return data[name]

    return Originals(bench, _files(bench.root), bundled, Labels(load=load, split=split))


def _files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
