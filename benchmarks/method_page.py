"""The page of all built-in methods, `docs/methods.md`, made from their specs by `hetpref methods --page`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from leaderboard.table_cells import escaped, table_line
from methods.interface import MethodSpec
from methods.registry import Listing, find

_START = """# Methods

Made by `hetpref methods --page docs/methods.md` from the specs in `methods/catalog/`; what stands there is what is
measured. Numbers of parameters: d features (or the width of the trunk), n people, L adapted layers; the other letters
are hyper-parameters. A *feature* method works on an encoder's frozen output, a *backbone* method trains inside the
encoder's own model. Controls stand in every table and are never ranked. *Search* is what
`hetpref tune` may try, at most 20 configurations of every method, one of which then serves all datasets. What `fit`
*chooses itself* it chooses within each of them, and anew for every dataset, seed and amount of training data: a method
that does so is tuned more finely than the number of configurations says.

"""
_COLUMNS = ("method", "source", "level", "a person's part", "shared parameters", "per person")


def method_page(rows: Sequence[Listing]) -> str:
    """Return the page of the methods of this distribution: a table, then a section for each."""
    specs = [row.spec for row in rows if row.spec is not None and row.dist == "hetpref"]
    lines = [table_line(_COLUMNS), table_line(["---"] * len(_COLUMNS)), *map(_line, specs)]
    return _START + "\n".join(lines) + "\n" + "".join(f"\n{_section(spec)}" for spec in specs)


def _line(spec: MethodSpec) -> str:
    name = f"[{spec.name}](#{spec.name.replace('+', '')})"
    level = spec.level if spec.role == "method" else f"{spec.level}, control"
    cells = (spec.citation, level, spec.adaptation, spec.shared_parameters, spec.per_user_parameters)
    return table_line((name, *map(escaped, cells)))


def _section(spec: MethodSpec) -> str:
    return "\n".join([f"## {spec.name}", "", *_told(spec), ""])


def _told(spec: MethodSpec) -> Iterable[str]:
    cls = find(spec.name)
    yield f"{escaped(spec.title)}. {escaped(spec.citation)}."
    yield ""
    yield f"    {spec.equation}"
    yield ""
    yield f"- Parameters: shared {escaped(spec.shared_parameters)}; per person {escaped(spec.per_user_parameters)}."
    yield f"- Without a history: {escaped(spec.cold_start)}."
    needs = ", ".join(sorted(spec.needs)) or "nothing but item ids"
    flags = "; transductive: it needs support items that seen people compared" if spec.transductive else ""
    yield f"- Needs: {needs}{flags}."
    yield f"- Options: {_options(cls.hyperparameters()) or 'none'}."
    if cls.search:
        yield f"- Search: {_options({key: list(values) for key, values in cls.search.items()})}."
    if cls.chooses:
        yield f"- Chooses itself: {escaped(cls.chooses)}."
    yield f"- Deviations: {escaped(spec.deviations)}."
    for name, why in sorted(spec.expected_failures.items()):
        yield f'- Expected failure of `hetpref check`, "{escaped(name)}": {escaped(why)}.'


def _options(values: dict[str, object]) -> str:
    return ", ".join(f"`{key}={json.dumps(value)}`" for key, value in values.items())
