"""The store: files that are whole or not there, one winner for each name, and nothing but regular files."""

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from refusals import refused
from toy_cache import ENGINE, made_up, new_cache, shard_files

from llmembed.errors import CacheError
from llmembed.storage import ORPHAN_SECONDS, list_names, locks, size_of
from llmembed.storage.local import LocalStore


def test_a_created_file_is_whole_whenever_it_is_seen(tmp_path):
    store, content, done = LocalStore(tmp_path), os.urandom(1 << 20), threading.Event()

    def watch():
        seen = set()
        while not done.is_set():
            seen |= {store.read(name) == content for name in list_names(store, "records")}
        return seen

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        assert all(store.create(f"records/{i}", content) for i in range(20))
        done.set()
        assert watching.result() <= {True}
    assert len(list((tmp_path / "records").iterdir())) == len(list_names(store, "records")) == 20


def test_a_name_is_created_once_and_never_replaced(tmp_path):
    store = LocalStore(tmp_path)
    assert store.create("records/a", b"first") and not store.create("records/a", b"second")
    assert store.read("records/a") == b"first" and size_of(store, "records/a") == 5
    store.delete("records/a")
    store.delete("records/a")
    assert (size_of(store, "records/a"), list_names(store, "records"), list_names(store, "nothing")) == (None, [], [])


def without(monkeypatch, **functions):
    """Let functions of `os` fail with an error number, as they do on some file systems."""

    def failing(number):
        def fail(*_, **__):
            raise OSError(number, os.strerror(number))

        return fail

    for name, number in functions.items():
        monkeypatch.setattr(os, name, failing(number))


def without_locks(monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", fail)


def race(folder, count=16):
    """Let many create the same name with contents of their own -> who won, and what is there."""
    together = threading.Barrier(count)

    def create(number):
        together.wait()
        return LocalStore(folder).create("records/a", b"%d" % number)

    with ThreadPoolExecutor(count) as pool:
        won = list(pool.map(create, range(count)))
    return won, LocalStore(folder).read("records/a")


@pytest.mark.parametrize("reply", [FileExistsError(errno.EEXIST, "File exists"), OSError(errno.EIO, "I/O error")])
def test_a_hard_link_whose_reply_is_lost_was_made_all_the_same(reply, tmp_path, monkeypatch):
    link = os.link

    def link_and_lose_the_reply(*paths):
        link(*paths)
        raise reply

    monkeypatch.setattr(os, "link", link_and_lose_the_reply)
    cache = new_cache(tmp_path)
    assert cache.write_shard(made_up(["a", "b"]), ENGINE)
    assert len(shard_files(cache)) == len(cache.commits) == 1
    cache.verify()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV])
def test_without_hard_links_exactly_one_writer_wins(number, tmp_path, monkeypatch):
    without(monkeypatch, link=number)
    won, content = race(tmp_path)
    assert won.count(True) == 1
    assert content == b"%d" % won.index(True)
    assert LocalStore(tmp_path).create("records/a", content) and not LocalStore(tmp_path).create("records/a", b"x")


def test_neither_hard_links_nor_locks_is_refused_and_says_so(tmp_path, monkeypatch):
    without(monkeypatch, link=errno.EPERM)
    without_locks(monkeypatch)
    with refused(CacheError, match=r"neither hard links nor locks.*Name a folder on another one"):
        LocalStore(tmp_path).create("records/a", b"content")
    assert list((tmp_path / "records").iterdir()) == []


def test_hard_links_alone_are_enough(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    won, content = race(tmp_path)
    assert won.count(True) == 1 and content == b"%d" % won.index(True)


@pytest.mark.parametrize("links", [True, False])
def test_what_is_in_the_way_of_a_file_is_named(links, tmp_path, monkeypatch):
    if not links:
        without(monkeypatch, link=errno.EPERM)
    (tmp_path / "records" / "a").mkdir(parents=True)
    (tmp_path / "others").write_text("a file")
    for name in ("records/a", "others/a"):
        with refused(CacheError, match=rf"{name.removesuffix('/a')}.* is in the way.*Move it elsewhere"):
            LocalStore(tmp_path).create(name, b"content")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EISDIR])
def test_a_folder_that_cannot_be_flushed_is_no_hindrance(number, tmp_path, monkeypatch):
    open_file = os.open

    def open_no_folder(path, *arguments, **options):
        if Path(path).is_dir():
            raise OSError(number, os.strerror(number))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_no_folder)
    LocalStore(tmp_path).put("shards/a", b"content")
    assert LocalStore(tmp_path).create("records/a", b"content")


def test_a_file_can_be_replaced(tmp_path):
    store = LocalStore(tmp_path)
    for content in (b"first", b"second"):
        store.put("a", content)
        assert store.read("a") == content
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folders_pipes_and_links_are_no_files_and_nothing_waits_for_them(tmp_path):
    (tmp_path / "records" / "folder").mkdir(parents=True)
    (tmp_path / "records" / "file").write_text("a file")
    (tmp_path / "records" / "link").symlink_to(tmp_path / "records" / "file")
    (tmp_path / "records" / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "records" / "pipe")
    store = LocalStore(tmp_path)
    assert list_names(store, "records") == ["records/file"]
    for name in ("folder", "link", "loop", "pipe", "nothing", "file/below"):
        assert size_of(store, f"records/{name}") is None
        for look in (store.read, store.map):
            with pytest.raises(FileNotFoundError):
                look(f"records/{name}")


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path, monkeypatch):
    without(monkeypatch, fsync=errno.ENOSPC)
    with refused(CacheError, match=r"records/a cannot be written: No space left on device\. Make room"):
        LocalStore(tmp_path).put("records/a", b"content")
    assert list((tmp_path / "records").iterdir()) == []


# Writes a file until it is killed.
WRITER = """
import os, sys, time
from pathlib import Path
from llmembed.storage.local import LocalStore
os.fsync = lambda descriptor: (print("writing", flush=True), time.sleep(600))
LocalStore(Path(sys.argv[1])).put("shards/a", b"half")
"""


def test_what_a_dead_writer_left_is_swept_at_once_and_what_a_living_one_writes_stays(tmp_path):
    store = LocalStore(tmp_path)
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout.readline() == b"writing\n"
            (partial,) = (tmp_path / "shards").iterdir()
            store.delete_abandoned("shards")
            assert partial.exists() and list_names(store, "shards") == []
        finally:
            writer.kill()
    store.delete_abandoned("shards")
    assert list((tmp_path / "shards").iterdir()) == []


def test_without_locks_hidden_files_are_swept_when_they_are_an_hour_old(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    (tmp_path / "shards").mkdir()
    young, old, own = (tmp_path / "shards" / f".{name}" for name in ("a.01234567", "b.89abcdef", "mine"))
    for path, age in ((young, ORPHAN_SECONDS - 60), (old, ORPHAN_SECONDS + 60), (own, 1e6)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    LocalStore(tmp_path).delete_abandoned("shards")
    assert sorted((tmp_path / "shards").iterdir()) == [young, own]


def test_a_writer_whose_hidden_file_was_swept_begins_again(tmp_path, monkeypatch):
    flock, swept = locks.fcntl.flock, []

    def sweep_first(*arguments):
        if not swept:
            swept.extend(path.unlink() for path in (tmp_path / "records").iterdir())
        flock(*arguments)

    monkeypatch.setattr(locks.fcntl, "flock", sweep_first)
    assert LocalStore(tmp_path).create("records/a", b"content")
    assert swept and LocalStore(tmp_path).read("records/a") == b"content"
