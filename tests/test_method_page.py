"""`docs/methods.md` is what the specs make it, and the field is on it."""

from pathlib import Path

from benchmarks.method_page import method_page
from methods.registry import built_in, listing

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def test_the_page_is_renewed_with_the_specs():
    told = method_page(listing())
    assert PAGE.read_text(encoding="utf-8") == told, "run: hetpref methods --page docs/methods.md"


def test_every_built_in_has_a_section_with_what_it_differs_in():
    page = PAGE.read_text(encoding="utf-8")
    for name, cls in built_in().items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for asked in ("Parameters", "Without a history", "Needs", "Options", "Deviations"):
            assert f"- {asked}: " in section, (name, asked)
        assert f"    {cls.spec.equation}\n" in section


def test_the_field_is_here():
    assert len([cls for cls in built_in().values() if cls.spec.role == "method"]) >= 25
