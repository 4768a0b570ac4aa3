"""Seconds until the command line answers: `hetpref --help` and the listings, goal under half a second."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["--help", "methods", "datasets", "suites"])
def test_listing(benchmark, command):
    words = [sys.executable, "-m", "benchmarks.cli", command]
    benchmark.pedantic(lambda: subprocess.run(words, check=True, capture_output=True), rounds=7, warmup_rounds=1)
