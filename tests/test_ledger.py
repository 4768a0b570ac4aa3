"""The ledger: what is accepted is written down and chained, what is altered or replayed is refused, nothing is lost."""

import json
import shutil

import pytest
from submission_fixtures import METHOD, changed, forge, records, run

from benchmarks.cli import main
from datasets_registry.errors import DataError, RequestError
from leaderboard.acceptance import accept
from leaderboard.board import build_board
from leaderboard.ledger import LEDGER, read_ledger
from leaderboard.publish import publish
from leaderboard.store import ResultsFolder
from leaderboard.submission import bundle, submit


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return run(tmp_path_factory.mktemp("submissions"))


@pytest.fixture
def author(measured, tmp_path):
    """What somebody measured."""
    shutil.copytree(measured, tmp_path / "author")
    return tmp_path / "author"


@pytest.fixture
def keeper(measured, tmp_path):
    """The results of who keeps the board, which lack the method."""
    shutil.copytree(measured, tmp_path / "keeper")
    for path in records(tmp_path / "keeper"):
        path.unlink()
    return tmp_path / "keeper"


def handed_in(author, keeper, tmp_path):
    return accept(bundle(METHOD, author, tmp_path / "bundle"), keeper)


def rows(results):
    return [r for r in build_board([results]).leaderboard.rows if r.method == METHOD]


def test_a_submission_is_taken_in_and_written_down(author, keeper, tmp_path):
    found = handed_in(author, keeper, tmp_path)
    assert found.refusals == []
    assert (found.entry.number, found.entry.attempt, found.entry.supersedes) == (1, 1, None)
    assert read_ledger(keeper) == [found.entry]
    assert {(r.badge, r.attempts) for r in rows(keeper)} == {("rescored", 1)}
    assert [r.acc_macro for r in rows(keeper)] == [r.acc_macro for r in rows(author)]
    told = json.loads(build_board([keeper]).to_json())["ledger"]
    assert told[0]["records"] == len(records(author))
    assert "margins" not in told[0]


def test_another_attempt_is_another_line(author, keeper, tmp_path):
    handed_in(author, keeper, tmp_path)
    found = handed_in(author, keeper, tmp_path)
    assert [e.attempt for e in read_ledger(keeper)] == [1, 2]
    assert found.entry.previous == read_ledger(keeper)[0].sha256
    assert {r.attempts for r in rows(keeper)} == {2}


@pytest.mark.parametrize("line", ["changed", "taken out", "put in", "no JSON"])
def test_a_ledger_that_was_edited_says_where(author, keeper, tmp_path, line):
    for _ in range(3):
        handed_in(author, keeper, tmp_path)
    path = keeper / LEDGER
    lines = path.read_text().splitlines()
    if line == "changed":
        lines[1] = lines[1].replace('"failed": 0', '"failed": 1')
    elif line == "taken out":
        del lines[1]
    elif line == "put in":
        lines.insert(1, lines[0])
    else:
        lines[1] = "{"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"submissions\.jsonl, line 2 .*append-only"):
        read_ledger(keeper)
    before = path.read_bytes()
    with pytest.raises(DataError, match="line 2"):
        handed_in(author, keeper, tmp_path)
    assert path.read_bytes() == before


def test_other_margins_need_a_new_version_and_the_old_ones_are_kept(author, keeper, tmp_path):
    handed_in(author, keeper, tmp_path)
    first = next(iter(records(author)))
    forge(author, first, lambda m: -m)
    refused = handed_in(author, keeper, tmp_path)
    assert refused.entry is None
    assert [(r.field, "new version" in r.required) for r in refused.refusals] == [("margins", True)]
    assert "100.0% of decisions turned" in refused.refusals[0].found
    assert len(read_ledger(keeper)) == 1
    for path in records(author):
        changed(path, method={"version": "0.2"})
    found = handed_in(author, keeper, tmp_path)
    assert (found.entry.version, found.entry.attempt, found.entry.supersedes) == ("0.2", 2, "0.1.0")
    assert {r.version for r in rows(keeper)} == {"0.2"}
    assert list((keeper / "superseded").rglob("*.parquet.*"))
    for path in records(author):
        changed(path, method={"version": "0.1.0"})
    again = handed_in(author, keeper, tmp_path)
    assert [r.field for r in again.refusals] == ["method.version"]


def test_what_differs_by_rounding_needs_no_new_version(author, keeper, tmp_path):
    handed_in(author, keeper, tmp_path)
    for path in records(author):
        forge(author, path, lambda m: m * 1.0001)
    assert handed_in(author, keeper, tmp_path).refusals == []


def test_a_measurement_that_is_missing_now_needs_a_new_version(author, keeper, tmp_path):
    handed_in(author, keeper, tmp_path)
    changed(next(iter(records(author))), status="failed", reason="it was too warm", margins=None)
    refused = handed_in(author, keeper, tmp_path)
    assert ["where there were margins" in r.found for r in refused.refusals] == [True]


def test_margins_of_another_method_are_refused(author, keeper, tmp_path):
    theirs = {(r.split.regime, r.seed): r for r in records(author, "per-user-bt").values()}
    for path, record in records(author).items():
        other = theirs[record.split.regime, record.seed]
        shutil.copyfile(author / other.margins.path, author / record.margins.path)
        told = json.loads(path.read_text())
        told["margins"]["sha256"] = other.margins.sha256
        path.write_text(json.dumps(told))
    refused = handed_in(author, keeper, tmp_path)
    assert [r.found for r in refused.refusals] == ["those of per-user-bt of hetpref"]
    assert not (keeper / LEDGER).exists()
    assert not any(p.parent.name == METHOD for p in ResultsFolder(keeper).record_files())


def test_margins_do_not_stand_in_the_place_of_another_method(author, keeper, tmp_path):
    path, record = next(iter(records(author).items()))
    place = f"margins/{record.dataset.name}/pooled-bt/mine.parquet"
    shutil.copyfile(author / record.margins.path, author / place)
    changed(path, margins={"path": place})
    refused = handed_in(author, keeper, tmp_path)
    assert "margins.path" in {r.field for r in refused.refusals}
    assert not (keeper / place).exists()


def test_a_bundle_of_two_versions_is_refused(author, keeper, tmp_path):
    changed(next(iter(records(author))), method={"version": "0.2"})
    refused = handed_in(author, keeper, tmp_path)
    assert "one method of one distribution in one version" in {r.required for r in refused.refusals}


def test_a_folder_is_not_accepted_into_itself(author, tmp_path):
    made = bundle(METHOD, author, tmp_path / "bundle")
    with pytest.raises(RequestError, match="give two"):
        accept(made, made)
    with pytest.raises(RequestError, match="is no submission"):
        accept(author, tmp_path / "other")


def test_a_board_and_what_is_published_have_the_ledger(author, keeper, tmp_path):
    handed_in(author, keeper, tmp_path)
    board = build_board([keeper])
    board.write(tmp_path / "board", pages=False)
    assert f"| 1 | {read_ledger(keeper)[0].date} | submitted | {METHOD} |" in board.to_markdown()
    publish(tmp_path / "board", str(tmp_path / "public"))
    assert read_ledger(tmp_path / "public") == read_ledger(keeper)
    with (tmp_path / "board" / LEDGER).open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="line 2"):
        publish(tmp_path / "board", str(tmp_path / "public"))
    shutil.copytree(keeper, tmp_path / "other")
    with pytest.raises(RequestError, match="have a ledger each"):
        build_board([keeper, tmp_path / "other"])


def test_the_command_line_tells_what_happened(author, keeper, tmp_path, capsys):
    made = bundle(METHOD, author, tmp_path / "bundle")
    with pytest.raises(SystemExit) as ended:
        main(["accept", str(made), "--results", str(keeper)])
    assert ended.value.code == 0
    assert f"accepted, attempt 1 of {METHOD}" in capsys.readouterr().out


def test_a_submission_says_what_it_beats_and_writes_a_pull_request(author, tmp_path):
    report = submit(METHOD, author, tmp_path / "out" / METHOD, card={"title": "Hierarchical <b>", "citation": "us"})
    assert set(report.differences) == {"pooled-bt", "per-user-bt"}
    overall = [d for d in report.differences["pooled-bt"] if d.dataset == "overall"]
    assert [d.regime for d in overall] == ["seen", "unseen"]
    gains = {r.regime: r.gain.value for r in report.rows}
    assert [d.difference for d in overall] == [pytest.approx(gains[d.regime], abs=1e-6) for d in overall]
    assert "against pooled-bt: seen +" in report.text
    text = report.pull_request.read_text()
    assert "Hierarchical &lt;b&gt;" in text
    assert "| pooled-bt | overall | seen |" in text
    assert "`hetpref verify`: accepted" in text
