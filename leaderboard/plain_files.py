"""Reading a foreign folder: plain files only, no link followed, nothing read that may wait or has no end."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from datasets_registry.errors import DataError

MAX_DEPTH = 12
# Not on every system: a link is not followed, a FIFO is not waited for, and Windows turns no line ends.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


class UnfitFileError(DataError):
    """A file cannot be read safely: which `part` of it, what was `found` and what is `required`."""

    def __init__(self, part: str, found: object, required: str) -> None:
        super().__init__(f"{part}: found {found}; required {required}")
        self.part, self.found, self.required = part, str(found), required


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in a folder under a name relative to it, of `size` bytes and under so many `names` on its disk.

    `fault` says why it is no plain file or folder.
    """

    name: str
    folder: bool
    fault: str | None = None
    size: int = 0
    names: int = 1


class Folder:
    """A foreign folder: what was read of it once must be the same where it is read again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests: dict[str, str] = {}

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a plain file of at most `most` bytes; raises UnfitFileError as `read_inside` does."""
        raw = read_inside(self.root, name, most)
        digest = hashlib.sha256(raw).hexdigest()
        if self.digests.setdefault(name, digest) != digest:
            raise UnfitFileError("file", "it changed while it was checked", "a file that nobody writes to")
        return raw


def read_plain(path: Path, most: int) -> bytes:
    """Return the content of a plain file, once; raises UnfitFileError for anything else and for more than `most` bytes.

    The last part of the path is not followed where it is a link. A FIFO, a device or a socket is not opened.
    """
    try:
        _must_be_plain(os.lstat(path))
        with os.fdopen(os.open(path, _FLAGS), "rb") as file:
            there = os.fstat(file.fileno())
            _must_be_plain(there)
            if there.st_size > most:
                raise UnfitFileError("size", there.st_size, f"at most {most} bytes")
            raw = file.read(there.st_size + 1)
    except (OSError, ValueError) as why:
        said = why.strerror if isinstance(why, OSError) and why.strerror else type(why).__name__
        raise UnfitFileError("file", said, "a file that can be read") from why
    if len(raw) != there.st_size:
        raise UnfitFileError("file", "it changed while it was read", "a file that nobody writes to")
    return raw


def read_inside(root: Path, name: str, most: int) -> bytes:
    """Return the content of a plain file by its name relative to a folder; no part of the name may be a link.

    Raises UnfitFileError as `read_plain` does, and for a name that leaves the folder.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part or ":" in part for part in parts):
        raise UnfitFileError("path", name, "a relative path inside the folder")
    at = root
    for part in parts[:-1]:
        at = at / part
        if at.is_symlink():
            raise UnfitFileError("path", f"{part} is a symbolic link", "plain folders: nothing may leave the folder")
    return read_plain(at / parts[-1], most)


def walk(root: Path, below: str = "", *, most: int) -> Iterator[Entry]:
    """Yield what stands in a folder, or below a name in it, in a stable order; links are told, not followed.

    Ends with one entry with a fault where there are more than `most` entries.
    """
    left = most
    waiting = [below]
    while waiting:
        name = waiting.pop()
        try:
            with os.scandir(root / name if name else root) as found:
                entries = sorted(islice(found, left + 1), key=lambda e: e.name)
        except OSError as why:
            yield Entry(name, True, f"a folder that cannot be listed: {why.strerror}")
            continue
        if len(entries) > left:
            yield Entry(name, True, f"more than {most} files in all")
            return
        left -= len(entries)
        folders: list[str] = []
        for entry in entries:
            told = _entry(entry, f"{name}/{entry.name}" if name else entry.name)
            yield told
            if told.folder and told.fault is None:
                folders.append(told.name)
        waiting += reversed(folders)


def _entry(entry: os.DirEntry[str], name: str) -> Entry:
    try:
        told = entry.stat(follow_symlinks=False)
    except OSError as why:
        return Entry(name, False, f"what cannot be looked at: {why.strerror}")
    mode = told.st_mode
    if stat.S_ISLNK(mode):
        return Entry(name, False, "a symbolic link")
    if stat.S_ISDIR(mode):
        deep = name.count("/") >= MAX_DEPTH
        return Entry(name, True, f"a folder more than {MAX_DEPTH} deep" if deep else None)
    fault = None if stat.S_ISREG(mode) else "a device, FIFO or socket"
    return Entry(name, False, fault, told.st_size, told.st_nlink)


def _must_be_plain(there: os.stat_result) -> None:
    if not stat.S_ISREG(there.st_mode):
        found = "a symbolic link" if stat.S_ISLNK(there.st_mode) else "a folder, device, FIFO or socket"
        raise UnfitFileError("file", found, "a plain file: nothing may leave the folder")
