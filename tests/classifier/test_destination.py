"""Where a classifier may be written: what is not one of ours is refused by name and left as it is."""

import os
from pathlib import Path

import pytest
from refusals import refused
from small_classifier import make_classifier

from llmembed.classifier import Classifier
from llmembed.classifier.files import check_destination
from llmembed.errors import ClassifierError, LLMEmbedError, UsageError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ("report.json", r"report\.json"),
        ("metrics.json", r"metrics\.json"),
        ("head.txt/notes.md", r"head\.txt"),
        ("classifier.json/notes.md", r"classifier\.json"),
        ("classifier.json", r"classifier\.json"),
        ("photos/cat.jpg", "photos"),
    ],
)
def test_a_folder_that_is_no_classifier_of_ours_is_refused_by_name_and_untouched(theirs, named, tmp_path):
    (tmp_path / "m" / theirs).parent.mkdir(parents=True)
    (tmp_path / "m" / theirs).write_text('{"format": "A4", "labels": []}')
    before = contents(tmp_path)
    with refused(ClassifierError, match=f"m holds {named}"):
        make_classifier().save(tmp_path / "m")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("theirs", ["head.txt/notes.md", "notes.md"])
def test_a_classifier_beside_something_else_is_not_replaced(theirs, tmp_path):
    make_classifier().save(tmp_path / "m")
    (tmp_path / "m" / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / "m" / theirs).write_text("mine")
    before = contents(tmp_path)
    with refused(ClassifierError, match=theirs.partition("/")[0]):
        check_destination(tmp_path / "m")
    assert contents(tmp_path) == before


def test_links_are_not_followed(tmp_path):
    make_classifier().save(tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    (tmp_path / "m" / "report.json").symlink_to(tmp_path / "elsewhere.json")
    with refused(ClassifierError, match=r"link is a link to .*m; name"):
        check_destination(tmp_path / "link")
    with refused(ClassifierError, match=r"m holds report\.json"):
        check_destination(tmp_path / "m")


@pytest.mark.parametrize("record", ['{"format": 1, "fusion": "mean", "head": "lda", "labels": ["a"]}', None])
def test_an_empty_folder_and_a_classifier_of_any_format_are_replaced(record, tmp_path):
    (tmp_path / "m").mkdir()
    if record:
        (tmp_path / "m" / "classifier.json").write_text(record)
        (tmp_path / "m" / "head.json").write_text("{}")
    make_classifier().save(tmp_path / "m")
    assert Classifier.load(tmp_path / "m").record.head == "lda"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "file", "file/m", "nobody/m"])
def test_a_place_where_no_folder_can_be_made_is_refused_at_once(name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nobody").symlink_to("/proc/nobody")
    with pytest.raises((ClassifierError, UsageError), match=r"is a file|cannot be written"):
        check_destination(tmp_path / name)
    check_destination(tmp_path / "new" / "deep" / "m")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "nobody"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LLMEmbedError, match="cannot be written: Permission denied"):
        check_destination(tmp_path / "m")
