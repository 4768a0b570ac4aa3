"""The page in a browser: tables, filters, figures, records, downloads; by keyboard; without scripts; with foul text."""

import re

from site_fixtures import evil

FIRST = ".board >> nth=0"


def column(page, title, table=".board >> nth=0"):
    """Return the texts of a column of a table, of the rows that are shown."""
    return page.locator(table).evaluate(
        """(table, title) => {
            const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === title);
            return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[at].textContent);
        }""",
        title,
    )


def shown(page):
    return int(page.locator("[name=shown]").inner_text().split()[0])


def look_at(page, selector):
    """Scroll to each figure, and wait until it is drawn."""
    figures = page.locator(selector)
    for i in range(figures.count()):
        figures.nth(i).evaluate("figure => figure.scrollIntoView()")
        page.wait_for_function("figure => figure.dataset.state === 'drawn'", arg=figures.nth(i).element_handle())
    return figures


def test_headline_tables_are_there_and_others_when_asked_for(visit, folder, board):
    with visit(folder) as page:
        assert page.locator(".board").count() == len({(r.dataset, r.encoder, r.regime) for r in board.rows})
        assert shown(page) == page.locator(".board tbody tr:visible").count() == sum(r.headline for r in board.rows)
        assert page.locator(".board >> nth=0 >> th:has-text('n train')").is_hidden()
        page.select_option("[name=budget]", "all")
        assert shown(page) == page.locator(".board tbody tr:visible").count() == len(board.rows)
        assert page.locator(".board >> nth=0 >> th:has-text('n train')").is_visible()
        page.select_option("[name=budget]", "")
        assert shown(page) == sum(r.headline for r in board.rows)


def test_a_row_made_by_the_script_is_that_of_the_template(visit, folder):
    with visit(folder) as page:
        before = page.locator(".board tbody tr").evaluate_all("rows => rows.map((row) => row.outerHTML)")
        page.locator(".board tbody tr").evaluate_all("rows => rows.forEach((row) => row.remove())")
        page.select_option("[name=budget]", "all")
        page.select_option("[name=budget]", "")
        after = page.locator(".board tbody tr:visible").evaluate_all("rows => rows.map((row) => row.outerHTML)")
        assert [re.sub(r' (hidden|style)="[^"]*"', "", row) for row in after] == before


def test_columns_sort_down_up_and_back(visit, folder):
    with visit(folder) as page:
        header = page.locator(FIRST).locator("th", has_text="NLL (T)")
        own = column(page, "Method")
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == "ascending"
        values = column(page, "NLL (T)")
        numbers = [float(v) for v in values if v != "–"]
        assert numbers == sorted(numbers)
        assert values[len(numbers) :] == ["–"] * (len(values) - len(numbers))
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == "descending"
        values = column(page, "NLL (T)")
        assert [float(v) for v in values if v != "–"] == numbers[::-1]
        assert values[-1] == "–"
        header.locator("button").click()
        assert header.get_attribute("aria-sort") is None
        assert column(page, "Method") == own
        page.locator(FIRST).locator("th", has_text="Method").locator("button").click()
        assert column(page, "Method") == sorted(own)


def test_filters(visit, folder, board):
    heads = [r for r in board.rows if r.headline]
    with visit(folder) as page:
        page.select_option("[name=regime]", "unseen")
        assert shown(page) == sum(r.regime == "unseen" for r in heads)
        page.select_option("[name=dataset]", "other@1")
        assert shown(page) == sum((r.regime, r.dataset) == ("unseen", "other@1") for r in heads)
        assert page.locator("section[data-dataset]:visible").count() == 1
        page.fill("[name=text]", "BRADLEY")
        assert column(page, "Method", ".board:visible >> nth=0") == ["pooled-bt"]
        page.click("[type=reset]")
        page.wait_for_function("n => document.querySelector('[name=shown]').value === `${n} rows`", arg=len(heads))
        page.select_option("[name=device]", "cpu-x86_64")
        assert shown(page) == sum(r.label != "broken" for r in heads)
        page.select_option("[name=level]", "feature")
        page.fill("[name=text]", "no such method")
        assert shown(page) == 0
        assert page.locator("#overall-table tbody tr:visible").count() == 0


def test_every_row_leads_to_its_records(visit, folder, board):
    row = next(r for r in board.rows if r.headline and r.label == "shrunk")
    with visit(folder) as page:
        button = page.locator(FIRST).locator("tbody th button", has_text="shrunk")
        button.click()
        dialog = page.locator("dialog")
        told = dialog.inner_text()
        for key in row.records:
            assert f"records/{row.dataset}/shrunk/{key}….json" in told
        assert f"{row.acc_macro.value:.3f} [{row.acc_macro.low:.3f}, {row.acc_macro.high:.3f}]" in told
        assert "verified" in told
        assert "Costs on cpu-x86_64" in told
        page.keyboard.press("Escape")
        assert dialog.is_hidden()
        assert button.evaluate("button => button === document.activeElement")
        page.locator("#overall-table tbody th button").first.click()
        page.locator("dialog li button").first.click()
        assert "records/" in dialog.inner_text()
        page.locator("dialog .close").click()
        button.click()
        page.click("dialog >> text=Method card")
        assert page.locator("#method-shrunk").get_attribute("open") is not None
        assert page.locator("#method-shrunk").get_by_text("theta_u = w theta").is_visible()


def test_figures_are_drawn_when_they_are_looked_at(visit, folder):
    with visit(folder) as page:
        assert page.locator(".figure").count() > 8
        assert not page.evaluate("'vegaEmbed' in window")
        assert page.locator(".figure svg").count() == 0
        figures = look_at(page, ".block >> nth=0 >> .figure")
        kinds = figures.evaluate_all("figures => figures.map((f) => f.dataset.figure.split('-')[0])")
        assert kinds == ["curve", "people", "bytes", "memory"]
        for kind in kinds:
            assert page.locator(f"[data-figure^={kind}] svg").first.is_visible()
        # bands under the curves, and rings on the front
        assert page.locator("[data-figure^=curve] >> nth=0 >> svg .mark-area path").count() >= 3
        assert page.locator("[data-figure^=bytes] >> nth=0 >> svg .mark-symbol path").count() > 3
        assert page.locator(".figure svg").count() < page.locator(".figure").count()


def test_figures_show_what_the_table_shows_and_have_their_numbers(visit, folder):
    with visit(folder) as page:
        figure = look_at(page, "[data-figure^=curve] >> nth=0")
        every = figure.locator("svg .role-legend-label text").all_text_contents()
        page.fill("[name=text]", "shrunk")
        figure.evaluate("figure => figure.scrollIntoView()")
        drawn = "figure => figure.querySelectorAll('svg .role-legend-label text').length === 1"
        page.wait_for_function(drawn, arg=figure.element_handle())
        assert figure.locator("svg .role-legend-label text").all_text_contents() == ["shrunk"]
        assert len(every) > 3
        figure.locator("summary").click()
        figure.locator("table").wait_for()
        rows = figure.locator("tbody tr")
        assert rows.count() == 2
        assert all("shrunk" in text for text in rows.all_text_contents())
        # Of what is not on the front, and of controls alone, a figure is drawn without a complaint or says why not.
        for name in ("scaled", "random", "oracle"):
            page.fill("[name=text]", name)
            look_at(page, ".block >> nth=0 >> .figure")
        assert "None of the methods" in page.locator("[data-figure^=bytes] >> nth=0").inner_text()


def test_costs_kernels_and_ledger(visit, folder, board):
    with visit(folder) as page:
        page.locator(".costs summary").first.click()
        page.locator(".costs >> nth=0 >> table").wait_for()
        table = page.locator(".costs >> nth=0 >> table")
        assert "shrunk" in table.inner_text()
        assert table.locator("tbody tr:visible").count() == sum(
            (r.headline, r.dataset, r.regime) == (True, "made@1", "seen") and r.imputed < 1 for r in board.rows
        )
        page.locator(".cells summary").click()
        page.locator(".cells table").wait_for()
        assert page.locator(".cells tbody tr").count() == sum(
            t.role == "ours" for row in board.kernels for t in row.timings
        )
        look_at(page, "[data-figure^=kernel]")
        assert page.locator("[data-figure^=kernel-roofline] svg").count() == 1
        lines = page.locator("#ledger-table tbody tr").all_inner_texts()
        assert len(lines) == len(board.ledger) == 3
        assert "verified" in lines[0]
        assert "reviewer: someone" in lines[0]
        assert "2 attempts" in column(page, "Notes")[column(page, "Method").index("shrunk")]


def test_downloads_are_the_files_beside_the_page(visit, folder):
    own = (folder / "site" / "index.html").as_uri()
    with visit(folder, quiet=False, accept_downloads=True) as page:
        for text, name in (("CSV", "leaderboard.csv"), ("CSV of kernels", "kernels.csv")):
            with page.expect_download() as found:
                page.locator(".downloads").get_by_text(text, exact=True).click()
            assert found.value.path().read_bytes() == (folder / name).read_bytes()
            assert found.value.suggested_filename == name
        # From a file the browser shows what it can show, and saves it elsewhere.
        page.locator(".downloads").get_by_text("JSON", exact=True).click()
        page.wait_for_url((folder / "leaderboard.json").as_uri())
        assert page.locator("body").text_content().strip() == (folder / "leaderboard.json").read_text().strip()
        page.goto(own)
        assert not page.said
        for link in page.locator(".figure a").evaluate_all("links => links.map((a) => a.getAttribute('href'))"):
            assert (folder / "site" / link).is_file()


def test_by_keyboard_alone(visit, folder):
    with visit(folder) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        for _ in range(200):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('.board thead') !== null"):
                break
        page.keyboard.press("Enter")
        assert page.locator("[aria-sort=ascending]").count() == 1
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('.board tbody') !== null"):
                break
        page.keyboard.press("Space")
        assert page.locator("dialog").is_visible()
        assert page.evaluate("document.activeElement.closest('dialog') !== null")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.closest('.board tbody') !== null")


def test_without_scripts_the_headline_is_read(visit, folder, board):
    with visit(folder, java_script_enabled=False) as page:
        text = page.locator("main").text_content()
        first = next(r for r in board.rows if r.headline and len(r.people) == 5)
        assert page.locator(".board tbody tr").first.is_visible()
        assert page.locator("#filters").is_hidden()
        for row in (r for r in board.rows if r.headline and r.imputed < 1):
            assert f"{row.acc_macro.value:.3f} [{row.acc_macro.low:.3f}, {row.acc_macro.high:.3f}]" in text
        assert " ".join(f"{100 * p:.0f}" for p in first.people) in text


def test_foul_text_stays_text(visit, hostile):
    with visit(hostile) as page:
        for kind in ("curve", "people", "bytes", "kernel"):
            look_at(page, f"[data-figure^={kind}] >> nth=0")
        page.select_option("[name=budget]", "all")
        for details in page.locator("details").all():
            details.evaluate("details => { details.open = true; }")
        page.wait_for_function("() => document.querySelectorAll('.cells table, .costs table').length > 2")
        button = page.locator(".board tbody th button", has_text="<img src=x").first
        assert button.text_content() == evil
        button.evaluate("button => button.click()")
        assert evil in page.locator("dialog h2").text_content()
        assert evil in page.locator("dialog dl").last.text_content() or evil in page.locator("dialog").text_content()
        page.keyboard.press("Escape")
        mark = page.locator("[data-figure^=people] >> nth=0 >> svg .mark-rect path").first
        mark.scroll_into_view_if_needed()
        for point in page.locator("[data-figure^=bytes] >> nth=0 >> svg .mark-symbol path").all()[-3:]:
            point.hover(force=True)
        assert page.evaluate("window.pwned === undefined")
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == page.evaluate("document.scripts.length") <= 4


def test_the_page_runs_no_script_but_its_own(visit, folder):
    with visit(folder, quiet=False) as page:
        page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.pwned = 1";
                document.body.append(script);
                const image = document.createElement("img");
                image.src = "https://example.org/x.png";
                document.body.append(image);
            }"""
        )
        page.wait_for_timeout(200)
        assert page.evaluate("window.pwned === undefined")
        assert len(page.said) == 2
        assert all("Content Security Policy" in line for line in page.said)
