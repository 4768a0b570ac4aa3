"""Publishing a board: JSON, its schema, checksums, the ledger, figures and the page, to a folder or a hub dataset."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError, RequestError
from leaderboard.board import read_board
from leaderboard.ledger import LEDGER, read_ledger
from leaderboard.plots import FIGURE_FILE

SUMS = "SHA256SUMS"
HUB = "hf://datasets/"
_SINGLE = ("leaderboard.json", "leaderboard.md", "leaderboard.csv", "kernels.csv", LEDGER, "site/index.html")


def publish(folder: Path, to: str, *, dry_run: bool = False) -> list[str]:
    """Copy a board to a folder, or upload it to `hf://datasets/OWNER/NAME`; returns a line per file.

    Records, margins and anything else in the folder stay where they are. Raises RequestError when a file at the target
    is not from an earlier publication, so that nothing of others is overwritten, and when the target is in the folder.
    """
    files = contents(folder)
    if to.startswith(HUB):
        return _to_hub({**files, "README.md": _card(files)}, to.removeprefix(HUB), dry_run=dry_run)
    if "://" in to:
        raise RequestError(f"target {to!r} is not known; allowed: a folder, or {HUB}OWNER/NAME")
    target = Path(to).expanduser()
    if target.resolve().is_relative_to(folder.resolve()):
        raise RequestError(f"{to!r} is the folder that is published, or inside it; give a folder outside of {folder}")
    return _to_folder(files, target, dry_run=dry_run)


def contents(folder: Path) -> dict[str, bytes]:
    """Return what would be published, by name; raises RequestError without a whole `leaderboard.json`."""
    from leaderboard.schema import schema_text

    if not (folder / "leaderboard.json").is_file():
        raise RequestError(f"{folder} has no leaderboard.json. Make one: hetpref leaderboard {folder}")
    read_board(folder)
    read_ledger(folder)  # a chain that is broken is not published
    out = {name: (folder / name).read_bytes() for name in _SINGLE if (folder / name).is_file()}
    for path in sorted((folder / "plots").glob("*")):
        if FIGURE_FILE.fullmatch(path.name) and path.is_file():
            out[f"plots/{path.name}"] = path.read_bytes()
    out["schema/leaderboard.schema.json"] = schema_text("leaderboard.schema.json").encode()
    sums = "".join(f"{hashlib.sha256(raw).hexdigest()}  {name}\n" for name, raw in sorted(out.items()))
    return {**dict(sorted(out.items())), SUMS: sums.encode()}


def _to_folder(files: dict[str, bytes], target: Path, *, dry_run: bool) -> list[str]:
    if target.exists() and not target.is_dir():
        raise RequestError(f"{target} is a file; give a folder")
    ours = _published(target)
    foreign = [
        n for n, raw in files.items() if (target / n).exists() and n not in ours and (target / n).read_bytes() != raw
    ]
    if foreign:
        raise RequestError(
            f"{target} holds files of others that would be overwritten: {', '.join(foreign[:5])}. Give an empty one, "
            f"or one that an earlier publication wrote (it has {SUMS})"
        )
    out: list[str] = []
    for name, raw in files.items():
        if not dry_run:
            write_atomically(target / name, raw)
        out.append(f"{'would write' if dry_run else 'wrote'} {target / name} ({len(raw)} bytes)")
    return out


def _published(target: Path) -> set[str]:
    """Return the names that an earlier publication wrote there and nobody has changed since."""
    try:
        lines = (target / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    out = {SUMS}
    for line in lines:
        digest, _, name = line.partition("  ")
        path = target / name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            out.add(name)
    return out


def _card(files: dict[str, bytes]) -> bytes:
    """Return the README of a hub dataset: the leaderboard itself, which a viewer of the hub reads."""
    head = "---\npretty_name: hetpref leaderboard\nviewer: false\ntags:\n- leaderboard\n- preference-learning\n---\n"
    return head.encode() + files.get("leaderboard.md", b"")


def _to_hub(files: dict[str, bytes], name: str, *, dry_run: bool) -> list[str]:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise RequestError(f"hub dataset {name!r} is not OWNER/NAME, as in {HUB}someone/leaderboard")
    if dry_run:
        return [f"would upload {each} ({len(raw)} bytes) to {HUB}{name}" for each, raw in files.items()]
    try:
        import huggingface_hub as hub
    except ImportError as why:
        raise RequestError("huggingface_hub is not installed: pip install huggingface_hub") from why
    with tempfile.TemporaryDirectory() as staged:
        for each, raw in files.items():
            write_atomically(Path(staged) / each, raw)
        try:
            # Created where it is not there; what it is, its README says.
            hub.HfApi().create_repo(name, repo_type="dataset", exist_ok=True)
            hub.HfApi().upload_folder(
                repo_id=name, repo_type="dataset", folder_path=staged, commit_message="hetpref leaderboard"
            )
        # The client raises OSError, ValueError, and what its HTTP library raises, which has no class of its own.
        except Exception as why:
            told = f"{type(why).__name__}: {str(why).strip().partition(chr(10))[0]:.300}"
            raise DataError(
                f"the hub refused the upload to {name} ({told}). Log in with a token that may write: hf auth login"
            ) from why
    return [f"uploaded {each} ({len(raw)} bytes) to {HUB}{name}" for each, raw in files.items()]
