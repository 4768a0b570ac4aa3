"""A bundle in a zip file, and a bundle's folder that holds what is no plain file: nothing leaves, nothing waits."""

import os
import shutil
import stat
import struct
import zipfile
import zlib

import pytest
from fuzz.bundle_mutations import UNSAFE_NAMES, resigned, zipped
from fuzz.originals import originals

from leaderboard import archives
from leaderboard.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return originals(tmp_path_factory.mktemp("archives"))


@pytest.fixture
def check(made, tmp_path):
    def checked(raw):
        path = tmp_path / "bundle.zip"
        path.write_bytes(raw)
        return {(r.file, r.field) for r in verify(path, made.labels)}

    return checked


@pytest.fixture
def folder(made, tmp_path):
    for name, raw in made.bundle.items():
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_bytes(raw)
    return tmp_path / "b"


def patched(name, **values):
    def patch(info):
        if info.filename == name:
            for key, value in values.items():
                setattr(info, key, value)

    return patch


@pytest.mark.parametrize("top", ["", "my-method/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_a_bundle_is_accepted(made, check, top, method):
    assert check(zipped(made.bundle, method=method, top=top)) == set()


def test_a_zip_is_known_by_how_it_begins_and_leaves_nothing_behind(made, tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "bundle.json").write_bytes(zipped(made.bundle))
    assert verify(tmp_path / "bundle.json", made.labels) == []
    assert not list((tmp_path / "t").iterdir())


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_a_member_that_would_leave_the_folder_is_named(made, check, tmp_path, name):
    before = set(tmp_path.parent.rglob("*"))
    assert (name.replace("\0", ""), "member.name") in check(zipped({**made.bundle, name: b"x"}))
    assert not {p.name for p in set(tmp_path.parent.rglob("*")) - before} & {"x.txt", "b.txt"}


def test_a_name_with_nul_is_named(made, check):
    raw = zipped({**made.bundle, "a_b.txt": b"x"}).replace(b"a_b.txt", b"a\0b.txt")
    assert ("ab.txt", "member.name") in check(raw)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_a_special_member_is_named(made, check, kind):
    raw = zipped(made.bundle, patch=patched("manifest.json", external_attr=kind << 16))
    assert ("manifest.json", "member.file") in check(raw)


def test_every_reason_of_an_archive_is_listed(made, check):
    record = next(n for n in made.bundle if n.startswith("records/"))
    files = {**made.bundle, "run.py": b"x", "a.zip": zipped({"x": b"x"}), "../up": b"x", record.upper(): b"{}"}
    found = check(zipped(files))
    assert {("run.py", "file"), ("a.zip", "file"), ("../up", "member.name")} <= found
    assert {(record.upper(), "member.name"), ("run.py", "manifest")} <= found


def test_encrypted_members_and_other_compression_are_named(made, check):
    raw = bytearray(zipped({**made.bundle, "a.txt": b"x"}))
    raw[raw.rfind(b"PK\x01\x02") + 8] |= 1
    assert ("a.txt", "member.encryption") in check(bytes(raw))
    assert ("manifest.json", "member.compression") in check(zipped(made.bundle, method=zipfile.ZIP_LZMA))


def test_what_is_unpacked_is_bounded_whatever_the_headers_say(made, check, monkeypatch):
    dense = zipped({**made.bundle, "a.txt": b"\0" * (5 << 20)})
    assert {field for _, field in check(dense)} == {"a.txt: ratio"}
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 10_000)
    assert any(field.endswith(": size") for _, field in check(zipped(made.bundle)))
    monkeypatch.undo()
    # A header that says less than there is: what it says is read, and is not what the checksum is of.
    lying = bytearray(zipped({**made.bundle, "a.txt": b"x" * 1000}, method=zipfile.ZIP_STORED))
    at = lying.rfind(b"PK\x01\x02") + 20
    lying[at : at + 8] = struct.pack("<LL", 10, 10)
    assert ("a.txt", "member.content") in check(bytes(lying))
    assert zlib.crc32(b"x" * 10) != zlib.crc32(b"x" * 1000)


def test_the_number_of_members_is_bounded_before_they_are_listed(made, check, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    assert check(zipped(made.bundle)) == {("bundle.zip", "members")}


@pytest.mark.parametrize(
    "change", [lambda r: r + b"x", lambda r: b"MZ" + r, lambda r: r[:-30], lambda r: b"PK\x03\x04"]
)
def test_what_is_more_or_less_than_a_zip_is_refused(made, check, change):
    assert {file for file, _ in check(change(zipped(made.bundle)))} == {"bundle.zip"}


def test_a_zip_of_no_bundle_is_refused(made, check):
    assert ("manifest.json", "file") in check(zipped({"a.txt": b"x"}))
    assert ("manifest.json", "file") in check(zipped({}))


def test_a_folder_is_accepted_until_something_in_it_is_no_plain_file(made, folder, tmp_path):
    assert verify(folder, made.labels) == []
    margins = next(n for n in made.bundle if n.endswith(".parquet"))
    outside = tmp_path / "outside"
    shutil.copy(folder / margins, outside)
    for put, said in (
        (lambda at: os.mkfifo(at), "FIFO"),
        (lambda at: at.symlink_to(outside), "symbolic link"),
        (lambda at: os.link(outside, at), "hard link"),
        (lambda at: at.mkdir(), "named, but not there"),
    ):
        at = folder / margins
        at.unlink()
        put(at)
        reasons = verify(folder, made.labels)
        assert any(said in r.found for r in reasons if r.file == margins), reasons
        at.rmdir() if at.is_dir() and not at.is_symlink() else at.unlink()
        shutil.copy(outside, at)


def test_a_folder_of_a_bundle_that_is_a_link_is_not_entered(made, folder, tmp_path):
    for top in ("records", "margins"):
        (folder / top).rename(tmp_path / top)
        (folder / top).symlink_to(tmp_path / top)
        assert (top, "file") in {(r.file, r.field) for r in verify(folder, made.labels)}
        (folder / top).unlink()
        (tmp_path / top).rename(folder / top)


def test_a_fifo_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    assert "FIFO" in verify(tmp_path / "a.json")[0].found
    (tmp_path / "b.json").symlink_to("/dev/zero")
    assert "symbolic link" in verify(tmp_path / "b.json")[0].found


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("notes.txt", b"a\x1b[2Jb"),
        ("notes.md", b"\xff\xfe"),
        ("card.json", b"{'a': 1}"),
        ("margins/made@1/shrunk/more.parquet", b"PAR1"),
        ("records/made@1/shrunk/deep/x.json", b"{}"),
        ("records/x.json", b"{}"),
        ("Manifest.json", b"{}"),
    ],
)
def test_what_stands_in_a_bundle_and_is_no_part_of_it_is_named(made, folder, name, raw):
    files = resigned({**made.bundle, name: raw}, counts=False)
    for each in (name, "manifest.json"):
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).write_bytes(files[each])
    assert name.casefold() in {r.file.casefold() for r in verify(folder, made.labels)}


def test_notes_that_the_manifest_names_are_accepted(made, folder):
    files = resigned({**made.bundle, "README.md": "Grüße\r\n".encode()}, counts=True)
    for each in ("README.md", "manifest.json"):
        (folder / each).write_bytes(files[each])
    assert verify(folder, made.labels) == []
