"""TL;DR, five workers: what is taken of made rows in the hub's exact schema, and what is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tldr_fixtures import LIKES, SCHEMA, TOP, WORKERS, made_rows, made_spec, split_path, use_made_tldr, write_tldr

from datasets_registry import find_dataset, load, registry
from datasets_registry.catalog import _tldr, tldr_top5
from datasets_registry.errors import DataError, RequestError
from datasets_registry.hub import hub_table
from datasets_registry.probes import probe
from datasets_registry.protocol import FOLDS
from datasets_registry.records import PreferenceData
from datasets_registry.splits import split

Row = dict[str, object]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreferenceData:
    return load(use_made_tldr(tmp_path, monkeypatch))


def prompt_of(row: Row) -> str:
    return _tldr.PROMPT.format(*(row["info"][k] for k in ("subreddit", "title", "post")))


def said(row: Row) -> tuple[str, str, str]:
    """Return (worker, text preferred, text not preferred) of a row, by the published code's template."""
    texts = [f"{prompt_of(row)}\nTL;DR: {each['text']}" for each in row["summaries"]]
    return f"worker-{row['worker']}", texts[row["choice"]], texts[1 - row["choice"]]


def all_said(data: PreferenceData) -> list[tuple[str, str, str]]:
    c, text = data.comparisons, data.items.text
    won, lost = np.where(c.label == 1, c.first, c.second), np.where(c.label == 1, c.second, c.first)
    return [(data.users.ids[u], text(w), text(x)) for u, w, x in zip(c.user, won, lost, strict=True)]


def test_five_workers_with_most_posts_judged_are_taken_as_they_said_it(made: PreferenceData):
    rows = made_rows()
    assert set(made.users.ids) == {f"worker-{name}" for name in TOP}
    told = all_said(made)
    assert set(told) <= {said(row) for each in rows.values() for row in each if row["info"]["post"]}
    assert len(set(told)) == len(told)
    assert "\nTL;DR:  " in made.items.text(0)  # the hub's summaries begin with a blank, and the template has one
    assert not [text for text in made.items.prompt if "None" in text]


def test_a_worker_has_the_pairs_asked_for_in_proportion_but_for_those_that_tell_nothing(made: PreferenceData):
    pairs = int(made.id.rpartition("=")[2])
    counts = dict(zip(made.users.ids, np.bincount(made.comparisons.user).tolist(), strict=True))
    each = pairs + round(pairs * 1_238 / 5_373)
    assert {counts[f"worker-{name}"] for name in TOP[1:]} == {each}
    assert each - 4 <= counts[f"worker-{TOP[0]}"] < each


def test_the_cut_is_a_permutation_of_a_workers_rows_in_hub_order_and_nested(made: PreferenceData):
    rows = [row for row in made_rows()["train"] if row["info"]["post"] and row["worker"] == TOP[1]]
    drawn = [rows[k] for k in np.random.default_rng(42).permutation(len(rows))]
    few = {t for t in all_said(load("tldr-top5@1+pairs=20")) if t[0] == f"worker-{TOP[1]}"}
    expected = {said(row) for row in drawn[:20]}
    assert expected <= few
    assert len(few - expected) == round(20 * 1_238 / 5_373)
    assert few <= set(all_said(made))


def test_an_equal_post_is_one_cluster_whatever_its_title_and_case(made: PreferenceData):
    assert len(made.unit_cluster) == len(made.clusters) + 1
    c, prompt = made.comparisons, made.items.prompt
    units: dict[str, set[int]] = {}
    for unit, first, second in zip(c.unit.tolist(), c.first, c.second, strict=True):
        assert prompt[first] == prompt[second]
        units.setdefault(" ".join(prompt[first].partition("POST: ")[2].casefold().split()), set()).add(unit)
    twins = [found for found in units.values() if len(found) > 1]
    assert len(twins) == 1
    assert len({int(made.unit_cluster[unit]) for unit in twins[0]}) == 1


def test_the_same_content_has_the_same_digest_in_another_process_and_form(made: PreferenceData, tmp_path: Path):
    for name, rows in made_rows().items():
        split_path(tmp_path, name).unlink()
        split_path(tmp_path, name, "jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = f"from datasets_registry import load; print(load({made.id!r}).digest)"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == made.digest
    assert load(made.id) is made


def test_four_of_five_are_seen_and_every_fold_leaves_another_one_out(made: PreferenceData):
    unseen = []
    for fold in range(FOLDS):
        s = split(made, fold)
        assert (len(s.seen), len(s.unseen), len(s.pseudo_unseen)) == (4, 1, 1)
        unseen += s.unseen.tolist()
        assert s.support_budgets()[:2] == [0, 1]
        assert s.budgets()[0] == 1
        clusters = [{int(k) for k in s.row_cluster[rows]} for rows in (s.train(), s.query("seen"), s.query("unseen"))]
        assert not clusters[0] & (clusters[1] | clusters[2])
        t = s.tuning()
        assert (len(t.seen), len(t.unseen)) == (3, 1)
    assert sorted(unseen) == list(range(5))


def test_the_probes_pass_and_what_a_worker_likes_is_in_the_text(made: PreferenceData):
    assert probe(made).refusals == ()
    liked = []
    for who, won, lost in all_said(made):
        likes = LIKES[WORKERS.index(who.removeprefix("worker-")) % 3]
        named = [likes in text.rpartition("TL;DR:")[2] for text in (won, lost)]
        liked += [named[0]] if named[0] != named[1] else []
    assert np.mean(liked) > 0.9


def test_the_paper_needs_all_its_pairs(made: PreferenceData):
    with pytest.raises(DataError, match=r"5 workers with 5,373 training pairs each.*tldr-top5@1\+pairs=\d+$") as caught:
        load("tldr-top5@1")
    load(str(caught.value).rpartition(" ")[2])
    for wrong in (-1, 5_374):
        with pytest.raises(RequestError, match=rf"pairs={wrong} of tldr-top5@1; allowed: 1 to 5373, or 0 for 5373"):
            load(f"tldr-top5@1+pairs={wrong}")


def write(folder: Path, rows: list[Row], schema: pa.Schema = SCHEMA) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), split_path(folder, "train"))


def test_what_is_not_as_it_must_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = use_made_tldr(tmp_path, monkeypatch, posts=8)
    rows = made_rows(posts=8)["train"]
    top = next(k for k, row in enumerate(rows) if row["info"]["post"] and row["worker"] == TOP[1])
    write(tmp_path, [row | {"choice": 2} if k == top else row for k, row in enumerate(rows)])
    with pytest.raises(DataError, match="a row with 2 summaries and choice 2"):
        load(spec)
    write(tmp_path, [row | {"worker": None} if k == top else row for k, row in enumerate(rows)])
    with pytest.raises(DataError, match="rows without a worker"):
        load(spec)
    write(tmp_path, [row for row in rows if row["worker"] in TOP[:3]])
    with pytest.raises(DataError, match="5 workers with 12 training pairs each are needed, and the 3 with most have"):
        load(spec)
    write(tmp_path, rows, pa.schema([field for field in SCHEMA if field.name != "choice"]))
    with pytest.raises(DataError, match=r"choice missing\. Found: info\.id, .*Expected: info\.post, "):
        load(spec)


def test_offline_and_without_a_copy_it_is_said_what_to_do(tmp_path: Path):
    pytest.importorskip("huggingface_hub")
    code = (
        "from datasets_registry import load\n"
        "from datasets_registry.sources import UnreachableError\n"
        "try: load('tldr-top5@1')\n"
        "except UnreachableError as why: print(why)\n"
    )
    kept = {k: v for k, v in os.environ.items() if k != "HETPREF_MIRROR"}
    told = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=kept | told, capture_output=True, text=True, check=True)
    assert "openai/summarize_from_feedback comparisons/train at refs/convert/parquet" in done.stdout
    assert "HETPREF_MIRROR" in done.stdout
    assert "HF_HUB_OFFLINE" in done.stdout


def test_the_card_knows_its_people_without_loading():
    card = find_dataset("tldr-top5").card
    assert card.people == tldr_top5.PEOPLE == 5
    assert card.sha256 == _tldr.SOURCE.pin


def test_the_made_rows_are_written_where_a_mirror_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tldr(tmp_path, posts=8, seed=3)
    monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path))
    registry._loaded.cache_clear()
    for name, rows in made_rows(posts=8, seed=3).items():
        assert hub_table(_tldr.SOURCE, name)["worker"].to_pylist() == [row["worker"] for row in rows]
    assert len(load(made_spec(8)).users) == 5


@pytest.mark.slow
def test_the_real_table_has_the_papers_counts(load_mirrored: Callable[[str], PreferenceData]):
    registry._loaded.cache_clear()
    data = load_mirrored("tldr-top5@1")
    assert len(data.users) == 5
    said = np.bincount(data.comparisons.user)
    assert (said > 5_373 * 0.98).all()
    assert (said <= 5_373 + 1_238).all()
