"""What a record may hold: text without control characters, costs that are not negative, one key per measurement."""

import json

import pytest
from board_fixtures import Bench, pooled

from datasets_registry.errors import DataError
from leaderboard.records import RunRecord, canonical_sha256, printable, record_key
from leaderboard.store import read_record


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("records"), n_train=("all",), n_support=(), seeds=1)
    bench.run({"pooled-bt": pooled})
    return next(iter(bench.root.glob("records/*/*/*.json")))


def changed(path, place, value):
    told = json.loads(path.read_text())
    at = told
    *outer, last = place.split(".")
    for name in outer:
        at = at[name]
    at[last] = value
    other = path.with_name("changed.json")
    other.write_text(json.dumps(told))
    return other


@pytest.mark.parametrize("control", ["\x1b[31m", "\x07", "\x00", "\x9b", "\r", "\x7f", "\uffff"])
@pytest.mark.parametrize(
    ("place", "made"),
    [
        ("method.version", str),
        ("method.dist", str),
        ("reason", str),
        ("dataset.encoder", str),
        ("dataset.licence", str),
        ("environment.device_class", str),
        ("environment.packages", lambda text: {text: "1"}),
        ("environment.packages", lambda text: {"torch": text}),
        ("margins.control", lambda text: {"wrong_user": text}),
        ("method.config", lambda text: {"a": [{"b": text}]}),
        ("method.config", lambda text: {"a": {text: 1}}),
    ],
)
def test_control_characters_are_refused_wherever_text_stands(path, place, made, control):
    with pytest.raises(DataError, match=r"changed\.json"):
        read_record(changed(path, place, made(f"1{control}")))
    assert read_record(changed(path, place, made("1\t²"))).protocol


def test_a_reason_may_have_lines_and_a_run_may_hand_what_a_method_printed(path):
    assert read_record(changed(path, "reason", "first\nsecond\tthird")).reason == "first\nsecond\tthird"
    told = read_record(path).model_dump()
    assert RunRecord.model_validate(told | {"reason": "\x1b[31mred\r\nnext"}).reason == "[31mred\nnext"


def test_a_message_has_no_control_characters_of_the_record(path):
    with pytest.raises(DataError) as caught:
        read_record(changed(path, "cost.\x1b[31mevil", 1))
    assert "evil" in str(caught.value)
    assert printable(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize("name", ["fit_s", "train_comparisons_per_s", "params_per_user", "peak_device_bytes"])
def test_costs_are_not_negative(path, name):
    assert read_record(changed(path, f"cost.{name}", 0))
    with pytest.raises(DataError, match=name):
        read_record(changed(path, f"cost.{name}", -1))


@pytest.mark.parametrize("config", [{"a": float("nan")}, {"a": [float("inf")]}])
def test_a_config_is_strict_json(path, config):
    with pytest.raises(DataError, match="config"):
        read_record(changed(path, "method.config", config))


def test_a_config_is_not_nested_without_end(path):
    deep = []
    for _ in range(30):
        deep = [deep]
    with pytest.raises(DataError, match="config"):
        read_record(changed(path, "method.config", {"a": deep}))


def test_counts_are_numbers_that_floats_hold(path):
    with pytest.raises(DataError, match="n_users"):
        read_record(changed(path, "split.n_users", 10**300))


def test_the_digest_of_the_source_may_be_told(path):
    assert read_record(path).method.source_sha256 is None
    assert read_record(changed(path, "method.source_sha256", "a" * 64)).method.source_sha256 == "a" * 64
    with pytest.raises(DataError, match="source_sha256"):
        read_record(changed(path, "method.source_sha256", "x"))


def test_a_key_names_a_fit_and_what_was_asked_of_it():
    keys = {record_key("f" * 64, "seen", None), record_key("f" * 64, "unseen", 0), record_key("e" * 64, "unseen", 0)}
    assert len(keys) == 3
    told = {"n_support": 4, "regime": "unseen", "fit": "f" * 64}
    assert record_key("f" * 64, "unseen", 4) == canonical_sha256(told)


def test_records_of_one_cell_are_told_and_the_finished_clean_one_counts(path):
    record = read_record(path)
    other = record.model_copy(update={"key": "0" * 64, "fit_key": "1" * 64})
    assert other.cell == record.cell
    assert other.model_copy(update={"seed": 1}).cell != record.cell
    dirty = other.model_copy(update={"source": record.source.model_copy(update={"dirty": True})})
    failed = other.model_copy(update={"status": "failed"})
    assert min(dirty, failed, record, key=lambda r: r.preference) is record


def test_a_record_of_before_a_field_was_there_is_read(path):
    told = json.loads(path.read_text())
    del told["cost"]["train_comparisons_per_s"], told["dataset"]["encoder_revision"]
    older = path.with_name("older.json")
    older.write_text(json.dumps(told))
    assert read_record(older) == read_record(path)


@pytest.mark.parametrize("name", ["lora-global+local-a", "a", "0", "x+"])
def test_a_method_may_be_named(path, name):
    assert read_record(changed(path, "method.name", name)).method.name == name


@pytest.mark.parametrize("name", ["", "+a", "-a", "A", "a/b", "a b", "a.b", "..", "a\n", "a" * 65])
def test_a_name_is_one_folder_and_nothing_else(path, name):
    with pytest.raises(DataError, match=r"method\.name"):
        read_record(changed(path, "method.name", name))


def test_the_names_of_records_are_those_that_methods_may_have():
    from leaderboard.schema import schema_text
    from methods.registry import NAME

    pattern = json.loads(schema_text("record.schema.json"))["$defs"]["MethodPart"]["properties"]["name"]
    assert (pattern["pattern"], pattern["maxLength"]) == ("^[a-z0-9][a-z0-9+-]*$", 64)
    assert NAME.pattern == "[a-z0-9][a-z0-9+-]{0,63}"
