"""The command `hetpref fetch`: what a run will need is downloaded and verified ahead, so that it can be offline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from benchmarks.options import JsonFlag
from benchmarks.printing import note, print_json, print_table
from datasets_registry.errors import HetprefError

UNITS = ("B", "kB", "MB", "GB")


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """One file that a dataset was read from: its name at its source, how it came, its size in bytes and its sha256."""

    name: str
    origin: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A dataset or model that was asked for: where it is from, what it is, or the problem why it is not there.

    `digest` is the sha256 of a dataset's content, and `split` that of its fold 0; of a model, `digest` is the revision.
    """

    id: str
    source: str
    revision: str
    files: tuple[FetchedFile, ...] = ()
    people: int = 0
    items: int = 0
    comparisons: int = 0
    digest: str = ""
    split: str = ""
    problem: str | None = None


def fetch(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="Specs, as `hetpref run` takes them.")],
    encoder: Annotated[
        str | None, typer.Option(metavar="ID", help="Also this encoder's model, a hub model for instance.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Download and verify datasets, and an encoder's model, ahead of a run without a network.

    Every dataset is loaded once, by the loader that a run uses, so that its checksums, revision, columns and row counts
    are checked; what is cached already is verified and not downloaded again. Afterwards HF_HUB_OFFLINE=1 keeps the
    hub's client from asking.

    Example: hetpref fetch prism community-alignment@1+language=en --encoder minilm-l6@1
    """
    from datasets_registry import canonical_id

    # A wrong name is told before anything is downloaded.
    ids = list(dict.fromkeys(canonical_id(spec) for spec in datasets))
    if encoder is not None:
        _known(encoder)
    found = [_dataset(name) for name in ids] + ([] if encoder is None else [_model(encoder)])
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        _show(found)
    if any(each.problem is not None for each in found):
        raise typer.Exit(1)


def _known(encoder_id: str) -> None:
    """Raise RequestError for an encoder that is neither built in nor of the form of a hub model."""
    from datasets_registry import hub_models
    from datasets_registry.encoders import find_encoder

    if encoder_id.startswith(hub_models.PREFIX):
        hub_models.hub_name(encoder_id)
    else:
        find_encoder(encoder_id)


def _dataset(name: str) -> Fetched:
    from datasets_registry import find_dataset, load
    from datasets_registry.receipts import receipts
    from datasets_registry.splits import split

    card = find_dataset(name).card
    note(f"{name}: {card.source} at {card.revision}")
    facts: dict[str, Any] = {"id": name, "source": card.source, "revision": card.revision}
    with receipts() as seen:
        try:
            data = load(name)
            digest = split(data).digest
        except HetprefError as why:
            return Fetched(**facts, problem=str(why))
    files = tuple(FetchedFile(each.name, each.origin, each.size, each.sha256) for each in seen)
    sizes: dict[str, Any] = {"people": len(data.users), "items": len(data.items), "comparisons": len(data.comparisons)}
    return Fetched(**facts, **sizes, files=files, digest=data.digest, split=digest)


def _model(encoder_id: str) -> Fetched:
    from datasets_registry.text_models import find_text_model, has_text_model, open_text_model

    if not has_text_model(encoder_id):
        return Fetched(encoder_id, "no model: attributes are read as they are", "")
    note(f"{encoder_id}: its model is opened once")
    source = "hub" if encoder_id.startswith("hub:") else "a pinned wheel of the package index"
    try:
        spec = find_text_model(encoder_id)
        open_text_model(spec, targets=())
    except HetprefError as why:
        return Fetched(encoder_id, source, "", problem=str(why))
    return Fetched(encoder_id, source, spec.revision, digest=spec.revision)


def _show(found: list[Fetched]) -> None:
    files = [
        [each.id, file.name, file.origin, readable(file.size), file.sha256[:16]]
        for each in found
        for file in each.files
    ]
    if files:
        print_table(["dataset", "file", "from", "size", "sha256"], files)
    rows = [
        [each.id, str(each.people), str(each.comparisons), str(each.items), each.digest[:16], each.split[:16]]
        for each in found
        if each.problem is None and each.people
    ]
    if rows:
        print_table(["dataset", "people", "comparisons", "items", "digest", "split 0"], rows)
    for each in found:
        if each.problem is not None:
            note(f"not fetched: {each.id}: {each.problem}")
        elif not each.people:
            note(f"{each.id}: {each.source}{f', revision {each.revision}' if each.revision else ''}")


def readable(size: int) -> str:
    """Return a size in bytes as a person reads it.

    >>> readable(999), readable(1_500), readable(83_300_000)
    ('999 B', '1.5 kB', '83.3 MB')
    """
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"
