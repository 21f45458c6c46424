"""Outputs appear whole or not at all, and sealed records tell when a byte of them was changed."""

import json
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from llmembed.errors import UsageError
from llmembed.files import ABANDONED_SECONDS, check_folder_writable, check_writable, replacing
from llmembed.identity import seal, unseal

RECORD = {"dataset": "films", "rows": 3, "share": 0.1, "layers": [1, -1], "odd": "\x1b☃"}


def test_a_file_that_fails_half_way_stays_what_it_was(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("before")
    with (
        refused(UsageError, match=r"out\.csv cannot be written: .*What was there is unchanged"),
        replacing(path) as partial,
    ):
        partial.write_text("half of")
        raise OSError(28, os.strerror(28))
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half of")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]


def test_a_whole_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new" / "out.csv"
    for content in ("first", "second"):
        with replacing(path) as partial:
            assert partial.suffix == ".csv"
            partial.write_text(content)
        assert path.read_text() == content


def test_what_a_killed_writer_left_is_deleted_by_the_next_one(tmp_path):
    path = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        raise KeyboardInterrupt
    for age, left in ((2, partial), (0, partial.with_stem(partial.stem.replace("-", "-0")))):
        left.write_text("half of")
        os.utime(left, (time.time() - age * ABANDONED_SECONDS,) * 2)
    with replacing(path) as another:
        another.write_text("whole")
    assert not partial.exists() and len(list(tmp_path.iterdir())) == 2, "the writer of the other may be at work"


@pytest.mark.parametrize("name", ["x" * 300 + ".csv", "file/out.csv", "file/deep/out.csv", "folder"])
def test_a_place_that_cannot_be_written_is_refused_before_and_left_alone(name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with refused(UsageError, match=r"cannot be written"):
        check_writable(tmp_path / name)
    check_writable(tmp_path / "new" / "deep" / "out.csv")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("check", [check_writable, check_folder_writable])
def test_checking_a_place_takes_no_folder_from_another_process(check, tmp_path):
    places = [tmp_path / str(number) / "cache" / "films" for number in range(300)]
    errors: list[OSError] = []

    def make() -> None:
        try:
            for place in places:
                place.mkdir(parents=True)
        except OSError as error:
            errors.append(error)

    making = threading.Thread(target=make)
    making.start()
    for place in places:
        check(place / "out")
    making.join()
    assert not errors


@given(st.data())
def test_any_changed_byte_of_a_sealed_record_is_harmless_or_refused(data):
    content = bytearray(seal(RECORD))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert unseal(bytes(content)) == RECORD
    except ValueError:
        assert bytes(content) != seal(RECORD)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b"\xff", json.dumps(RECORD).encode()])
def test_what_is_no_sealed_record_is_refused(content):
    with pytest.raises(ValueError):
        unseal(content)
