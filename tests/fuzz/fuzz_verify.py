"""Fuzz `verify`: mutated records, margins, bundles and archives must be refused or mean what the valid ones mean.

    cd tests && python -m fuzz.fuzz_verify --inputs 100000 --seed 1

Every input follows from (seed, number): `--start N --inputs 1 --keep DIR` makes one again and leaves it there. Exit
code 1 where anything raised, hung, took memory without end, or was accepted that must not be.
"""

import argparse
import collections
import io
import json
import resource
import shutil
import stat
import sys
import tempfile
import time
import traceback
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.bundle_mutations import mutate_files, mutate_zip, place_specials, zipped
from fuzz.judge import WrongAcceptanceError, judge_bundle, judge_record, wrong
from fuzz.mutations import config, generator, mutate_json, mutate_margins, signed
from fuzz.originals import Originals, originals

from leaderboard.verify import UNFORESEEN, verify

SLOW_S = 20.0  # of processor time: other work on the machine does not count
MOST_MEMORY = 1 << 30  # that all inputs together may add
KINDS = ("record", "record", "record", "margins", "margins", "bundle", "bundle", "zip")


@dataclass
class Outcome:
    """What was found: how many inputs of each kind, how many accepted, and every failure by number."""

    tried: collections.Counter = field(default_factory=collections.Counter)
    accepted: collections.Counter = field(default_factory=collections.Counter)
    failures: list = field(default_factory=list)


class Fuzz:
    """One run: valid inputs below a folder, and what was found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: Originals = originals(folder)
        self.files = self.made.files
        self.margins = [raw for name, raw in self.files.items() if name.endswith(".parquet")]
        self.told = [json.loads(self.files[name]) for name in self.made.records]
        self.outside = folder / "bundle"
        self.out = Outcome()
        self.memory = _peak_memory()
        for path in (self.made.bench.root, self._write(self.made.bundle), self._archive(zipped(self.made.bundle))):
            assert (reasons := self.verify(path)) == [], reasons

    def verify(self, path):
        return verify(path, self.made.labels)

    def one(self, seed, number):
        """Make, verify and judge one input."""
        rng = generator(seed, number)
        kind = rng.choice(KINDS)
        self.out.tried[kind] += 1
        began = time.process_time()
        try:
            reasons = getattr(self, f"_{kind}")(rng)
        except WrongAcceptanceError as why:
            self._fail(number, kind, f"accepted: {why}")
            return
        except Exception:
            self._fail(number, kind, traceback.format_exc(limit=-6))
            return
        self.out.accepted[kind] += not reasons
        if any(r.required == UNFORESEEN for r in reasons):
            self._fail(number, kind, f"unforeseen: {[r for r in reasons if r.required == UNFORESEEN][:2]}")
        if (took := time.process_time() - began) > SLOW_S:
            self._fail(number, kind, f"{took:.0f} s")
        if (added := _peak_memory() - self.memory) > MOST_MEMORY:
            self._fail(number, kind, f"{added >> 20} MB of memory more than before it began")

    def _fail(self, number, kind, why):
        self.out.failures.append((number, kind, why))
        print(f"input {number} ({kind}): {why}", flush=True)

    def _record(self, rng):
        name = rng.choice(self.made.records)
        raw = self.files[name]
        changed = config(rng, raw) if rng.random() < 0.1 else mutate_json(rng, raw, self.told)
        return self._alone(name, {**self.files, name: changed})

    def _margins(self, rng):
        name = rng.choice(self.made.records)
        told = json.loads(self.files[name])["margins"]
        where = rng.choice(("margins", "margins", "margins.validation"))
        path = (told if where == "margins" else told["validation"])["path"]
        changed = mutate_margins(rng, self.files[path], self.margins)
        return self._alone(name, signed(self.files, name, changed, where))

    def _alone(self, name, files):
        """Verify one record in the results folder that it and its margins were written to."""
        root = self.made.bench.root
        changed = {n: raw for n, raw in files.items() if raw is not self.files[n]}
        for each, raw in changed.items():
            (root / each).write_bytes(raw)
        reasons = self.verify(root / name)
        for each in changed:
            (root / each).write_bytes(self.files[each])
        if not reasons:
            judge_record(name, files, self.files, alone=True)
        return reasons

    def _bundle(self, rng):
        files = (
            mutate_files(rng, self.made.bundle, self.margins) if (changed := rng.random() < 0.9) else self.made.bundle
        )
        root = self._write(files)
        special = "" if changed else place_specials(rng, root, files, self.outside)
        reasons = self.verify(root)
        if not reasons:
            wrong(not special, special)
            judge_bundle(files, self.made.bundle)
        return reasons

    def _zip(self, rng):
        raw = mutate_zip(rng, self.made.bundle, self.margins)
        reasons = self.verify(self._archive(raw))
        if not reasons:
            judge_bundle(_unzipped(raw), self.made.bundle)
        return reasons

    def _write(self, files):
        root = self.folder / "input" / "bundle"
        shutil.rmtree(root.parent, ignore_errors=True)
        for name, raw in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
        return root

    def _archive(self, raw):
        path = self.folder / "input.zip"
        path.write_bytes(raw)
        return path


def _peak_memory():
    """Return the most memory that the process ever had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _unzipped(raw):
    """Return files by name of an archive that was accepted, without the one folder that may hold them all."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [i for i in archive.infolist() if not i.is_dir()]
        for info in archive.infolist():
            wrong(stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR), "a special member")
            wrong(not info.flag_bits & 1, "an encrypted member")
            wrong(".." not in info.filename.split("/") and not info.filename.startswith("/"), "a path that leaves")
        names = [i.filename for i in members]
        wrong(len({n.casefold() for n in names}) == len(names), "a name twice")
        top = "" if "manifest.json" in names else names[0].partition("/")[0] + "/"
        wrong(all(n.startswith(top) for n in names), "files beside the folder")
        return {n[len(top) :]: archive.read(n) for n in names}


def fuzz(folder, inputs, seed, start=0, every=5000):
    """Try so many inputs from number `start` on, and return what was found."""
    run, began = Fuzz(Path(folder)), time.monotonic()
    for number in range(start, start + inputs):
        run.one(seed, number)
        if (done := number - start + 1) % every == 0:
            print(
                f"seed {seed}: {done} of {inputs} inputs, {done / (time.monotonic() - began):.0f}/s, "
                f"{len(run.out.failures)} failures; go on with --start {number + 1}",
                flush=True,
            )
    return run.out


def main():
    parser = argparse.ArgumentParser(description="Fuzz verify with mutated records, margins, bundles and archives.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Work in this folder, and leave the last input there.")
    asked = parser.parse_args()
    if Path("/dev/shm").is_dir():
        tempfile.tempdir = "/dev/shm"  # most of the time would go to the disk
    with tempfile.TemporaryDirectory(prefix="hetpref-fuzz-") as fresh:
        found = fuzz(asked.keep or fresh, asked.inputs, asked.seed, asked.start)
    for kind in sorted(found.tried):
        print(f"{kind}: {found.tried[kind]} tried, {found.accepted[kind]} accepted and rightly so, or listed above")
    print(
        f"{sum(found.tried.values())} inputs of seed {asked.seed}: {len(found.failures)} crashes or wrong acceptances"
    )
    sys.exit(bool(found.failures))


if __name__ == "__main__":
    main()
