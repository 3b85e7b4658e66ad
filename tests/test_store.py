"""Files of a run as a specification: what survives being killed, and the one line where something is wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcdpo_utils import store
from fcdpo_utils.lab.grid import slug
from fcdpo_utils.store import StoreError

RECORDS = [{"id": "a", "n": 1}, {"id": "b", "text": "Größe\n<|im_end|>\u2028"}, {"id": "c", "list": [1, None, 0.5]}]


def line_of(error: pytest.ExceptionInfo[StoreError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10)
records = st.dictionaries(st.text(max_size=5), values | st.lists(values, max_size=3), max_size=4)
on_disk = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


# Appending and reading


def test_what_was_appended_is_read(path: Path) -> None:
    store.append(path, RECORDS[:1])
    store.append(path, RECORDS[1:])
    assert store.read(path) == RECORDS


@given(st.lists(records, max_size=5))
@on_disk
def test_any_records_are_read_as_they_were_appended(path: Path, made: list[dict]) -> None:
    path.unlink(missing_ok=True)
    store.append(path, made)
    assert store.read(path) == made


def test_a_record_is_one_line_whatever_its_text(path: Path) -> None:
    store.append(path, RECORDS)
    assert path.read_bytes().count(b"\n") == len(RECORDS)


def test_equal_values_are_dumped_as_the_same_text() -> None:
    assert store.dump({"b": 1, "a": "ü"}) == store.dump({"a": "ü", "b": 1}) == '{"a": "ü", "b": 1}'


HALF = "\ud83d"  # half of a surrogate pair, for which UTF-8 has no bytes


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(st.sampled_from(["ü", "\\", HALF, "d"])), max_size=3)))
@on_disk
def test_text_that_utf8_cannot_hold_is_read_as_it_was_appended(path: Path, made: list[dict]) -> None:
    path.unlink(missing_ok=True)
    store.append(path, made)
    assert store.read(path) == made


def test_text_that_utf8_cannot_hold_does_not_spoil_a_whole_file(path: Path) -> None:
    store.write_json(path, {"text": HALF})
    assert store.read_json(path) == {"text": HALF}
    store.write(path, f"a page with {HALF}")
    assert path.read_text(encoding="utf-8") == "a page with \\ud83d"


def test_an_empty_file_holds_no_records(path: Path) -> None:
    store.append(path, [])
    assert store.read(path) == []


def test_records_are_read_one_at_a_time(path: Path) -> None:
    store.append(path, RECORDS)
    assert next(store.iterate(path)) == RECORDS[0]


# Files that were cut off


@given(cut=st.integers(0, 200))
@on_disk
def test_wherever_a_file_is_cut_off_the_whole_records_are_kept(path: Path, cut: int) -> None:
    whole = "".join(store.dump(record) + "\n" for record in RECORDS).encode()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert store.read(path, repair=True) == RECORDS[:kept]
    store.append(path, RECORDS[kept:])
    assert path.read_bytes() == whole


def test_a_torn_last_line_is_removed_and_reported(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text('{"a": 1}\n{"a": 2')
    assert store.read(path, repair=True) == [{"a": 1}]
    assert path.read_text() == '{"a": 1}\n'
    assert capsys.readouterr().out == "records.jsonl: the torn last line 2 was removed\n"


def test_a_last_line_without_its_line_break_is_torn(path: Path) -> None:
    path.write_text('{"a": 1}\n{"a": 22}')  # it may have been {"a": 22}, or the start of {"a": 22}...
    assert store.read(path, repair=True) == [{"a": 1}]


def test_without_repair_a_torn_last_line_is_an_error_and_the_file_is_left_alone(path: Path) -> None:
    path.write_text('{"a": 1}\n{"a": 2')
    with pytest.raises(StoreError) as error:
        store.read(path)
    assert line_of(error) == "records.jsonl: line 2 is not a JSON record; delete the file to make it again"
    assert path.read_text() == '{"a": 1}\n{"a": 2'


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize("broken", ["{", "", "null", "[1]", '{"a": 1}{"a": 2}', "\ufffd"])
def test_a_broken_line_in_the_middle_is_an_error_that_names_it(path: Path, broken: str, repair: bool) -> None:
    text = f'{{"a": 1}}\n{broken}\n{{"a": 3}}\n'
    path.write_text(text)
    with pytest.raises(StoreError) as error:
        store.read(path, repair)
    assert line_of(error) == "records.jsonl: line 2 is not a JSON record; delete the file to make it again"
    assert path.read_text() == text


def test_bytes_that_are_no_text_are_a_broken_line(path: Path) -> None:
    path.write_bytes(b'\xff\xfe\n{"a": 1}\n')
    with pytest.raises(StoreError) as error:
        store.read(path, repair=True)
    assert line_of(error).startswith("records.jsonl: line 1 is not a JSON record")


def test_a_repair_that_the_disk_refuses_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("{")
    monkeypatch.setattr(os, "truncate", raising(errno.EROFS))
    with pytest.raises(StoreError) as error:
        store.read(path, repair=True)
    assert line_of(error) == f"cannot use {path}: read-only file system"


# Whole files at once


def raising(code: int):
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_is_replaced_by_the_new_text(path: Path) -> None:
    store.write(path, "old, and longer")
    store.write(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_replaces_nothing(path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, raising(errno.ENOSPC))
        with pytest.raises(StoreError) as error:
            store.write(path, "new")
    assert line_of(error) == f"cannot use {path}: no space left on device"
    assert path.read_text() == "old"
    store.write(path, "new")
    assert path.read_text() == "new"


def test_a_whole_jsonl_file_is_read_back(path: Path) -> None:
    store.write_records(path, RECORDS)
    assert store.read(path) == RECORDS


def test_records_that_fail_midway_replace_nothing(path: Path) -> None:
    store.write_records(path, RECORDS)
    with pytest.raises(TypeError):
        store.write_records(path, [{"a": 1}, {"b": object()}])
    assert store.read(path) == RECORDS


def test_a_json_file_is_read_back_and_ends_its_last_line(path: Path) -> None:
    store.write_json(path, {"b": [1, 0.5], "a": "ü"})
    assert store.read_json(path) == {"b": [1, 0.5], "a": "ü"}
    assert path.read_text(encoding="utf-8").startswith('{\n  "a": "ü"') and path.read_text().endswith("}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_json_file_holds_no_number_that_json_does_not_have(path: Path, number: float) -> None:
    with pytest.raises(ValueError):
        store.write_json(path, {"loss": number})
    assert not path.exists()


def test_a_broken_json_file_is_one_line(path: Path) -> None:
    path.write_text('{"a": ')
    with pytest.raises(StoreError) as error:
        store.read_json(path)
    assert line_of(error).startswith("records.jsonl is not JSON (Expecting value")
    assert line_of(error).endswith("); delete it to make it again")


# Places that cannot be used

ACCESSES = {
    "append": lambda path: store.append(path, RECORDS),
    "read": store.read,
    "write": lambda path: store.write(path, "text"),
    "write_records": lambda path: store.write_records(path, RECORDS),
    "write_json": lambda path: store.write_json(path, {}),
    "read_json": store.read_json,
    "file_digest": store.file_digest,
}


@pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES)
def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path, access) -> None:
    (tmp_path / "run").write_text("I am a file")
    path = tmp_path / "run" / "records.jsonl"
    with pytest.raises(StoreError) as error:
        access(path)
    assert line_of(error) == f"cannot use {path}: not a directory"


@pytest.mark.parametrize("name", ["append", "write", "write_records", "write_json"])
@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "no space left on device"), (errno.EACCES, "permission denied")]
)
def test_a_disk_that_takes_no_more_is_one_line(
    path: Path, name: str, code: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.open", raising(code))
    with pytest.raises(StoreError) as error:
        ACCESSES[name](path)
    assert line_of(error) == f"cannot use {path}: {reason}"


@pytest.mark.parametrize("name", ["read", "read_json", "file_digest"])
def test_a_file_that_is_not_there_is_one_line(path: Path, name: str) -> None:
    with pytest.raises(StoreError) as error:
        ACCESSES[name](path)
    assert line_of(error) == f"cannot use {path}: no such file or directory"


def test_a_missing_artifact_names_the_stage_to_run_first(path: Path) -> None:
    with pytest.raises(StoreError) as error:
        store.require(path, "02_teacher_chains")
    assert line_of(error) == f"run 02_teacher_chains first: records.jsonl is missing in {path.parent}"


def test_an_artifact_that_is_there_is_given_back(path: Path) -> None:
    path.touch()
    assert store.require(path, "02") == path


# Names of files


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("D*, twice", "dstar-twice"),
        ("beta 0.02", "beta-0.02"),
        ("..", ""),
        (".", ""),
        (" ..", ""),
        ("...", ""),
        ("β", ""),
    ],
)
def test_a_name_becomes_a_file_in_its_folder_or_nothing(name: str, file: str) -> None:
    assert slug(name) == file


@given(st.text(st.sampled_from(".-/ aB*"), max_size=8))
def test_no_name_leads_out_of_its_folder_or_hides(name: str) -> None:
    assert "/" not in slug(name) and not slug(name).startswith((".", "-"))


# Digests


def test_a_digest_is_the_same_for_text_and_its_bytes() -> None:
    assert store.digest("ü", b"b") == store.digest("ü".encode(), "b")


def test_text_that_utf8_cannot_hold_has_a_digest_too() -> None:
    assert len({store.digest(HALF), store.digest("\ud83e"), store.digest("?")}) == 3


def test_a_digest_knows_where_one_part_ends() -> None:
    assert len({store.digest("ab", "c"), store.digest("a", "bc"), store.digest("abc")}) == 3


def test_a_file_digest_is_its_sha256(path: Path) -> None:
    path.write_bytes(b"abc")
    assert store.file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
