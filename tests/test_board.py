"""The board as files: the same bytes from the same records, tiers before ranks, hostile text shown as text."""

import importlib.util
import itertools
import json
import shutil

import jsonschema
import numpy as np
import pytest
from board_fixtures import METHODS, Bench, made, oracle, pooled, shrunk

from datasets_registry.errors import DataError, RequestError
from leaderboard.board import build_board, read_board
from leaderboard.compare import compare
from leaderboard.markdown import text
from leaderboard.metrics import METRICS
from leaderboard.publish import publish
from leaderboard.readme import END, START, renew_readme
from leaderboard.rows import RARE_COSTS, CostRow, Leaderboard
from leaderboard.schema import FOLDER, MODELS, schema_text
from leaderboard.scoring import gather, panels
from leaderboard.statistics import interval
from leaderboard.submission import submit

CARDS = [{"name": "shrunk", "title": "Shrunk", "equation": "theta"}, {"name": "not-here", "title": "x"}]
needs_site = pytest.mark.skipif(importlib.util.find_spec("vl_convert") is None, reason="vl-convert is not installed")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("board"))
    bench.run()
    return bench


@pytest.fixture(scope="module")
def board(bench):
    return build_board([bench.root], CARDS, bench.labels)


def rows_of(board, **where):
    rows = [json.loads(r.model_dump_json()) for r in board.leaderboard.rows]
    return [r for r in rows if all(r[k] == v for k, v in where.items())]


def test_built_twice_it_is_the_same_bytes(bench, board, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(bench.root, moved)
    assert build_board([moved], CARDS, bench.labels).to_json() == board.to_json()


def test_timings_change_costs_and_nothing_else(bench, board, tmp_path):
    other = Bench(tmp_path / "slow", data=bench.data)
    other.run(fit_s=99.0)
    told, slow = json.loads(board.to_json()), json.loads(build_board([other.root], CARDS, bench.labels).to_json())
    assert told.pop("costs") != slow.pop("costs")
    assert told == slow


def test_a_new_method_changes_no_row_of_another(bench, board, tmp_path):
    more = Bench(tmp_path / "more", data=bench.data)
    shutil.copytree(bench.root, more.root)
    more.run({"newcomer": oracle})
    before = {json.dumps([r["label"], r["regime"], r["n_train"], r["n_support"]]): r for r in rows_of(board)}
    after = {
        json.dumps([r["label"], r["regime"], r["n_train"], r["n_support"]]): r
        for r in rows_of(build_board([more.root], CARDS, bench.labels))
    }
    assert set(before) < set(after)
    for place, row in before.items():
        for name in ("acc_macro", "gain", "specificity", "nll", "worst10", "harm", "aulc", "regret"):
            assert after[place][name] == row[name], (place, name)


def test_the_truth_is_on_the_board(board):
    for regime, support in (("seen", None), ("unseen", 4)):
        rows = {r["label"]: r for r in rows_of(board, regime=regime, n_train="all", n_support=support)}
        assert rows["oracle"]["acc_macro"]["value"] > rows["shrunk"]["acc_macro"]["value"] - 0.03
        assert rows["shrunk"]["gain"]["low"] > 0
        assert rows["random"]["acc_macro"]["low"] < 0.5 < rows["random"]["acc_macro"]["high"]
        assert rows["pooled-bt"]["gain"] == {"value": 0, "low": 0, "high": 0}
        assert rows["pooled-bt"]["specificity"]["value"] == 0
        assert rows["shrunk"]["specificity"]["value"] > 0.05
        assert rows["oracle"]["closed_gap"]["value"] == 1
        assert rows["shrunk"]["headline"]


def test_controls_stand_in_the_table_and_are_not_ranked(board):
    assert {r["label"] for r in rows_of(board) if r["rank"]} == {"shrunk", "scaled"}
    for row in rows_of(board, role="control"):
        assert row["rank"] is None
        assert row["tier"] is None


def test_methods_that_decide_alike_share_rank_and_tier_and_differ_in_calibration(board):
    rows = {r["label"]: r for r in rows_of(board, regime="seen", n_train="all")}
    a, b = rows["shrunk"], rows["scaled"]
    assert a["acc_macro"] == b["acc_macro"]
    assert a["rank"] == b["rank"] == {"value": 1, "low": 1, "high": 2}
    assert a["tier"] == b["tier"] == 1
    assert a["ece"]["value"] < b["ece"]["value"]
    assert a["nll_t"]["value"] == pytest.approx(b["nll_t"]["value"], abs=1e-5)


def test_tiers_and_rank_intervals_do_not_contradict_each_other(board):
    for row in rows_of(board, role="method"):
        assert row["tier"] <= row["rank"]["low"] <= row["rank"]["value"] <= row["rank"]["high"]


def test_shared_prompts_widen_every_interval_and_tiers_know(bench):
    # Everybody judges the same few prompts, so that people alone are too sure.
    gathered = gather([bench.root], bench.labels)
    panel = next(p for p in panels(gathered, bench.labels) if p.columns[0].setting.regime == "seen")
    for name in ("acc_macro", "gain", "specificity", "aulc", "nll", "brier", "regret", "closed_gap"):
        estimate = METRICS[name](panel)
        low, high = estimate.bounds()
        plain_low, plain_high = interval(estimate.draws)
        known = ~np.isnan(low)
        assert known.any() == (name != "regret")
        assert (estimate.factor[known] >= 1).all()
        np.testing.assert_allclose((high - low)[known], (estimate.factor * (plain_high - plain_low))[known], rtol=1e-9)
    assert (METRICS["acc_macro"](panel).factor > 1.05).any()


def test_sample_efficiency(board):
    unseen = [r for r in rows_of(board, label="shrunk", regime="unseen", n_train="all")]
    assert {r["n_support"]: r["n_at_gain"]["value"] for r in unseen} == {0: 4, 4: 4}
    area = unseen[0]["aulc"]["value"]
    # Two budgets: the area under a straight line is the mean of its ends.
    assert area == pytest.approx(sum(r["acc_macro"]["value"] for r in unseen) / 2, abs=1e-6)
    curve = next(c for c in board.leaderboard.curves if c.label == "shrunk" and c.regime == "seen")
    assert [p.n for p in curve.points] == [2, "all"]
    assert curve.points[0].n_mean < curve.points[1].n_mean


def test_a_method_with_more_than_a_tenth_imputed_is_not_ranked(bench, tmp_path):
    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=())
    other.run({k: METHODS[k] for k in ("pooled-bt", "shrunk")})
    other.write("shrunk", shrunk, "made@1", 2, "all", "seen", None, status="out_of_memory")
    row = rows_of(build_board([other.root], (), bench.labels), label="shrunk")[0]
    assert row["imputed"] == pytest.approx(1 / 3, abs=1e-6)
    assert row["rank"] is None
    assert row["failed"] == 1
    assert row["gain"]["value"] is not None


def test_a_method_that_always_failed_is_a_row(bench, tmp_path):
    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=())
    other.run({"pooled-bt": pooled})
    other.run({"broken": shrunk}, status="failed")
    built = build_board([other.root], (), bench.labels)
    row = rows_of(built, label="broken")[0]
    assert (row["imputed"], row["failed"], row["rank"]) == (1, 3, None)
    assert {f.reason for f in built.leaderboard.failures} == {"ValueError: made to fail"}
    assert "made to fail" in built.to_markdown()


def test_a_dirty_tree_is_at_most_reported_and_not_ranked(bench, tmp_path):
    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=())
    other.run({"pooled-bt": pooled})
    other.run({"shrunk": shrunk}, dirty=True)
    row = rows_of(build_board([other.root], (), bench.labels), label="shrunk")[0]
    assert (row["badge"], row["rank"], row["tier"]) == ("reported", None, None)
    draft = rows_of(build_board([other.root], (), bench.labels, rank_dirty=True), label="shrunk")[0]
    assert (draft["badge"], draft["tier"]) == ("reported", 1)


def test_several_datasets_give_overall_means(tmp_path):
    data = {"made@1": made(n_users=30, n_units=25), "other@1": made("other@1", n_users=30, n_units=25, seed=5)}
    other = Bench(tmp_path / "r", data=data, n_train=("all",), n_support=(), seeds=2)
    other.run({k: METHODS[k] for k in ("pooled-bt", "shrunk")})
    built = build_board([other.root], (), other.labels)
    (row,) = built.leaderboard.overall
    gains = [r["gain"]["value"] for r in rows_of(built, label="shrunk")]
    assert row.gain.value == pytest.approx(sum(gains) / 2, abs=2e-6)
    assert (row.datasets, row.complete, row.gain_rank) == (2, True, 1.0)


def test_the_file_satisfies_its_schema(board):
    jsonschema.validate(json.loads(board.to_json()), json.loads((FOLDER / "leaderboard.schema.json").read_text()))
    assert Leaderboard.model_validate_json(board.to_json()) == board.leaderboard


def test_a_cost_that_nobody_measured_is_null(board):
    rows = json.loads(board.to_json())["costs"]
    assert rows
    assert all(set(row) == set(CostRow.model_fields) - RARE_COSTS for row in rows)


def test_a_cost_that_few_tell_is_there_where_it_is_told(bench, board, tmp_path):
    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=())
    other.run({"pooled-bt": pooled})
    other.run({"shrunk": shrunk}, train_comparisons_per_s=1234.5, peak_device_bytes=3 << 20)
    built = build_board([other.root], (), bench.labels)
    told = {row["label"]: row.get("train_comparisons_per_s") for row in json.loads(built.to_json())["costs"]}
    assert told == {"pooled-bt": None, "shrunk": 1234.5}
    assert Leaderboard.model_validate_json(built.to_json()) == built.leaderboard
    head = next(line for line in built.to_markdown().splitlines() if line.startswith("| device class"))
    assert head == (
        "| device class | dataset | regime | method | fit s | trained comparisons per s | per person | device MiB |"
    )
    (row,) = (line for line in built.to_markdown().splitlines() if "| made@1 | seen | shrunk |" in line)
    assert row.endswith("| 1 | 1,234.5 | 4 | 3 |")
    assert "trained comparisons" not in board.to_markdown()


def test_a_dataset_seen_through_two_encoders_says_which_in_the_costs(bench, tmp_path):
    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=(), seeds=1)
    for encoder in ("tabular@1", "minilm-l6@1"):
        other.run({"pooled-bt": pooled, "shrunk": shrunk}, encoder=encoder)
    built = build_board([other.root], (), bench.labels)
    lines = [line for line in built.to_markdown().splitlines() if line.startswith("| cpu-x86")]
    for encoder in ("tabular@1", "minilm-l6@1"):
        assert sum(f"made@1 ({encoder})" in line for line in lines) == 2
    assert len({c.encoder for c in built.leaderboard.curves}) == 2


@needs_site
def test_the_page_says_which_encoder_where_there_are_two(bench, tmp_path):
    from leaderboard.site import site

    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=(), seeds=1)
    other.run({"pooled-bt": pooled})
    assert site(build_board([other.root], (), bench.labels).leaderboard).count('class="block"') == 1
    other.run({"pooled-bt": pooled}, encoder="minilm-l6@1")
    page = site(build_board([other.root], (), bench.labels).leaderboard)
    assert page.count('class="block"') == 2
    for encoder in ("tabular@1", "minilm-l6@1"):
        assert page.count(f"seeds: 1, encoder {encoder}</small>") == 1


def test_a_name_with_a_plus_goes_everywhere_a_name_goes(bench, tmp_path):
    name = "lora-global+local-a"
    other = Bench(tmp_path / "r", data=bench.data)
    other.run({"pooled-bt": pooled, name: shrunk})
    built = build_board([other.root], [{"name": name, "title": "Global and local"}], bench.labels)
    assert {r.label for r in built.leaderboard.rows} == {"pooled-bt", name}
    assert f"| {name} |" in built.to_markdown()
    assert name in text(built.leaderboard, width=160)
    out = tmp_path / "out"
    built.write(out)
    assert read_board(out) == built.leaderboard
    if (out / "site").exists():
        page = (out / "site" / "index.html").read_text()
        assert f"hetpref run quick --methods {name},pooled-bt" in page
        assert {p.suffix for p in (out / "plots").iterdir()} == {".svg", ".png"}
    assert publish(out, str(tmp_path / "public"))
    (*_, overall) = compare(name, "pooled-bt", other.root, bench.labels)
    assert overall.dataset == "overall"
    submitted = submit(name, other.root, tmp_path / "submissions" / name, bench.labels)
    assert list(submitted.folder.glob(f"records/*/{name}/*.json"))
    assert submitted.rows
    assert not {"path", "name", "manifest", "margins.path", "method.name"} & {r.field for r in submitted.refusals}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_schemas_are_current(name):
    assert json.loads((FOLDER / name).read_text()) == json.loads(schema_text(name)), "run python -m leaderboard.schema"


def test_no_records_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match="no records"):
        build_board([tmp_path])
    with pytest.raises(RequestError, match="does not exist"):
        build_board([tmp_path / "nowhere"])


def test_compare_is_the_difference_of_rows_and_antisymmetric(bench, board):
    forth, back = (compare(a, b, bench.root, bench.labels) for a, b in (("shrunk", "random"), ("random", "shrunk")))
    rows = {
        (r["label"], r["regime"], str(r["n_train"]), r["n_support"]): r["acc_macro"]["value"] for r in rows_of(board)
    }
    for one, other in zip(forth, back, strict=True):
        assert one.difference == -other.difference
        assert one.low == pytest.approx(-other.high, abs=2e-6)
        if one.dataset != "overall":
            place = (one.regime, str(one.n_train), one.n_support)
            assert one.difference == pytest.approx(rows["shrunk", *place] - rows["random", *place], abs=2e-6)
    assert [d.regime for d in forth if d.dataset == "overall"] == ["seen", "unseen"]
    gain = next(
        d for d in compare("shrunk", "pooled-bt", bench.root, bench.labels) if d.regime == "seen" and d.n_train == 2
    )
    row = rows_of(board, label="shrunk", regime="seen", n_train=2)[0]["gain"]
    assert (gain.difference, gain.low, gain.high) == (row["value"], row["low"], row["high"])
    with pytest.raises(RequestError, match="Did you mean 'shrunk'"):
        compare("shrunken", "random", bench.root, bench.labels)


def test_markdown_and_text_put_the_tier_first(board):
    lines = [line for line in board.to_markdown().splitlines() if line.startswith("| tier | rank |")]
    assert len(lines) == 2
    assert "shrunk" in board.to_text()
    assert "tier" in board.to_text()


def test_a_readme_is_renewed_between_its_markers_only(board, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    renew_readme(readme, board.leaderboard)
    once = readme.read_text()
    renew_readme(readme, board.leaderboard)
    assert readme.read_text() == once
    assert once.startswith(f"before\n{START}\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once
    assert "| shrunk |" in once
    readme.write_text("no markers")
    with pytest.raises(RequestError, match="results block"):
        renew_readme(readme, board.leaderboard)


@needs_site
def test_the_page_stands_alone_and_shows_hostile_text_as_text(bench, tmp_path):
    evil = "<script>alert(1)</script>"
    cards = [{"name": "shrunk", "spec": {"title": evil, "equation": "</script><b>"}}]
    built = build_board([bench.root], cards, bench.labels)
    first = built.leaderboard.curves[0].model_copy(update={"label": "</script><script>alert(2)</script>"})
    curves = [first, *built.leaderboard.curves[1:]]
    from leaderboard.site import site

    page = site(built.leaderboard.model_copy(update={"curves": curves}))
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "alert(2)</script>" not in page
    assert page.count("<script") == 3
    assert page.lower().count("</script") == 3
    assert len(page.encode()) < 3_000_000
    before_library = page[: page.index('id="page-data"')]
    assert "http" not in before_library.replace("http-equiv", "")


@needs_site
def test_everything_is_written_and_published(board, tmp_path):
    out = tmp_path / "out"
    assert board.write(out) == []
    plots = {p.name: p.read_bytes() for p in out.glob("plots/*.svg")}
    assert plots
    again = tmp_path / "again"
    board.write(again)
    assert {p.name: p.read_bytes() for p in again.glob("plots/*.svg")} == plots
    assert read_board(out) == board.leaderboard
    (out / "records").mkdir()
    (out / "records" / "private.json").write_text("{}")
    told = publish(out, str(tmp_path / "public"), dry_run=True)
    assert not (tmp_path / "public").exists()
    done = publish(out, str(tmp_path / "public"))
    assert len(told) == len(done)
    there = {p.relative_to(tmp_path / "public").as_posix() for p in (tmp_path / "public").rglob("*") if p.is_file()}
    assert {"leaderboard.json", "schema/leaderboard.schema.json", "SHA256SUMS", "site/index.html"} <= there
    assert not any("private" in name for name in there)
    assert publish(out, str(tmp_path / "public"))
    assert any("would upload leaderboard.json" in line for line in publish(out, "hf://datasets/a/b", dry_run=True))


def test_nothing_of_others_is_overwritten(board, tmp_path):
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    target.mkdir()
    (out / "leaderboard.json").write_text(board.to_json())
    (target / "leaderboard.json").write_text("mine")
    with pytest.raises(RequestError, match="files of others"):
        publish(out, str(target))
    assert (target / "leaderboard.json").read_text() == "mine"
    (out / "leaderboard.json").write_text("{}")
    with pytest.raises(DataError, match="not a leaderboard"):
        publish(out, str(tmp_path / "elsewhere"))
    for wrong in ("s3://bucket", "hf://datasets/nameless"):
        with pytest.raises(RequestError):
            publish(tmp_path, wrong)


def test_rows_are_in_the_order_of_tables_then_tiers(board):
    for _, group in itertools.groupby(
        board.leaderboard.rows, key=lambda r: (r.dataset, r.regime, r.n_train, r.n_support)
    ):
        tiers = [r.tier or 99 for r in group]
        assert tiers == sorted(tiers)
