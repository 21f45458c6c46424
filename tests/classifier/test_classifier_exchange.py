"""A classifier is exchanged for another one whole, whatever ends the process that saves it."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_classifier import digit_embeddings, make_classifier

from llmembed.classifier import Classifier
from llmembed.classifier.files import check_destination
from llmembed.errors import LLMEmbedError

OLD, NEW = make_classifier("lda"), make_classifier("lda", class_weight="balanced", shrinkages=(10.0,))
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def numbers(classifier: Classifier) -> bytes:
    return classifier.predict_proba([digit_embeddings()[0][600:650]]).tobytes()


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; give its status, as `os.waitpid` does."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_save(folder: Path, step: int) -> bool:
    """Save `NEW`, and be killed before the step of this number; tell whether it came to that."""

    def work() -> None:
        seen = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in STEPS and any(str(folder.parent) in str(each) for each in arguments):
                seen += 1
                if seen > step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        NEW.save(folder)

    return os.WIFSIGNALED(in_child(work))


def load(folder: Path) -> None:
    Classifier.load(folder)


@pytest.mark.parametrize("whoever_comes_next", [load, check_destination, OLD.save])
def test_a_kill_at_any_step_leaves_the_old_classifier_or_the_new_one_and_nothing_else(whoever_comes_next, tmp_path):
    known, step, found = {numbers(OLD), numbers(NEW)}, 0, set()
    folder = tmp_path / "models" / "m"
    OLD.save(folder)
    while killed_save(folder, step):
        whoever_comes_next(folder)
        found.add(numbers(Classifier.load(folder)))
        assert [entry.name for entry in folder.parent.iterdir()] == ["m"], f"step {step}"
        assert found <= known, f"step {step}"
        OLD.save(folder)
        step += 1
    assert step > 20
    assert numbers(Classifier.load(folder)) == numbers(NEW)


def test_a_kill_between_the_two_renames_is_finished_by_whoever_loads(tmp_path):
    OLD.save(tmp_path / "m")
    NEW.save(tmp_path / ".m.0123abcd")
    (tmp_path / "m").rename(tmp_path / ".m.0123abcd.replaced")
    assert numbers(Classifier.load(tmp_path / "m")) == numbers(NEW)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_an_old_classifier_comes_back_where_the_new_one_is_not_whole(tmp_path):
    OLD.save(tmp_path / ".m.0123abcd.replaced")
    (tmp_path / ".m.0123abcd").mkdir()
    (tmp_path / ".m.0123abcd" / "head.json").write_text("half")
    assert numbers(Classifier.load(tmp_path / "m")) == numbers(OLD)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_what_a_living_process_writes_and_what_is_not_ours_stays(tmp_path):
    reader, writer = os.pipe()

    class Stop:
        def save(self, folder):
            os.write(writer, folder.name.encode())
            signal.pause()

    child = os.fork()
    if child == 0:
        try:
            Classifier(NEW.record, NEW.feature_map, Stop()).save(tmp_path / "m")
        finally:
            os._exit(1)
    os.close(writer)
    try:
        hidden = os.read(reader, 100).decode()
        (tmp_path / ".m.89abcdef").mkdir()
        (tmp_path / ".m.89abcdef" / "diary.txt").write_text("mine")
        OLD.save(tmp_path / "m")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["m", hidden, ".m.89abcdef"])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    Classifier.load(tmp_path / "m")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".m.89abcdef", "m"]


@pytest.mark.parametrize("head", ["lda", "mlp"])
def test_a_full_disk_is_one_error_and_the_old_classifier_stays(head, tmp_path):
    OLD.save(tmp_path / "m")
    larger = make_classifier(head)
    reader, writer = os.pipe()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        try:
            larger.save(tmp_path / "m")
        except LLMEmbedError as error:
            os.write(writer, str(error).encode())

    assert in_child(work) == 0
    os.close(writer)
    assert b"m cannot be written: File too large. What was there is unchanged." in os.read(reader, 1000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    assert numbers(Classifier.load(tmp_path / "m")) == numbers(OLD)


@pytest.mark.parametrize("name", ["classifier.json", "head.safetensors"])
def test_a_reader_that_meets_the_same_classifier_saved_again_reads_that(name, tmp_path, monkeypatch):
    OLD.save(tmp_path / "m")
    exchanged = []

    def stat(path, original=os.stat, **arguments):
        if path == name and not exchanged:
            exchanged.append(path)
            OLD.save(tmp_path / "m")
        return original(path, **arguments)

    monkeypatch.setattr(os, "stat", stat)
    assert numbers(Classifier.load(tmp_path / "m")) == numbers(OLD)
    assert exchanged


def test_a_reader_meets_one_classifier_or_the_other_while_they_are_exchanged(tmp_path):
    known, done = {numbers(OLD), numbers(NEW)}, threading.Event()
    OLD.save(tmp_path / "m")

    def exchange() -> None:
        while not done.is_set():
            for classifier in (NEW, OLD):
                classifier.save(tmp_path / "m")

    writers = [threading.Thread(target=exchange) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        assert {numbers(Classifier.load(tmp_path / "m")) for _ in range(100)} <= known
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    assert np.isfinite(np.frombuffer(numbers(Classifier.load(tmp_path / "m")), np.float32)).all()
