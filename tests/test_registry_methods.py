"""The registry of methods: plug-ins by real entry points, and constructors that break the rules."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys

import pytest

from datasets_registry.errors import MethodError, RequestError
from methods.registry import create, find, listing

PLUGIN = '''
from dataclasses import replace
from methods.catalog.pooled_bt import PooledBT

class Mine(PooledBT):
    spec = replace(PooledBT.spec, name={name!r})

    def __init__({arguments}):
        {body}
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a real distribution with an entry point on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"method_plugin_{tmp_path.name.replace('-', '_')}"

    def put(arguments="self, *, ridge=1.0", body="self.ridge = ridge", name="mine", before=""):
        (tmp_path / f"{module}.py").write_text(before + PLUGIN.format(name=name, arguments=arguments, body=body))
        info = tmp_path / f"{module}-3.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 3.2\n")
        (info / "entry_points.txt").write_text(f"[hetpref.methods]\n{name} = {module}:Mine\n")
        importlib.invalidate_caches()

    yield put
    sys.modules.pop(module, None)


def row_of(name):
    return next(row for row in listing() if row.name == name)


def test_a_plugin_is_listed_and_created(install):
    install()
    assert (row_of("mine").version, row_of("mine").unavailable) == ("3.2", None)
    assert create("mine", ridge=2.0).config == {"ridge": 2.0}
    with pytest.raises(RequestError, match=r"Did you mean 'ridge'"):
        create("mine", ridg=2.0)
    with pytest.raises(RequestError, match="unknown option of mine 'name'"):
        create("mine", name="x")


@pytest.mark.parametrize(
    ("arguments", "body", "said"),
    [
        ("self, *, ridge=1.0", "1 / 0", "'mine' cannot be constructed: ZeroDivisionError: division by zero"),
        ("self, *, ridge=1.0", "raise SystemExit(3)", "'mine' cannot be constructed: SystemExit: 3"),
        ("self, *, ridge=1.0", "pass", "'mine' cannot be constructed: AttributeError"),
        ("self, ridge=1.0", "self.ridge = ridge", "'ridge=1.0' of the constructor of the method 'mine' must be key"),
        ("self, *, ridge", "self.ridge = ridge", "'ridge' of the constructor of the method 'mine' must be keyword"),
        ("self, *args", "pass", r"'\*args' of the constructor of the method 'mine' must be keyword-only"),
        ("self, *, ridge=lambda: 1", "self.ridge = ridge", "ridge=<function .* of the method 'mine' cannot be written"),
        ("self, *, ridge=float('nan')", "self.ridge = ridge", "ridge=nan of the method 'mine' cannot be written"),
        ("self, *, ridge=1.0", "self.ridge = object()", "ridge=<object .*cannot be written as JSON"),
    ],
)
def test_a_bad_constructor_is_a_method_error_that_names_the_method(install, arguments, body, said):
    install(arguments, body)
    with pytest.raises(MethodError, match=said) as caught:
        create("mine")
    assert "\n" not in str(caught.value)


def test_an_option_that_is_no_json_is_refused():
    with pytest.raises(MethodError, match=r"ridge=<object .* of the method 'pooled-bt' cannot be written as JSON"):
        create("pooled-bt", ridge=object())


@pytest.mark.parametrize("name", ["Mine", "my_method", "a" * 65])
def test_a_bad_name_is_a_row_and_an_error(install, name):
    install(name=name)
    assert "is no name for a method; allowed: 1 to 64 small letters" in row_of(name).unavailable
    with pytest.raises(MethodError, match="is no name for a method"):
        find(name)


def test_what_a_plugin_prints_goes_to_stderr(install, capsys):
    install(before="print('imported')\n", body="print('made'); self.ridge = ridge")
    assert row_of("mine").unavailable is None
    create("mine")
    told = capsys.readouterr()
    assert told.out == ""
    assert "imported\n" in told.err
    assert "made\n" in told.err


def test_the_listing_stays_json_beside_a_plugin_that_prints(install, capsys):
    from benchmarks.cli import main

    install(before="print('imported')\n")
    with contextlib.suppress(SystemExit):
        main(["methods", "--json"])
    assert "mine" in {row["name"] for row in json.loads(capsys.readouterr().out)}
