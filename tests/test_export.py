"""`hetpref export peft`: the fit of a cell, by a person's name, kept for others, and requests that cannot be."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.cell_process import answer
from benchmarks.cells import method_entries, plan_cells
from benchmarks.cli import main
from benchmarks.payloads import build_payload
from benchmarks.peft_export import FITTED_ON, Wanted, export_adapter, find_user
from benchmarks.runner import prepare
from benchmarks.suites import DatasetPlan, MethodPlan, Suite
from datasets_registry import load
from datasets_registry.errors import DataError, RequestError
from methods.interface import World
from methods.registry import find

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

DATASET = "planted@1+d=6+rank=2+units=20+users=20"
ENCODER = "tiny-bert@1"
SMALL = {"rank": 2, "epochs": 1, "lr": 0.01, "batch": 32, "max_tokens": 24, "adapt_steps": 2}
WORDS = [word for key, value in SMALL.items() for word in ("--config", f"{key}={value}")]


def export(*words):
    """Run the command in this process and return its exit code."""
    try:
        return main(["export", "peft", *map(str, words)])
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def cell():
    plan = DatasetPlan(DATASET, ENCODER, n_train=(4,), n_support=(2,))
    suite = Suite("export", "", (plan,), (MethodPlan("p-share-lora", SMALL),), 1, 300, 4096, user_shuffle=False)
    entries, _ = method_entries(suite, None)

    class Silent:
        def note(self, text):
            pass

    (planned,) = plan_cells(suite, prepare(plan, Silent(), entries), entries)
    return planned


@pytest.fixture(scope="module")
def exported(cell, tmp_path_factory):
    """Export somebody seen by id, keep the fit, and export somebody unseen of it by row number."""
    root = tmp_path_factory.mktemp("export")
    seen, unseen = int(cell.split.seen[3]), int(cell.split.unseen[0])
    given = ["--dataset", DATASET, "--encoder", ENCODER, "--n-train", 4, *WORDS]
    who = cell.prepared.data.users.ids[seen]
    assert export("p-share-lora", "--user", who, *given, "--out", root / "seen", "--save", root / "fitted") == 0
    again = ["--from", root / "fitted", "--user", unseen, "--n-support", 2, "--out", root / "unseen"]
    assert export("p-share-lora", *again) == 0
    return root


def rewards_of(folder, texts):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(code.replace('folder = "."', f"folder = {str(folder)!r}"), "README.md", "exec"), names)
    # the method was told to cut at 24 tokens
    assert "max_length=24" in code
    return names["rewards"](texts).numpy()


def test_the_adapters_score_as_the_cell_of_a_run_does(cell, exported):
    payload = build_payload(cell, 60)
    told, items = answer(payload).arrays, cell.prepared.data.items
    questions = {q.title: q for q in payload.questions}
    for folder, title, person in (("seen", "seen", cell.split.seen[3]), ("unseen", "unseen+2", cell.split.unseen[0])):
        queries = questions[title].queries
        rows = np.flatnonzero(queries.user == person)
        assert len(rows)
        first, second = (
            rewards_of(exported / folder, [items.text(int(i)) for i in at[rows]])
            for at in (queries.first, queries.second)
        )
        np.testing.assert_allclose(first - second, told[f"{title}/margin"][rows], rtol=1e-4, atol=1e-5)


def test_the_kept_fit_is_a_saved_method(exported):
    data = load(DATASET)
    world = World(data.id, data.items, len(data.users), encoder=ENCODER)
    method = find("p-share-lora").load(exported / "fitted", world)
    assert method.rank == 2
    assert json.loads((exported / "fitted" / FITTED_ON).read_text()) == {
        "dataset": data.id, "encoder": ENCODER, "n_train": 4, "seed": 0,
    }  # fmt: skip


def test_it_says_where_the_adapter_is_and_how_to_load_it(exported, tmp_path, capsys):
    words = ["--from", exported / "fitted", "--user", 0, "--out", tmp_path / "a"]
    assert export("p-share-lora", *words) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path / 'a'}: the adapter of 'u000000' (row 0, " in told
    assert f"peft.PeftModel.from_pretrained(base, '{tmp_path / 'a'}')" in told
    assert load_file(tmp_path / "a" / "adapter_model.safetensors")
    again = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    assert export("p-share-lora", *words) == 0  # an adapter is written over
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == again


def test_a_shared_adapter_is_everybodys(tmp_path, capsys):
    words = ["--dataset", DATASET, "--encoder", ENCODER, "--n-train", 1, *WORDS, "--out", tmp_path / "a"]
    assert export("lora-global", *words, "--user", 1) == 0
    assert "it is the same for everybody" in capsys.readouterr().out


def test_a_person_is_found_by_id_and_by_row():
    data = load(DATASET)
    assert (find_user(data, "u000007"), find_user(data, "7")) == (7, 7)
    with pytest.raises(RequestError, match=r"unknown user 'u000007x' .*mean 'u000007'\? .* row numbers, 0 to 19"):
        find_user(data, "u000007x")
    with pytest.raises(RequestError, match="of its 20 people"):
        find_user(data, "20")


WRONG = {
    "no such user": (["p-share-lora", "--user", "u000011!"], "Did you mean 'u000011'"),
    "no such method": (["p-share-lroa"], "Did you mean 'p-share-lora'"),
    "no adapters": (["pooled-bt"], "trains no adapter inside a text model"),
    "full": (["full-finetune"], "changes the weights of the trunk itself and has no adapter; methods"),
    "option": (["p-share-lora", "--config", "ranks=3"], "Did you mean 'rank'"),
    "no sign": (["p-share-lora", "--config", "rank"], "allowed: KEY=VALUE"),
    "twice": (["p-share-lora", "--config", "rank=3", "--config", "rank=4"], "rank is given twice"),
    "n_train": (["p-share-lora", "--n-train", "0"], "--n-train '0'; allowed: whole numbers from 1, or all"),
    "n_support": (["p-share-lora", "--n-support", "-1"], "--n-support '-1'; allowed: whole numbers from 0"),
    "encoder": (["p-share-lora", "--encoder", "tabular@1"], "trains inside a text model, and tabular@1 has none"),
    "no encoder": (["p-share-lora", "--encoder", "tiny-brt@1"], "Did you mean 'tiny-bert@1'"),
    "no dataset": (["p-share-lora", "--dataset", "plantd@1"], "Did you mean"),
    "device": (["p-share-lora", "--device", "cuda:77"], "device 'cuda:77'"),
    "nothing there": (["p-share-lora", "--from", "nowhere"], "--from nowhere holds no saved method"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_told_before_anything_is_fitted(what, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, told = WRONG[what]
    given = {"--dataset": DATASET, "--encoder": ENCODER, "--user": "1", "--out": str(tmp_path / "out")}
    given = {k: v for k, v in given.items() if k not in words}
    assert export(*words, *(word for pair in given.items() for word in pair)) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "fitting" not in said
    assert not list(tmp_path.iterdir())


def test_a_fit_is_not_used_for_another_dataset_encoder_or_budget(exported, tmp_path, capsys):
    words = ["p-share-lora", "--from", exported / "fitted", "--user", 0, "--out", tmp_path / "a"]
    assert export(*words, "--seed", 1, "--encoder", "tiny-llama@1") == 2
    assert "was fitted with encoder tiny-bert@1, not tiny-llama@1, seed 0, not 1" in capsys.readouterr().err
    assert export(*words, "--config", "rank=3") == 2
    assert "--config cannot change what is fitted already" in capsys.readouterr().err
    assert export(*words, "--save", tmp_path / "b") == 2
    assert "leave --save out" in capsys.readouterr().err
    assert export("lora-global", *words[1:]) == 2
    assert "holds the method 'p-share-lora', not 'lora-global'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_saved_method_that_does_not_say_its_data_must_be_told(exported, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("method.json", "learned.safetensors"):
        (bare / name).write_bytes((exported / "fitted" / name).read_bytes())
    words = ["p-share-lora", "--from", bare, "--user", 0, "--out", tmp_path / "a"]
    assert export(*words) == 2
    assert "give --dataset, as" in capsys.readouterr().err
    assert export(*words, "--dataset", DATASET, "--encoder", ENCODER, "--n-train", 4) == 0
    (bare / "learned.safetensors").write_bytes(b"short")
    assert export(*words, "--dataset", DATASET, "--encoder", ENCODER) == 1
    assert "is not a whole saved method" in capsys.readouterr().err
    (bare / FITTED_ON).write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        export_adapter(Wanted("p-share-lora", {}, saved=bare), "0", tmp_path / "c")


@pytest.mark.parametrize("option", ["--out", "--save"])
def test_a_folder_of_something_else_is_left_alone(option, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    folders = {"--out": tmp_path / "out", "--save": tmp_path / "save", option: tmp_path / "mine"}
    given = [word for pair in folders.items() for word in pair]
    assert export("p-share-lora", "--dataset", DATASET, "--encoder", ENCODER, "--user", 0, *given) == 2
    assert "holds" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("words", [["export", "--help"], ["export", "peft", "--help"]], ids=" ".join)
def test_help_has_an_example_and_loads_nothing_heavy(words):
    code = (
        "import sys\nfrom benchmarks.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'peft', 'scipy', 'pyarrow'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Example: hetpref export peft p-share-lora --dataset" in done.stdout or words == ["export", "--help"]
