"""Whatever is damaged in a real cache: `train` names a command, and that command mends it. And a full disk."""

import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from refusals import refused

from llmembed.cache import Cache
from llmembed.cli import main
from llmembed.cli.remedies import fixes
from llmembed.datasets import load_dataset
from llmembed.errors import CacheError
from llmembed.extraction import plan_extraction, run_extraction
from llmembed.training import train

PROGRAM = "from llmembed.cli import main; main()"


@pytest.fixture(scope="module")
def small(pydocs, tiny_llama, tmp_path_factory):
    """A data set of 120 texts in a file, and a root with their embeddings by the tiny Llama."""
    folder = tmp_path_factory.mktemp("small")
    parts = [pydocs.table.filter(pl.col("split") == split).head(60) for split in ("train", "test")]
    pl.concat(parts).select("text", "label", "split").write_parquet(folder / "small.parquet")
    dataset = load_dataset(str(folder / "small.parquet"))
    run_extraction(plan_extraction(dataset, root=folder / "cache", backbone=str(tiny_llama)))
    return dataset, folder / "cache"


@pytest.fixture
def cache(small, tmp_path):
    """A copy of the cache."""
    shutil.copytree(small[1], tmp_path / "cache")
    return Cache.latest(tmp_path / "cache")


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x11
    path.write_bytes(content)


def put_a_pipe(path):
    path.unlink()
    if path.parent.name != "commits":
        os.mkfifo(path)


@pytest.mark.parametrize("damage", [Path.unlink, change_byte, lambda path: path.write_bytes(b""), put_a_pipe])
@pytest.mark.parametrize("pattern", ["spec.json", "commits/*", "shards/*", "extractions/*"])
def test_the_command_that_is_named_mends_the_damage(pattern, damage, small, cache, tmp_path, monkeypatch):
    dataset, root = small[0], Path(cache.url).parent.parent
    options = {"root": root, "head": "lda", "fusion": "mean", "out": tmp_path / "m"}
    before = train(dataset, **options).report
    cache.record_extraction(cache.last_extraction())
    damage(max(Path(cache.url).glob(pattern)))
    try:
        assert train(dataset, **options).report == before
    except CacheError as error:
        (command,) = fixes(error)
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    assert train(dataset, **options).report == before


def test_a_damaged_record_is_told_before_anything_is_fitted(small, cache, tmp_path, monkeypatch):
    dataset, (record,) = small[0], Path(cache.url).glob("extractions/*")
    whole = record.read_bytes()
    monkeypatch.setattr("llmembed.training.train_on", lambda *_, **__: pytest.fail("it is fitted"))
    # What is left of the only record tells where the model lies; of a torn one nothing is left.
    for content, model in ((whole.replace(b"rows", b"roWs"), str(tmp_path.parent)), (b"{", "PATH/TO/tiny-llama")):
        record.write_bytes(content)
        with refused(CacheError, match=rf"extractions/.* is damaged .*small.parquet --backbone {model}"):
            train(dataset, root=Path(cache.url).parent.parent, out=tmp_path / "m")


def test_what_is_no_file_in_the_place_of_a_record_is_named_before_a_model_is_loaded(small, cache, tiny_llama):
    plan = plan_extraction(small[0], root=Path(cache.url).parent.parent, backbone=str(tiny_llama))
    (record,) = Path(cache.url).glob("commits/*")
    record.unlink()
    record.mkdir()
    with refused(CacheError, match=rf"{record.name} is in the way: it is not a regular file. Move it elsewhere"):
        run_extraction(plan)
    with refused(CacheError, match=rf"{record.name} is in the way: it is not a regular file. Move it elsewhere"):
        train(small[0], root=Path(cache.url).parent.parent, out=Path(cache.url) / "m")
    record.rmdir()
    assert run_extraction(plan).embedded == 120


def test_an_extraction_does_not_end_well_while_texts_are_missing(small, cache, tiny_llama, monkeypatch):
    plan = plan_extraction(small[0], root=Path(cache.url).parent.parent, backbone=str(tiny_llama))
    (record,) = Path(cache.url).glob("commits/*")
    record.unlink()
    written = Cache.write_shard
    # Another process takes out what is written.
    monkeypatch.setattr(Cache, "write_shard", lambda *arguments: (written(*arguments), record.unlink()))
    with refused(CacheError, match=r"120 of 120 texts are not in .*fix: llmembed extract"):
        run_extraction(plan)
    assert len(list(Path(cache.url).glob("extractions/*"))) == 1


def run(words, limit):
    """Run the command line in a process that can write no file larger than `limit` bytes, as on a full disk."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_ends_an_extraction_with_one_error_and_the_next_one_completes_it(small, tiny_llama, tmp_path):
    file, table = tmp_path / "small.parquet", small[0].table
    pl.concat([table.head(30), table.tail(30)]).write_parquet(file)
    where = {"root": tmp_path / "cache", "backbone": str(tiny_llama)}
    run_extraction(plan_extraction(load_dataset(str(file)), **where))
    before = contents(tmp_path / "cache")
    table.write_parquet(file)
    words = ["extract", str(file), "--backbone", str(tiny_llama), "--cache", str(tmp_path / "cache")]
    full = run(words, limit=20_000)
    assert full.returncode == CacheError.exit_code and "Traceback" not in full.stderr
    assert re.search(r"^error: .*shards/.* cannot be written: File too large\. Make room .*$", full.stderr, re.M)
    assert contents(tmp_path / "cache") == before
    assert run_extraction(plan_extraction(load_dataset(str(file)), **where)).embedded == 60
