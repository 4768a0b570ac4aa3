"""A scaffolded method runs, passes conformance, and overwrites nothing."""

import importlib.util
import subprocess
import sys
import tomllib

import pytest

from datasets_registry.errors import RequestError
from methods.conformance import check
from methods.scaffold import scaffold


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "methods" / "catalog").mkdir(parents=True)
    return tmp_path


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registry(monkeypatch):
    from methods import registry

    registry.built_in()
    monkeypatch.setattr(registry, "_BUILT_IN", dict(registry._BUILT_IN))
    return registry


def test_a_scaffolded_method_passes_conformance(checkout, registry):
    written = scaffold("my-method", checkout)
    assert [p.relative_to(checkout).as_posix() for p in written] == [
        "methods/catalog/my_method.py",
        "tests/test_my_method.py",
    ]
    cls = _module(written[0]).MyMethod
    assert registry.find("my-method") is cls
    assert [r for r in check(cls) if r.status == "failed"] == []


def test_a_scaffolded_package_passes_conformance_and_names_its_entry_point(tmp_path):
    project, method, test = scaffold("far-away", tmp_path, plugin=True)
    told = tomllib.loads(project.read_text())
    assert told["project"]["entry-points"]["hetpref.methods"] == {"far-away": "hetpref_far_away:FarAway"}
    assert [r for r in check(_module(method).FarAway) if r.status == "failed"] == []
    assert "from hetpref_far_away import FarAway" in test.read_text()


def test_what_is_scaffolded_is_clean(checkout):
    pytest.importorskip("ruff")
    scaffold("my-method", checkout)
    scaffold("far-away", checkout, plugin=True)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--no-cache"]
    done = subprocess.run([*command, "--select=E,F,I,B,UP,SIM,RUF", str(checkout)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["My", "-a", "a_b", "", "a b", "../a", "a.py"])
def test_bad_names_are_refused(checkout, name):
    with pytest.raises(RequestError, match="allowed are small letters"):
        scaffold(name, checkout)
    assert list((checkout / "methods" / "catalog").iterdir()) == []


def test_taken_names_existing_files_and_other_folders_are_refused(checkout, tmp_path):
    with pytest.raises(RequestError, match="is taken"):
        scaffold("pooled-bt", checkout)
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_my_method.py").write_text("mine")
    with pytest.raises(RequestError, match="exists already"):
        scaffold("my-method", checkout)
    assert (checkout / "tests" / "test_my_method.py").read_text() == "mine"
    assert not (checkout / "methods" / "catalog" / "my_method.py").exists()
    with pytest.raises(RequestError, match="not a checkout"):
        scaffold("my-method", tmp_path / "elsewhere")
