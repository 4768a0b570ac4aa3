"""The compiled kernels are built where there is a compiler, and left out, without an error, where there is none."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from methods.lowrank import native

ROOT = Path(__file__).parent.parent
COMPILER = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
# What python itself may have been compiled with does not matter here.
VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "LDSHARED", "LDCXXSHARED")


def build(folder, compiler):
    """Build the kernels in a copy of what they need, and return the process and where the library should be."""
    script = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert '"-O3"' in script
    # What is checked here does not need the optimisation, which takes most of the time.
    (folder / "setup.py").write_text(script.replace('"-O3"', '"-O0"'), encoding="utf-8")
    package = folder / "methods" / "lowrank"
    shutil.copytree(ROOT / "methods" / "lowrank", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (folder / "methods" / "__init__.py").touch()
    told = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    told |= {"CC": compiler, "CXX": compiler}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True, timeout=300)
    return done, package / native.LIBRARY.name


def test_without_a_compiler_the_installation_goes_on(tmp_path):
    done, library = build(tmp_path, str(tmp_path / "no-such-compiler"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "building extension" in done.stdout + done.stderr
    assert "failed" in done.stdout + done.stderr
    assert not library.exists()
    assert not list(tmp_path.rglob("*.so"))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    done, made = build(tmp_path_factory.mktemp("build"), COMPILER)
    assert done.returncode == 0, done.stderr[-2000:]
    assert made.is_file(), done.stdout + done.stderr
    return made


def test_a_compiler_is_all_it_takes(library):
    loaded = ctypes.CDLL(str(library))
    for name in ("lowrank_abi", "lowrank_call_bytes"):
        getattr(loaded, name).restype = ctypes.c_int64
    assert loaded.lowrank_abi() == native.ABI
    assert loaded.lowrank_call_bytes() == ctypes.sizeof(native._Call)


def test_the_library_needs_neither_python_nor_torch(library):
    if (readelf := shutil.which("readelf")) is None:
        pytest.skip("there is no readelf")
    told = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in told.splitlines() if "(NEEDED)" in line]
    assert any(name.startswith("libc.") for name in needed)
    assert not [name for name in needed if "python" in name or "torch" in name or "c10" in name]
    symbols = subprocess.run([readelf, "-W", "--dyn-syms", library], capture_output=True, text=True, check=True).stdout
    undefined = [line.split()[-1] for line in symbols.splitlines() if " UND " in line]
    assert not [name for name in undefined if name.startswith(("Py", "_Py")) or "torch" in name or "c10" in name]


def test_it_is_found_where_the_package_looks_for_it(library):
    command = [sys.executable, "-c", "from methods.lowrank import native; print(native.unavailable())"]
    told = {name: value for name, value in os.environ.items() if name != "HETPREF_NATIVE"}
    told["PYTHONPATH"] = str(library.parents[2])
    done = subprocess.run(command, cwd=library.parents[2], env=told, capture_output=True, text=True, timeout=120)
    assert done.stdout == "None\n", done.stdout + done.stderr
