"""Mutations of a bundle: of its files by name, of its folder, and of a zip archive of it."""

import hashlib
import io
import json
import os
import stat
import warnings
import zipfile

from fuzz.mutations import mutate_bytes, mutate_json, mutate_margins, signed

# Names of members that would leave the folder, or that no system takes for what they are.
UNSAFE_NAMES = (
    "../x.txt",
    "/x.txt",
    "C:/x.txt",
    "a\\b.txt",
    "..\\x.txt",
    "a//b.txt",
    "./a.txt",
    "a/../b.txt",
    "é.txt",
    ".x",
    "a\nb",
)


def resigned(files, *, counts):
    """Write the digests of all files into the manifest and, with `counts`, what the records say."""
    try:
        told = json.loads(files["manifest.json"])
        told["files"] = {n: hashlib.sha256(raw).hexdigest() for n, raw in files.items() if n != "manifest.json"}
        if counts:
            records = [json.loads(raw) for n, raw in files.items() if n.startswith("records/")]
            told["records"] = len(records)
            told["truncated"] = sum(r["counts"]["truncated"] for r in records)
            told["failed"] = sum(r["status"] != "ok" for r in records)
            told["dirty"] = any(r["source"]["dirty"] for r in records)
            told["commits"] = sorted({r["source"]["commit"] or "unknown" for r in records})
        return {**files, "manifest.json": json.dumps(told).encode()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return files  # what cannot be read cannot be counted


def mutate_files(rng, files, others):
    """Return files by name of a bundle that was changed; digests and counts are often made right again."""
    out = dict(files)
    records = [n for n in out if n.startswith("records/")]
    name, kind = rng.choice(sorted(out)), rng.randrange(12)
    record = rng.choice(records)
    if kind == 0:
        del out[name]
    elif kind == 1:
        extra = (
            f"records/a/b/{'0' * 64}.json",
            "records/x.json",
            "margins/x.parquet",
            "run.py",
            "a.txt",
            "README.md",
            "a.pkl",
        )
        raw = rng.choice(
            (b"text\n", b"\x80\x04.", b"PK\x03\x04", b"{}", out[record], b"a\x1b[2Jb", b"\xff\xfe", b"\0" * 999)
        )
        out[
            rng.choice(
                (*extra, "kernels/a.json", "card.json", "a.zip", "Manifest.json", name.swapcase(), name + ".bak")
            )
        ] = raw
    elif kind == 2:
        out[rng.choice((name.upper(), name + "x", "x/" + name, name.replace("/", "/x/", 1), f"other{name}"))] = out.pop(
            name
        )
    elif kind == 3:
        out[name] = mutate_bytes(rng, out[name])
    elif kind == 4:
        out["manifest.json"] = mutate_json(rng, out["manifest.json"])
    elif kind == 5:
        one, two = rng.sample(sorted(out), 2)
        out[one], out[two] = out[two], out[one]
    elif kind == 6:
        told = json.loads(out[record])
        told["method"]["name"] = rng.choice(("other", "random", "shrunk2"))
        out[record] = json.dumps(told).encode()
    elif kind in (7, 8):
        where = rng.choice(("margins", "margins.validation"))
        told = json.loads(out[record])["margins"]
        ref = told if where == "margins" else told["validation"]
        out = signed(out, record, mutate_margins(rng, out[ref["path"]], others), where)
    else:
        out[record] = mutate_json(rng, out[record], [json.loads(files[n]) for n in records])
    if kind != 4 and rng.random() < 0.8:
        out = resigned(out, counts=rng.random() < 0.5)
    return out


def place_specials(rng, root, files, outside):
    """Put a link, a FIFO or a hard link into a bundle's folder, sometimes in a file's place; returns what was done."""
    name = rng.choice(sorted(files))
    path, kind = root / name, rng.randrange(6)
    if kind == 0:
        path.unlink()
        path.symlink_to(outside / name)
    elif kind == 1:
        path.unlink()
        os.mkfifo(path)
    elif kind == 2:
        path.unlink()
        os.link(outside / name, path)
    elif kind == 3:
        (root / "more.txt").symlink_to("/etc/passwd")
    elif kind == 4:
        top = name.split("/")[0]
        (root / top).rename(root.parent / "aside")
        (root / top).symlink_to(root.parent / "aside")
    else:
        path.unlink()
        path.mkdir()
    return f"special {kind} at {name}"


def zipped(files, *, method=zipfile.ZIP_DEFLATED, top="", patch=None):
    """Return a zip archive of files by name; `patch` may change each member's header."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(sink, "w", method) as archive:
            for name, raw in files.items():
                info = zipfile.ZipInfo(top + name)
                info.compress_type = method
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                if patch:
                    patch(info)
                archive.writestr(info, raw)
    return sink.getvalue()


def mutate_zip(rng, files, others):
    """Return an archive of a bundle that was changed, as files or as an archive."""
    kind = rng.randrange(14)
    if kind < 3:
        return zipped(mutate_files(rng, files, others), top=rng.choice(("", "", "my-method/")))
    name = rng.choice(sorted(files))
    if kind == 3:
        return zipped({**files, rng.choice(UNSAFE_NAMES): b"x"})
    if kind == 4:
        mode = rng.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR, stat.S_IFREG, 0))
        return zipped(files, patch=lambda i: setattr(i, "external_attr", mode << 16) if i.filename == name else None)
    if kind == 5:
        return zipped(
            files, method=rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED))
        )
    if kind == 6:
        raw = bytearray(zipped(files))
        # Of a central header: flags, method, sizes, name length.
        at = raw.rfind(b"PK\x01\x02") + rng.choice((8, 10, 20, 24, 28, 30, 34, 38, 42))
        raw[at] = rng.choice((0, 1, 8, 0x40, 0xFF))
        return bytes(raw)
    if kind == 7:
        raw = zipped(files)
        return rng.choice((raw + b"x", b"MZ" + raw, raw[:-1], raw[:-22], raw + raw, raw[:-2] + b"\x01\x00c"))
    if kind == 8:
        sink = io.BytesIO(zipped(files))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(sink, "a") as archive:
                archive.writestr(
                    rng.choice((name, name.upper(), name + "/", name + "/x.txt", "x.txt")), rng.choice((b"", b"x"))
                )
        return sink.getvalue()
    if kind == 9:
        return zipped({**files, "a.txt": b"\0" * rng.choice((10, 5 << 20)), "b.zip": zipped({"a.txt": b"x"})})
    if kind == 10:
        raw = bytearray(zipped(files))
        raw[-22 + rng.randrange(22)] = rng.choice((0, 1, 0xFF))
        return bytes(raw)
    if kind == 11:
        return zipped(
            {n: files[n] for n in rng.sample(sorted(files), len(files))}, top=rng.choice(("", "a/", "a/b/", "A@1/"))
        )
    return mutate_bytes(rng, zipped(files))
