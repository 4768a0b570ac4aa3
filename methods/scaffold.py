"""Start a new method: a file that runs and passes conformance, and its test; in a checkout or as its own package."""

from __future__ import annotations

from pathlib import Path

from datasets_registry.errors import RequestError
from methods.conformance import NAME
from methods.registry import GROUP, listing

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
    package of its own, folder/hetpref-NAME, whose entry point makes the method known once it is installed. Raises
    RequestError on a bad or taken name, on a folder that is no checkout, and rather than overwrite a file.
    """
    if not NAME.fullmatch(name):
        raise RequestError(
            f"method name {name!r}: allowed are small letters, digits and hyphens, starting with a letter or digit, "
            "for instance 'my-method'"
        )
    if name in {row.name for row in listing()}:
        raise RequestError(f"the method name {name!r} is taken; choose another. Taken names: hetpref methods")
    part = name.replace("-", "_")
    module = f"hetpref_{part}" if plugin else part
    written = _package(folder, name, module) if plugin else _checkout(folder, module)
    stem = "".join(word.capitalize() for word in name.split("-"))
    words = {
        "REGISTER_IMPORT\n": "\n" if plugin else "from methods.registry import register\n\n",
        "REGISTER\n": "" if plugin else "@register\n",
        "IMPORT\n": f"{OWN if plugin else ''}from methods.conformance import check\n\n\n",
        "SUBJECT": "CLASS" if plugin else '"NAME"',
        "MODULE": module,
        "GROUP": GROUP,
        "CLASS": stem if stem[0].isalpha() else f"Method{stem}",
        "TITLE": name.replace("-", " ").capitalize(),
        "NAME": name,
    }
    if present := [str(path) for path in written if path.exists()]:
        raise RequestError(f"{', '.join(present)} exists already; remove it or choose another name than {name!r}")
    for path, text in written.items():
        for word, value in words.items():
            text = text.replace(word, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(written)


def _checkout(folder: Path, module: str) -> dict[Path, str]:
    if not (folder / "methods" / "catalog").is_dir():
        raise RequestError(
            f"{folder} is not a checkout of hetpref (it has no methods/catalog); go to its root, or make a package of "
            "your own with plugin=True"
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
