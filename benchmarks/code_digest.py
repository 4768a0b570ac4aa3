"""What code a margin depends on, as a digest: a cell is run again when any of it was edited, and only then."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from methods.interface import Method

_ROOT = Path(__file__).resolve().parent.parent
_CATALOG = "methods.catalog"
# Rooms of `methods` that count only for the methods that use them. Backbone methods run on the kernels; both are edited
# for speed more often than others.
_ROOMS = {"backbone": ("backbone", "lowrank"), "lowrank": ("lowrank",), "prompt": ("prompt",)}
_ROOM_FILES = (".py", ".cpp", ".h", ".json")
# Of the runner, only what cuts the payload and asks the questions; how processes are kept or shown moves no margin.
_OF_THE_RUNNER = ("cells", "cell_process", "choice_sets", "payloads")


def source_sha256(cls: type[Method], reads: Sequence[str] = ()) -> str:
    """Return the sha256 of a method's own modules and of everything that all methods share.

    Own modules are the class's and, within the catalogue or the plug-in's package, those that they import, and
    the kernels or the backbone where one of these imports them: editing one method does not run the others again.
    `reads` are files and folders that it was told to read (`Method.reads`), whose content is in the digest, too.
    """
    own = files_sha256(((p.name, p) for p in sorted(_own_files(cls.__module__))), start=_shared().encode())
    for path in map(Path, reads):
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path][: path.is_file()]
        own = files_sha256(((p.relative_to(path).as_posix(), p) for p in inside), start=own.encode())
    return own


def files_sha256(named: Iterable[tuple[str, Path]], *, start: bytes = b"") -> str:
    """Return the sha256 of `start` and of files, each under a name, in the order given."""
    h = hashlib.sha256(start)
    for name, path in named:
        h.update(f"\x1e{name}\x1f".encode() + path.read_bytes())
    return h.hexdigest()


@cache
def _shared() -> str:
    """Return the digest of the datasets' code, the methods' machinery, and what the runner hands to a cell."""
    files = [
        *(_ROOT / "datasets_registry").rglob("*.py"),
        *(p for p in (_ROOT / "methods").rglob("*.py") if p.relative_to(_ROOT).parts[1] not in ("catalog", *_ROOMS)),
        *(_ROOT / "benchmarks" / f"{name}.py" for name in _OF_THE_RUNNER),
    ]
    return files_sha256((p.relative_to(_ROOT).as_posix(), p) for p in sorted(files))


def _own_files(module: str) -> set[Path]:
    """Return the files of a module and of the modules beside it that it imports, directly or not."""
    package = _CATALOG if module.startswith(_CATALOG + ".") else module.split(".")[0]
    found: dict[str, Path] = {}
    rooms: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        top, _, rest = name.partition(".")
        if top == "methods" and (room := rest.partition(".")[0]) in _ROOMS:
            rooms.update(_ROOMS[room])
            continue
        if name in found or not (name == package or name.startswith(package + ".")):
            continue
        path = getattr(sys.modules.get(name), "__file__", None)
        if path is None or not path.endswith(".py"):
            continue
        found[name] = Path(path)
        for node in ast.walk(ast.parse(found[name].read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    inside = {p for room in rooms for p in (_ROOT / "methods" / room).rglob("*") if p.suffix in _ROOM_FILES}
    return {*found.values(), *inside}
