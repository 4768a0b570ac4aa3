"""Start a new method: a file that runs and passes conformance, and its test; in a checkout or as its own package."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from datasets_registry.errors import RequestError
from methods.registry import GROUP, NAME, NAMES, listing

# Windows opens a device for a file of such a name, whatever its ending.
_DEVICES = re.compile(r"con|prn|aux|nul|(?:com|lpt)[0-9]")

METHOD = '''"""TITLE (paper, arXiv id): one sentence on the idea.

    r_u(x) = <theta_u, phi(x)>,   theta_u [d] = argmin NLL_u + ridge/2 |theta_u - theta|^2,   theta [d] shared

Where this differs from the paper and its code, say so in the spec's `deviations`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.records import Comparisons, Float32
from methods.bradley_terry import Logistic, Pairs, pooled
from methods.interface import Budget, Histories, LinearMethod, MethodSpec, UserState, World, stack, unstack
REGISTER_IMPORT

REGISTER
class CLASS(LinearMethod):
    """One sentence: what is learned, and from what."""

    spec = MethodSpec(
        name="NAME",
        title="TITLE",
        level="feature",
        adaptation="closed-form",
        citation="unpublished",
        equation="r_u(x) = <theta_u, phi(x)>; theta [d] shared, theta_u [d] per user",
        shared_parameters="d",
        per_user_parameters="d",
        cold_start="theta",
        deviations="none",
    )

    def __init__(self, *, ridge: float = 3.0) -> None:
        self.ridge = ridge

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn what everybody shares."""
        self.world = world
        pairs, _ = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        self.theta_ = pooled(pairs, self.ridge).astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return each person's weights from the history alone, which may be empty."""
        pairs = Pairs.of(self.world, Histories.of(history), self.scale_)
        base = pairs.project(self.theta_[:, None])[:, 0]
        deviation = Logistic.of(pairs, pairs.design(), base).modes(self.ridge)
        return unstack(theta=((self.theta_ + deviation) * self.scale_).astype(np.float32))

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return theta_u, float32 [n_states, d]."""
        return stack(states, "theta")
'''

TEST = '''IMPORT
def test_conformance():
    assert [r for r in check(SUBJECT) if r.status == "failed"] == []
'''

OWN = "from MODULE import CLASS\n\n"

PYPROJECT = '''[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "hetpref-NAME"
version = "0.1.0"
description = "TITLE: a method for hetpref"
requires-python = ">=3.11"
dependencies = ["hetpref"]

[project.entry-points."GROUP"]
NAME = "MODULE:CLASS"

[tool.setuptools]
py-modules = ["MODULE"]
'''


def scaffold(name: str, folder: Path, *, plugin: bool = False) -> list[Path]:
    """Write a new method and its test under `folder`, and return the files.

    In a checkout (`folder` is its root) these are methods/catalog/NAME.py and tests/test_NAME.py. With `plugin` it is a
    package of its own, folder/hetpref-NAME, whose entry point makes the method known once it is installed. A name that
    cannot be a module's, such as `import`, `2fast` or `con`, gets the module method_NAME. Raises
    RequestError on a bad or taken name, on a folder that is no checkout, and rather than overwrite a file.
    """
    if not NAME.fullmatch(name):
        raise RequestError(f"method name {name!r}: allowed are {NAMES}")
    if name in {row.name for row in listing()}:
        raise RequestError(f"the method name {name!r} is taken; choose another. Taken names: hetpref methods")
    module = _module_name(name, plugin)
    written = _package(folder, name, module) if plugin else _checkout(folder, module)
    words = {
        "REGISTER_IMPORT\n": "\n" if plugin else "from methods.registry import register\n\n",
        "REGISTER\n": "" if plugin else "@register\n",
        "IMPORT\n": f"{OWN if plugin else ''}from methods.conformance import check\n\n\n",
        "SUBJECT": "CLASS" if plugin else '"NAME"',
        "MODULE": module,
        "GROUP": GROUP,
        "CLASS": _class_name(name),
        "TITLE": re.sub("[+-]+", " ", name).strip().capitalize(),
        "NAME": name,
    }
    if present := [str(path) for path in written if path.exists()]:
        raise RequestError(f"{', '.join(present)} exists already; remove it or choose another name than {name!r}")
    for path, text in written.items():
        for word, value in words.items():
            text = text.replace(word, value)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as why:
            raise RequestError(f"cannot write {path} ({why.strerror}); choose a folder you can write to") from why
    return list(written)


def _module_name(name: str, plugin: bool) -> str:
    part = re.sub("[+-]", "_", name)
    if plugin:
        return f"hetpref_{part}"
    bad = keyword.iskeyword(part) or part[0].isdigit() or _DEVICES.fullmatch(part)
    return f"method_{part}" if bad else part


def _class_name(name: str) -> str:
    """Return a class name that is neither a keyword (None, True) nor a name that the template imports (Pairs)."""
    stem = "".join(word.capitalize() for word in name.split("-"))
    taken = keyword.iskeyword(stem) or re.search(rf"^from .* import .*\b{stem}\b", METHOD, re.MULTILINE)
    return f"Method{stem}" if taken or not stem[0].isalpha() else stem


def _checkout(folder: Path, module: str) -> dict[Path, str]:
    if not (folder / "methods" / "catalog").is_dir():
        raise RequestError(
            f"{folder} is not a checkout of hetpref (it has no methods/catalog); go to its root, or make a package of "
            "your own with --plugin"
        )
    return {
        folder / "methods" / "catalog" / f"{module}.py": METHOD,
        folder / "tests" / f"test_{module}.py": TEST,
    }


def _package(folder: Path, name: str, module: str) -> dict[Path, str]:
    root = folder / f"hetpref-{name}"
    return {
        root / "pyproject.toml": PYPROJECT,
        root / f"{module}.py": METHOD,
        root / "tests" / f"test_{module}.py": TEST,
    }
