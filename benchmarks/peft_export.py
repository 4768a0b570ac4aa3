"""What `hetpref export peft` does: fit a method as a cell would, or read a fitted one, and write one adapter of it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cell_process import Payload, seed_everything, world_of
from benchmarks.cells import Cell, Fit, MethodEntry, Prepared, without_model
from benchmarks.display import LiveProgress
from benchmarks.meters import must_be_there
from benchmarks.payloads import build_payload
from benchmarks.runner import prepare
from benchmarks.suites import DatasetPlan, must_be_known
from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError, RequestError
from datasets_registry.protocol import Count, Repetition
from datasets_registry.records import Comparisons, PreferenceData
from datasets_registry.splits import SUPPORT, split
from methods.interface import Histories
from methods.registry import create, find, origin

if TYPE_CHECKING:
    from methods.backbone.method import BackboneMethod

FITTED_ON = "fitted_on.json"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The fit that is asked for; what is None comes from the folder `saved`, or is the default."""

    method: str
    config: dict[str, Any]
    dataset: str | None = None
    encoder: str | None = None
    n_train: Count | None = None
    seed: int | None = None
    device: str = "cpu"
    saved: Path | None = None


@dataclass(frozen=True, slots=True)
class FittedOn:
    """What a method was fitted on: kept beside a saved method, so that it is never used with other people's rows."""

    dataset: str
    encoder: str
    n_train: Count
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A fitted method, what it was fitted on, and everything that a cell's process gets of it."""

    method: BackboneMethod
    on: FittedOn
    cell: Cell
    payload: Payload


def export_adapter(wanted: Wanted, user: str, out: Path, *, n_support: Count = "all", save: Path | None = None) -> str:
    """Write the adapter of a person (id or row number) to `out` and return what to tell of it.

    A person who is seen in the fit is looked up; another one is fitted from `n_support` units of what they said on
    support prompts. Raises RequestError for what cannot be, before anything is fitted.
    """
    from methods.backbone.peft_files import must_be_free, must_have_adapters, write_adapter

    must_be_there(wanted.device)
    must_have_adapters(create(wanted.method, **wanted.config))
    must_be_free(out)
    if save is not None:
        _must_be_savable(save, wanted)
    on = _told(wanted)
    cell = _cell(wanted, on)
    row = find_user(cell.prepared.data, user)
    fitted = _fitted(wanted, on, cell)
    if save is not None:
        fitted.method.save(save)
        write_atomically(save / FITTED_ON, (json.dumps(asdict(on), indent=1) + "\n").encode())
    seen, history = history_of(fitted, row, n_support)
    (state,) = fitted.method.adapt([row], Histories.group(history, [row]), fitted.payload.budget)
    name = cell.prepared.data.users.ids[row]
    write_adapter(fitted.method, state, out, user=name)
    who = f"row {row}, {'seen' if seen else 'not seen'} in training, {len(history)} comparisons"
    if not state.arrays:
        who += "; it is the same for everybody"
    told = [
        f"{out}: the adapter of {name!r:.80} ({who}) for {on.encoder}",
        f"Load it: peft.PeftModel.from_pretrained(base, {str(out)!r}); its README.md has the lines that score a text",
    ]
    if save is not None:
        told.append(f"Other people: hetpref export peft {wanted.method} --from {save} --user ID --out DIR")
    return "\n".join(told)


def find_user(data: PreferenceData, given: str) -> int:
    """Return the row of a person by id, or by row number where no id is that number; else RequestError."""
    ids = data.users.ids
    if given in ids:
        return ids.index(given)
    if given.isascii() and given.isdigit() and int(given) < len(ids):
        return int(given)
    near = difflib.get_close_matches(given, ids, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    some = ", ".join(map(repr, ids[:3]))
    raise RequestError(
        f"unknown user {given!r:.80} of {data.id}.{hint} Allowed: the ids of its {len(ids)} people ({some}, ...), or "
        f"row numbers, 0 to {len(ids) - 1}"
    )


def history_of(fitted: Fitted, row: int, n_support: Count) -> tuple[bool, Comparisons]:
    """Return whether a person was seen in the fit, and what they said: on training prompts, or else on support ones."""
    own = fitted.payload.train.take(fitted.payload.train.user == row)
    if len(own):
        return True, own
    at = fitted.cell.split
    most = inf if n_support == "all" else n_support
    rows = np.flatnonzero((at.row_user == row) & (at.row_part == SUPPORT) & (at.row_rank < most))
    return False, fitted.cell.prepared.data.comparisons.take(rows)


def options(given: Sequence[str]) -> dict[str, Any]:
    r"""Return a method's options of "key=value" words; a value is JSON where it can be, else text.

    >>> options(["rank=8", "share=A", "targets=[\"q_proj\"]", "lr_own=null"])
    {'rank': 8, 'share': 'A', 'targets': ['q_proj'], 'lr_own': None}
    """
    found: dict[str, Any] = {}
    for each in given:
        key, sign, value = each.partition("=")
        if not sign or not key.strip():
            raise RequestError(f"--config {each!r:.60}; allowed: KEY=VALUE, for example --config rank=8")
        if key.strip() in found:
            raise RequestError(f"--config {key.strip()} is given twice; give it once")
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value
    return found


def count(option: str, given: str, *, least: int) -> Count:
    """Return a budget of the command line.

    >>> count("--n-train", "all", least=1), count("--n-train", "8", least=1)
    ('all', 8)
    """
    if given == "all":
        return "all"
    if not (given.isascii() and given.isdigit()) or int(given) < least:
        raise RequestError(f"{option} {given!r:.60}; allowed: whole numbers from {least}, or all")
    return int(given)


def _told(wanted: Wanted) -> FittedOn:
    """Return what the fit is (or was) on; raises RequestError where the command and a saved method say different."""
    from datasets_registry import canonical_id, find_dataset

    kept = None if wanted.saved is None else _read_record(wanted)
    if wanted.dataset is None and kept is None:
        then = f", as {wanted.saved} does not say it" if wanted.saved else ""
        raise RequestError(f"give --dataset{then}. List them: hetpref datasets")
    dataset = kept.dataset if wanted.dataset is None and kept else canonical_id(wanted.dataset or "")
    defaults = kept or FittedOn(dataset, find_dataset(dataset).card.encoder, "all", 0)
    asked = FittedOn(
        dataset,
        wanted.encoder or defaults.encoder,
        defaults.n_train if wanted.n_train is None else wanted.n_train,
        defaults.seed if wanted.seed is None else wanted.seed,
    )
    if kept is not None and asked != kept:
        ours, theirs = asdict(asked), asdict(kept)
        names = [name for name in ours if ours[name] != theirs[name]]
        told = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in names)
        then = "leave these options out, or fit anew without --from"
        raise RequestError(f"{wanted.saved} was fitted with {told}; {then}")
    return asked


def _cell(wanted: Wanted, on: FittedOn) -> Cell:
    """Return the cell of a suite that makes this fit."""
    must_be_known(on.encoder)
    method = create(wanted.method, **wanted.config)
    # what identifies the code is for keys of records, and none is written
    entry = MethodEntry(find(wanted.method), method.config, *origin(wanted.method), "")
    plan = DatasetPlan(on.dataset, on.encoder, n_train=(on.n_train,))
    if why := without_model(entry, plan):
        raise RequestError(why)
    ready: Prepared = prepare(plan, LiveProgress(), [entry])
    repetition = Repetition(on.seed)
    cut = split(ready.data, fold=repetition.fold, draw=repetition.draw)
    return Cell(ready, cut, repetition, Fit(on.n_train, "all", None, None, ()), entry, wanted.device)


def _fitted(wanted: Wanted, on: FittedOn, cell: Cell) -> Fitted:
    from methods.backbone.peft_files import must_have_adapters

    payload = build_payload(cell, inf)
    seed_everything(payload.budget.seed)
    if wanted.saved is not None:
        method = must_have_adapters(_load(wanted.saved, cell, payload))
        method.work_on(wanted.device)
    else:
        method = must_have_adapters(payload.method(**payload.config))
        LiveProgress().note(f"fitting {cell.title}")
        method.fit(payload.train, payload.val, world_of(payload), payload.budget)
    return Fitted(method, on, cell, payload)


def _load(folder: Path, cell: Cell, payload: Payload) -> Any:
    from safetensors import SafetensorError

    try:
        return cell.method.cls.load(folder, world_of(payload))
    except (ValueError, KeyError, TypeError, SafetensorError) as why:
        raise DataError(f"{folder} is not a whole saved method ({why}); save it again with --save") from why


def _read_record(wanted: Wanted) -> FittedOn | None:
    """Return what a saved method was fitted on, None where the folder does not say it."""
    folder = wanted.saved
    assert folder is not None
    if not (folder / "method.json").is_file():
        raise RequestError(f"--from {folder} holds no saved method; give a folder that --save has written")
    if wanted.config:
        raise RequestError(f"--config cannot change what is fitted already; leave it out, or --from {folder}")
    path = folder / FITTED_ON
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return FittedOn(told["dataset"], told["encoder"], told["n_train"], told["seed"])
    except (ValueError, KeyError, TypeError) as why:
        raise DataError(f"{path} cannot be read ({why}); delete it and give --dataset and --encoder") from why


def _must_be_savable(folder: Path, wanted: Wanted) -> None:
    if wanted.saved is not None:
        raise RequestError(f"--save with --from: {wanted.saved} holds the method already; leave --save out")
    taken = folder.is_dir() and any(folder.iterdir()) and not (folder / "method.json").is_file()
    if taken or (folder.exists() and not folder.is_dir()):
        raise RequestError(f"--save {folder}: it holds something else; give an empty or new folder")
