import os
import signal
from multiprocessing import active_children
from pathlib import Path

import pytest
from conftest import save_llama
from test_backbones import copy_of

from llmembed.backbones import describe_backbone
from llmembed.cache import Cache
from llmembed.dataset import Dataset
from llmembed.errors import BackboneError, EngineError
from llmembed.identity import text_key
from llmembed.workers import embed_on_gpus

# Without GPUs the workers run the transformers engine on the CPU; what they do is the same.
TWO = ("", "")


class Run:
    """Embeds texts in blocks of 20 with two workers, and keeps what it is told; `on_batch` may disturb it."""

    def __init__(self, folder: Path, texts: list[str], root: Path) -> None:
        self.spec, self.files = describe_backbone(str(folder), layers=(2, 4), pooling="mean", max_length=64)
        self.cache = Cache.at(root, "texts", "tiny", self.spec)
        blocks = [texts[start : start + 20] for start in range(0, len(texts), 20)]
        self.blocks = [{text_key(text): text for text in block} for block in blocks]
        self.texts, self.losses, self.engines = 0, [], []

    def on_batch(self, texts: int, tokens: int) -> None:
        self.texts += texts

    def __call__(self) -> None:
        embed_on_gpus(
            self.spec,
            self.files,
            self.blocks,
            self.cache,
            TWO,
            on_ready=self.engines.append,
            on_batch=self.on_batch,
            on_loss=self.losses.append,
            device="cpu",
        )
        self.cache.refresh()


@pytest.fixture
def many(pydocs: Dataset) -> list[str]:
    return pydocs.texts("train")[:600]


def test_two_workers_commit_every_block_once(tiny_llama, many, tmp_path):
    run = Run(tiny_llama, many, tmp_path)
    run()
    assert sum(commit.rows for commit in run.cache.commits) == run.texts == len(many)
    assert not len(run.cache.locate([text_key(text) for text in many]).missing)
    assert run.engines[0]["engine"] == "transformers"
    assert not run.losses
    assert not active_children()


def test_what_a_killed_worker_had_goes_to_the_other(tiny_llama, many, tmp_path):
    class Disturbed(Run):
        disturbed = False

        def on_batch(self, texts: int, tokens: int) -> None:
            if not self.disturbed:
                self.disturbed = True
                os.kill(active_children()[0].pid, signal.SIGKILL)
            super().on_batch(texts, tokens)

    run = Disturbed(tiny_llama, many, tmp_path)
    run()
    assert sum(commit.rows for commit in run.cache.commits) >= run.texts == len(many)
    assert not len(run.cache.locate([text_key(text) for text in many]).missing)
    assert len(run.losses) == 1
    assert "exit code -9" in run.losses[0]


def test_with_all_workers_lost_what_was_committed_stays(tiny_llama, many, tmp_path):
    class Doomed(Run):
        def on_batch(self, texts: int, tokens: int) -> None:
            super().on_batch(texts, tokens)
            if self.texts > 200:
                for child in active_children():
                    os.kill(child.pid, signal.SIGKILL)

    run = Doomed(tiny_llama, many, tmp_path)
    with pytest.raises(EngineError, match=r"exit code -9.*what was committed is kept"):
        run()
    run.cache.refresh()
    assert run.cache.commits
    run.cache.verify()


def test_a_value_that_must_not_be_stored_ends_the_job(tiny_llama, many, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    save_llama(folder, **{"layers.1.mlp.down_proj.weight": float("nan")})
    with pytest.raises(BackboneError, match="gave nan in layer 2"):
        Run(folder, many, tmp_path / "cache")()
    assert not active_children()


def test_a_worker_that_finds_no_gpu_does_not_fall_back_to_the_cpu(tiny_llama, many, tmp_path):
    run = Run(tiny_llama, many[:20], tmp_path)
    with pytest.raises(BackboneError, match="torch can use no GPU here"):
        embed_on_gpus(
            *(run.spec, run.files, run.blocks, run.cache, ["0"]),
            on_ready=run.engines.append,
            on_batch=run.on_batch,
            on_loss=run.losses.append,
            engine="transformers",
            device="cpu",
        )
    assert not run.cache.commits
