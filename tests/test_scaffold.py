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


@pytest.mark.parametrize(
    ("name", "module", "cls"),
    [
        ("import", "method_import", "Import"),
        ("class", "method_class", "Class"),
        ("2fast", "method_2fast", "Method2fast"),
        ("con", "method_con", "Con"),
        ("lpt1", "method_lpt1", "Lpt1"),
        ("none", "none", "MethodNone"),
        ("pairs", "pairs", "MethodPairs"),
        ("linear-method", "linear_method", "MethodLinearMethod"),
    ],
)
def test_a_name_that_no_module_can_have_gets_another_module(checkout, registry, name, module, cls):
    package = scaffold(name, checkout, plugin=True)[1]
    method, test = scaffold(name, checkout)
    assert (method.name, test.name) == (f"{module}.py", f"test_{module}.py")
    made = getattr(_module(method), cls)
    assert registry.find(name) is made
    assert {r.status for r in check(made)} <= {"passed", "skipped"}
    assert package.stem.isidentifier()
    assert getattr(_module(package), cls).spec.name == name


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot write .* \(.+\); choose a folder"):
        scaffold("my-method", tmp_path / "file", plugin=True)


@pytest.mark.parametrize("name", ["a" * 65, "My", "-a", "a_b", "", "a b", "../a", "a.py"])
def test_bad_names_are_refused(checkout, name):
    with pytest.raises(RequestError, match="allowed are 1 to 64 small letters"):
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
    with pytest.raises(RequestError, match=r"not a checkout.*with --plugin"):
        scaffold("my-method", tmp_path / "elsewhere")
