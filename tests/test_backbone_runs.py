"""Whole runs of backbone methods: the paper's suite on a tiny model and made data, and a word that people like."""

import json
import os
import subprocess
import sys
from importlib.resources import files

import pytest
from tldr_fixtures import use_made_tldr

from benchmarks.suites import load_suite
from leaderboard.store import ResultsFolder, read_record

PAPER = "paper-p-share-lora"


def hetpref(*words, check=0):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the paper's suite whole, but for the model, the number of comparisons and the device."""
    with pytest.MonkeyPatch.context() as patch:
        spec = use_made_tldr(tmp_path_factory.mktemp("mirror"), patch)
        folder = tmp_path_factory.mktemp("paper")
        suite, out = folder / "paper.toml", folder / "out"
        text = (files("benchmarks.suites") / f"{PAPER}.toml").read_text(encoding="utf-8")
        assert '"tldr-top5@1"' in text
        suite.write_text(text.replace('"tldr-top5@1"', f'"{spec}"'), encoding="utf-8")
        words = ("run", suite, "--encoder", "tiny-llama@1", "--device", "cpu", "--out", out)
        done = hetpref(*words, "--no-pages", "--json")
        again = hetpref(*words, "--no-pages")
    return out, json.loads(done.stdout), again.stderr


def records(out):
    return [read_record(path) for path in ResultsFolder(out).record_files()]


def test_every_method_of_the_paper_ends_well_and_is_not_run_twice(ran):
    out, _, again = ran
    told = records(out)
    planned = len(load_suite(PAPER).methods)
    assert {r.status for r in told} == {"ok"}
    assert len({(r.method.name, r.method.config_sha256) for r in told}) == planned
    assert f"{planned} cells: 0 run, {planned} found finished" in again.replace("\n", " ")


def test_records_hold_the_papers_hyperparameters_and_what_they_cost(ran):
    out, _, _ = ran
    own = [r for r in records(out) if r.method.level == "backbone"]
    for record in own:
        config = record.method.config
        paper = (config["rank"], config["alpha"], config["lr"], config["epochs"], config["batch"])
        assert paper == (32, 16.0, 5e-5, 3, 128)
        assert record.dataset.encoder == "tiny-llama@1"
        assert record.cost.train_comparisons_per_s and record.cost.train_comparisons_per_s > 0  # noqa: PT018
        assert record.cost.peak_rss_delta_bytes and record.cost.fit_s  # noqa: PT018
    by_name = {r.method.name: r for r in own}
    layers, rank, d = 4, 32, 32
    assert by_name["p-share-lora"].cost.params_per_user == layers * rank * d
    assert by_name["p-share-lora"].cost.state_bytes_per_user == 4 * layers * rank * d
    assert by_name["lora-global"].cost.params_per_user == 0


def test_variants_are_told_apart_on_the_board(ran):
    _, board, _ = ran
    text = json.dumps(board)
    assert all(f"init={each}" in text for each in ("copied", "warmup"))


def test_texts_that_the_model_cut_are_counted(ran):
    """The made posts are longer than the tiny model's 128 bytes."""
    out, _, _ = ran
    told = {r.method.name: r.counts.truncated for r in records(out)}
    assert told["p-share-lora"] == told["pooled-bt"] > 0
    assert told["random"] == 0


def test_a_dry_run_prints_every_cell_with_its_memory():
    done = hetpref("run", PAPER, "--dry-run")
    lines = [line for line in done.stdout.splitlines() if " on tldr-top5@1" in line]
    assert len(lines) == len(load_suite(PAPER).methods)
    assert sum("GiB: weights" in line for line in lines) == len(lines) - 2  # but for random and pooled-bt
