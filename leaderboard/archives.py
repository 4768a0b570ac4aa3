"""A bundle in one .zip file: taken apart into a fresh folder, without trusting a word that its headers say."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from leaderboard.plain_files import UnfitFileError
from leaderboard.records import RELATIVE_PATH
from leaderboard.refusals import Report

MAX_ARCHIVE_BYTES = 1 << 30
MAX_UNPACKED_BYTES = 2 << 30
MAX_MEMBERS = 20_000
MAX_MEMBER_BYTES = 256 << 20
MAX_RATIO = 100
MAX_DIRECTORY_BYTES = 8 << 20
_RATIO_FROM = 1 << 20
_CHUNK = 1 << 16
_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = 20
_NAME = re.compile(RELATIVE_PATH)
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def is_archive(path: Path) -> bool:
    """Return whether a file is to be read as an archive: by its suffix, or by how it begins."""
    if path.suffix.lower() == ".zip":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def unpack(path: Path, folder: Path, report: Report) -> Path | None:
    """Unpack the members of an archive that are safe into an empty folder, and report why any other is not.

    Returns the folder of the bundle: `folder`, or the one folder that everything stands in; None where there is nothing
    that could be looked at. What is written is bounded while it is written, whatever the headers say.
    """
    try:
        _check_end(path)
        with zipfile.ZipFile(path) as archive:
            safe = [info for info in _members(archive, path.name, report) if not info.is_dir()]
            left = MAX_UNPACKED_BYTES
            for info in safe:
                left -= _extract(archive, info, folder, min(left, MAX_MEMBER_BYTES), path.name, report)
    except UnfitFileError as why:
        report(path.name, why.part, why.found, why.required)
        return None
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, RuntimeError, NotImplementedError) as why:
        said = why.strerror if isinstance(why, OSError) and why.strerror else why
        report(path.name, "archive", f"{type(why).__name__}: {said}", "a zip file of a bundle")
        return None
    names = [info.filename for info in safe]
    tops = {name.partition("/")[0] for name in names}
    if len(tops) == 1 and all("/" in name for name in names):
        return folder / tops.pop()
    return folder


def _check_end(path: Path) -> None:
    """Raise UnfitFileError unless the archive's directory is of a size that can be read, and ends the file."""
    with path.open("rb") as file:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnfitFileError("file", "no plain file", "a plain file")
        size = file.seek(0, 2)
        if size > MAX_ARCHIVE_BYTES:
            raise UnfitFileError("size", size, f"at most {MAX_ARCHIVE_BYTES} bytes")
        file.seek(max(0, size - _END.size - _ZIP64_LOCATOR))
        tail = file.read()
    if len(tail) < _END.size:
        raise UnfitFileError("archive", f"{size} bytes", "a zip file")
    mark, disk, first, here, members, length, start, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment or disk or first or here != members:
        raise UnfitFileError("archive", "another end", "a zip file of one part, with nothing after its directory")
    if tail[: -_END.size].startswith(b"PK\x06\x07"):
        raise UnfitFileError("archive", "zip64", "a zip file of the usual form")
    if members > MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise UnfitFileError(
            "members", members, f"at most {MAX_MEMBERS}, in a directory of {MAX_DIRECTORY_BYTES} bytes"
        )
    if start + length + _END.size != size:
        raise UnfitFileError("archive", "bytes that belong to no member", "a zip file and nothing else")


def _members(archive: zipfile.ZipFile, name: str, report: Report) -> Iterator[zipfile.ZipInfo]:
    """Yield the members that may be unpacked; every reason against any other is reported."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        report(name, "members", len(infos), f"at most {MAX_MEMBERS}")
        return
    files = {info.filename.casefold() for info in infos if not info.is_dir()}
    seen: dict[str, str] = {}
    for info in infos:
        faults = list(_faults(info))
        plain = info.filename.rstrip("/")
        if (there := seen.setdefault(plain.casefold(), plain)) is not plain:
            same = "stands twice" if there == plain else f"differs from {there} in case only"
            faults.append(("name", same, "each name once, in whatever case"))
        parts = plain.casefold().split("/")
        if any("/".join(parts[:n]) in files for n in range(1, len(parts))):
            faults.append(("name", "a file that stands in another file", "folders that are no files"))
        for field, found, required in faults:
            report(info.orig_filename, f"member.{field}", found, required)
        if not faults:
            yield info


def _faults(info: zipfile.ZipInfo) -> Iterator[tuple[str, object, str]]:
    plain = info.orig_filename.removesuffix("/")
    if info.filename != info.orig_filename:
        yield "name", info.filename, "one name for every reader"
    if not _NAME.fullmatch(plain) or len(plain) > 300 or max(map(len, plain.split("/"))) > 200:
        required = "a relative path of letters, digits and @+=._- that does not leave the folder"
        yield "name", info.orig_filename, required
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        found = "a symbolic link" if kind == stat.S_IFLNK else f"a special file, mode {kind:o}"
        yield "file", found, "a plain file or folder: nothing may leave the folder"
    if info.flag_bits & 0x2041:
        yield "encryption", "encrypted", "plain: nobody is asked for a password"
    if info.compress_type not in _PACKED:
        yield "compression", info.compress_type, "stored or deflated"
    if info.is_dir() and info.file_size:
        yield "size", info.file_size, "0 for a folder"


def _extract(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path, most: int, name: str, report: Report
) -> int:
    """Write one member and return how many bytes; raises UnfitFileError where it is more than `most` or too dense."""
    target, size = folder / info.filename, 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as packed, target.open("xb") as out:
            while chunk := packed.read(_CHUNK):
                size += len(chunk)
                if size > most:
                    raise UnfitFileError(f"{info.filename[:120]}: size", f"more than {most} bytes", f"at most {most}")
                if size > _RATIO_FROM and size > MAX_RATIO * max(1, info.compress_size):
                    told = f"more than {MAX_RATIO} bytes of each packed one"
                    raise UnfitFileError(f"{info.filename[:120]}: ratio", told, f"at most {MAX_RATIO}")
                out.write(chunk)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, struct.error) as why:
        said = why.strerror if isinstance(why, OSError) and why.strerror else why
        report(info.orig_filename, "member.content", f"{type(why).__name__}: {said}", "a member that can be unpacked")
        target.unlink(missing_ok=True)
    return size
