"""Each cell has its own process: whatever a method does there becomes an outcome, and the others are measured."""

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import pytest

from benchmarks.cell_process import Payload, Question
from benchmarks.executor import Limits, LocalExecutor
from datasets_registry.records import Comparisons, Items
from methods.interface import Budget

LIMITS = Limits(seconds=20, memory_bytes=300 << 20)


@pytest.fixture(scope="module")
def plugins():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "plugins"))
        yield


@pytest.fixture(scope="module")
def hostile(plugins):
    return importlib.import_module("hostile_methods")


@pytest.fixture(scope="module")
def inside(plugins):
    return importlib.import_module("backbone_methods")


@pytest.fixture(scope="module")
def executor():
    with LocalExecutor(jobs=2, limits=LIMITS) as running:
        yield running


def payload(method):
    said = Comparisons.of(
        user=[0, 0, 1, 1], unit=[0, 1, 0, 1], first=[0, 1, 2, 0], second=[1, 2, 0, 2], label=[1, 0, 1, 0.5]
    )
    users = np.array([0, 1], np.int32)
    return Payload(
        method=method,
        config={},
        budget=Budget(seed=3),
        dataset="made@1",
        items=Items(("", "", ""), ("a", "bb", "ccc")),
        n_users=2,
        encoder="tabular@1",
        features=None,
        user_metadata=None,
        truth=None,
        train=said,
        val=said,
        questions=(Question("seen", users, said, said.hidden(), np.array([1, 0], np.int32)),),
    )


def outcomes(executor, *methods):
    return dict(executor.run((m.__name__, lambda m=m: payload(m)) for m in methods))


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("Raises", "failed", "ArithmeticError: the matrix was tired"),
        ("Exits", "failed", "exit code 7"),
        ("Crashes", "failed", "SIGSEGV"),
        ("NotANumber", "failed", "4 of 4 margins are NaN"),
        ("WrongShape", "failed", "shape (4, 2), expected (4,)"),
        ("NoStates", "failed", "expected a list of 2 UserState"),
        ("Hoards", "out_of_memory", "memory"),
        ("Prints", "ok", None),
        ("Peeks", "ok", None),
        ("Zero", "ok", None),
    ],
)
def test_every_ending_is_an_outcome_and_the_next_cell_is_measured(executor, hostile, name, status, said):
    got = outcomes(executor, getattr(hostile, name), hostile.Zero)
    assert got[name].status == status, got[name].reason
    if said is not None:
        assert said in got[name].reason
    assert got["Zero"].status == "ok"
    assert got["Zero"].answer.arrays["seen/margin"].tolist() == [0, 0, 0, 0]


def test_the_last_words_of_a_crash_are_kept(executor, hostile):
    assert "last words" in outcomes(executor, hostile.Crashes)["Crashes"].reason


def test_a_hang_ends_at_the_limit_and_does_not_hold_the_others(hostile):
    with LocalExecutor(jobs=2, limits=Limits(seconds=1, memory_bytes=1 << 30)) as running:
        got = outcomes(running, hostile.Hangs, hostile.Zero, hostile.Zero)
    assert got["Hangs"].status == "timeout"
    assert "limit of 1 s" in got["Hangs"].reason
    assert got["Zero"].status == "ok"


@pytest.mark.parametrize("name", ["Forks", "Detaches"])
def test_what_a_cell_started_ends_with_it(hostile, name):
    with LocalExecutor(jobs=1, limits=Limits(seconds=2, memory_bytes=1 << 30)) as running:
        reason = outcomes(running, getattr(hostile, name))[name].reason
    pid = int(reason.split("child ")[1].split()[0])
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} outlived its cell")


def test_a_cell_whose_neighbour_took_the_fork_server_down_is_run_again(hostile):
    with LocalExecutor(jobs=2, limits=LIMITS) as running:
        got = outcomes(running, hostile.KillsTheServer, hostile.Slow, hostile.Zero)
    assert got["KillsTheServer"].status == "failed"
    assert got["Slow"].status == "ok"
    assert got["Zero"].status == "ok"


@pytest.mark.parametrize("name", ["OneSided", "AlwaysFirst"])
def test_a_preference_for_a_position_is_averaged_away(executor, hostile, name):
    assert outcomes(executor, getattr(hostile, name))[name].answer.arrays["seen/margin"].tolist() == [0, 0, 0, 0]


def test_costs_are_measured(executor, hostile):
    cost = outcomes(executor, hostile.Zero)["Zero"].answer.cost
    assert cost["fit_s"] >= 0
    assert cost["comparisons_per_s"] > 0
    assert cost["state_bytes_per_user"] == 0
    assert cost["peak_device_bytes"] is None


def test_a_training_rate_is_what_was_learned_from_over_the_seconds_of_the_fit(executor, inside, hostile):
    got = outcomes(executor, inside.Told, inside.Untold, inside.Miscounts, hostile.Zero)
    cost = got["Told"].answer.cost
    assert cost["train_comparisons_per_s"] == pytest.approx(1000 / cost["fit_s"])
    assert got["Untold"].answer.cost["train_comparisons_per_s"] is None
    assert got["Zero"].answer.cost["train_comparisons_per_s"] is None
    assert got["Miscounts"].status == "failed"
    assert "comparisons_trained is -1; it must be a count" in got["Miscounts"].reason


@pytest.mark.parametrize(
    ("name", "device", "given"),
    [
        ("Says", "cpu", "('tabular@1', False, 'cpu', True)"),
        ("SaysFeatures", "cpu", "('tabular@1', True, 'cpu', True)"),
        ("SaysNothing", "cpu", "(None, False, 'cpu', True)"),
        # CUDA reserves more address space than a limit would allow; what is resident is watched
        ("Says", "cuda", "('tabular@1', False, 'cuda', False)"),
    ],
)
def test_a_cell_is_given_its_encoder_and_device(executor, inside, tmp_path, name, device, given):
    features = tmp_path / "features.npy"
    np.save(features, np.zeros((3, 2), np.float32))
    asked = dataclasses.replace(payload(getattr(inside, name)), budget=Budget(device=device), features=features)
    ((_, outcome),) = executor.run([(0, lambda: asked)])
    assert f"given {given}" in outcome.reason


def test_a_gpu_that_was_not_used_has_no_peak(executor, inside):
    asked = dataclasses.replace(payload(inside.Told), budget=Budget(device="cuda"))
    ((_, outcome),) = executor.run([(0, lambda: asked)])
    assert outcome.status == "ok", outcome.reason
    assert outcome.answer.cost["peak_device_bytes"] is None


@pytest.mark.cuda
def test_a_gpu_that_was_used_has_a_peak_and_its_class_in_the_record(executor, inside):
    import torch

    from benchmarks.meters import device_class, must_be_there

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    must_be_there("cuda")
    asked = dataclasses.replace(payload(inside.OnDevice), budget=Budget(device="cuda"))
    ((_, outcome),) = executor.run([(0, lambda: asked)])
    assert outcome.status == "ok", outcome.reason
    assert outcome.answer.cost["peak_device_bytes"] >= 4 << 20
    assert device_class("cuda").startswith("cuda-sm")


def test_what_is_preloaded_starts_no_thread_and_wakes_no_gpu():
    code = (
        "import os, sys\n"
        "import benchmarks.preload, benchmarks.preload_models, torch\n"
        "assert 'transformers.modeling_utils' in sys.modules\n"
        "assert not torch.cuda.is_initialized()\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120, check=True)
    assert done.stdout.strip() == "1"


class Watched(str):
    """A name that tells, when it is sent to a cell's process, whether Ctrl-C would cut the sending short."""

    held: ClassVar[list[bool]] = []

    def __reduce__(self):
        Watched.held.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return str, (str(self),)


def test_control_c_waits_until_a_cell_has_its_work(executor, hostile):
    watched = dataclasses.replace(payload(hostile.Zero), dataset=Watched("made@1"))
    assert [outcome.status for _, outcome in executor.run([(0, lambda: watched)])] == ["ok"]
    assert Watched.held == [True]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
