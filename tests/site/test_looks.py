"""How the page looks: light, dark and narrow, with screenshots; no serious violation of axe-core's rules."""

import importlib.util
from pathlib import Path

import pytest

GRAVE = {"serious", "critical"}


def axe_source():
    """Return axe-core as `axe-playwright-python` carries it."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe-playwright-python is not installed: tox run -e site")
    return (Path(next(iter(found.submodule_search_locations))) / "axe.min.js").read_text(encoding="utf-8")


def opened_out(page):
    """Open everything that opens, and draw every figure."""
    for details in page.locator("details").all():
        details.evaluate("details => { details.open = true; }")
    for figure in page.locator(".figure").all():
        figure.evaluate("figure => figure.scrollIntoView()")
        page.wait_for_function("figure => figure.dataset.state === 'drawn'", arg=figure.element_handle())
    page.evaluate("scrollTo(0, 0)")


def violations(page):
    told = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        (v["id"], v["impact"], [node["html"][:160] for node in v["nodes"][:3]])
        for v in told["violations"]
        if v["impact"] in GRAVE
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, folder, screenshots, scheme):
    source = axe_source()
    with visit(folder, color_scheme=scheme) as page:
        page.evaluate(source)
        page.screenshot(path=screenshots / f"{scheme}.png")
        assert violations(page) == []
        opened_out(page)
        page.add_style_tag(content=".block { content-visibility: visible !important; }")
        page.screenshot(path=screenshots / f"{scheme}-whole.png", full_page=True)
        assert violations(page) == []
        page.locator(".board tbody th button").first.click()
        page.screenshot(path=screenshots / f"{scheme}-row.png")
        assert violations(page) == []


def test_dark_is_dark_and_figures_follow(visit, folder):
    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    with visit(folder, color_scheme="light") as page:
        figure = page.locator(".figure").first
        figure.evaluate("figure => figure.scrollIntoView()")
        ink = "() => document.querySelector('.figure .role-axis-label text')?.getAttribute('fill')"
        page.wait_for_function(ink)
        light = (background(page), page.evaluate(ink))
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"before => ({ink})() !== before", arg=light[1])
        assert background(page) != light[0]


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_page_is_used_without_scrolling_sideways(visit, folder, screenshots, width):
    source = axe_source()
    with visit(folder, width=width, height=740, has_touch=True) as page:
        page.screenshot(path=screenshots / f"{width}px.png")
        opened_out(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".block").first.evaluate("block => block.scrollIntoView()")
        page.screenshot(path=screenshots / f"{width}px-table.png")
        page.locator(".figures").first.evaluate("figures => figures.scrollIntoView()")
        page.screenshot(path=screenshots / f"{width}px-figures.png")
        # The method's name stays in sight while its numbers are scrolled.
        scroll = page.locator(".block .scroll").first
        scroll.evaluate("scroll => { scroll.scrollLeft = 400; }")
        name = page.locator(".board tbody th button").first
        assert 0 <= name.bounding_box()["x"] < width / 2
        name.click()
        box = page.locator("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        page.screenshot(path=screenshots / f"{width}px-row.png")
        page.evaluate(source)
        assert violations(page) == []
