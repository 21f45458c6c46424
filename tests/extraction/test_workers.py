import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from conftest import save_llama
from doubles import FAILING, HANGING, KILLING, load_never, load_touchy
from refusals import refused
from tiny_models import copy_of

from llmembed.backbones import describe_backbone
from llmembed.cache import Cache
from llmembed.datasets import Dataset
from llmembed.errors import BackboneError, EngineError
from llmembed.extraction.dealing import embed_on_gpus
from llmembed.extraction.schedule import MOST_LOST
from llmembed.identity import text_key

# Without GPUs the workers run the transformers engine on the CPU; what they do is the same.
TWO = ("", "")


class Run:
    """Embeds texts in blocks of 20 with two workers, and keeps what it is told; `on_batch` may disturb it."""

    def __init__(self, folder: Path, texts: list[str], root: Path, size: int = 20, **options: Any) -> None:
        self.spec, self.files = describe_backbone(str(folder), layers=(2, 4), pooling="mean", max_length=64)
        self.cache = Cache.at(root, "texts", "tiny", self.spec)
        blocks = [texts[start : start + size] for start in range(0, len(texts), size)]
        self.blocks = [{text_key(text): text for text in block} for block in blocks]
        self.text_of = {text_key(text): text for text in texts}
        self.texts, self.lost, self.engines, self.bad = 0, [], [], {}
        self.options = {"groups": TWO, **options}

    def on_batch(self, texts: int, tokens: int) -> None:
        self.texts += texts

    def __call__(self) -> None:
        embed_on_gpus(
            self.spec,
            self.files,
            self.blocks,
            self.cache,
            self.options.pop("groups"),
            on_ready=self.engines.append,
            on_batch=self.on_batch,
            on_worker_lost=self.lost.append,
            on_bad=self.bad.update,
            device="cpu",
            **self.options,
        )
        self.cache.refresh()

    def missing(self) -> set[str]:
        self.cache.refresh()
        keys = list(self.text_of)
        return {self.text_of[keys[i]] for i in self.cache.locate(keys).missing}


@pytest.fixture
def many(pydocs: Dataset) -> list[str]:
    return pydocs.texts("train")[:600]


def test_two_workers_commit_every_block_once(tiny_llama, many, tmp_path):
    run = Run(tiny_llama, many, tmp_path)
    run()
    assert sum(commit.rows for commit in run.cache.commits) == run.texts == len(many)
    assert not len(run.cache.locate([text_key(text) for text in many]).missing)
    assert run.engines[0].engine == "transformers"
    assert not run.lost
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
    assert len(run.lost) == 1
    assert "exit code -9" in run.lost[0]


def test_with_all_workers_lost_what_was_committed_stays(tiny_llama, many, tmp_path):
    class Doomed(Run):
        doomed = False

        def on_batch(self, texts: int, tokens: int) -> None:
            super().on_batch(texts, tokens)
            self.doomed = self.doomed or self.texts > 200
            for child in active_children() if self.doomed else ():
                os.kill(child.pid, signal.SIGKILL)

    run = Doomed(tiny_llama, many, tmp_path, groups=("",))
    with refused(EngineError, match=r"exit code -9.*what was committed is kept"):
        run()
    assert len(run.lost) == len(run.engines) == MOST_LOST
    run.cache.refresh()
    assert run.cache.commits
    run.cache.verify()
    assert not active_children()


def test_texts_that_kill_or_fail_are_found_and_all_others_are_committed(tiny_llama, many, tmp_path):
    killer, failing = f"the {KILLING} of it", f"a {FAILING} of memory"
    run = Run(tiny_llama, [*many[:21], killer, *many[21:30], failing, *many[30:40]], tmp_path, 4, load=load_touchy)
    run()
    assert run.missing() == {killer, failing}
    assert run.bad[text_key(killer)].reason == "lost its process twice: it ended with exit code -9."
    assert run.bad[text_key(failing)].reason.startswith("out of memory on cpu")
    # With others or first, with its block alone, with half of it, and twice by itself.
    assert 4 <= len(run.lost) <= 5
    assert (run.texts, len(run.bad)) == (40, 2)
    assert not active_children()


def test_a_text_on_which_a_worker_hangs_is_found(tiny_llama, many, tmp_path):
    hanging = f"a {HANGING} here"
    run = Run(tiny_llama, [hanging, *many[:20]], tmp_path, 1, load=load_touchy, groups=("",), silent_seconds=15)
    run()
    assert run.missing() == {hanging}
    assert "nothing was heard of it for" in run.bad[text_key(hanging)].reason
    assert not active_children()


def test_a_model_that_gives_nothing_good_is_told_of_every_text(tiny_llama, many, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    save_llama(folder, **{"layers.1.mlp.down_proj.weight": float("nan")})
    run = Run(folder, many[:100], tmp_path / "cache", groups=("",))
    run()
    assert {bad.reason for bad in run.bad.values()} == {"nan in layer 2"}
    assert (len(run.bad), run.texts) == (100, 0)
    assert not run.cache.commits


def test_a_group_that_never_loads_the_model_is_given_up(tiny_llama, many, tmp_path):
    run = Run(tiny_llama, many[:20], tmp_path, load=load_never)
    with refused(EngineError, match="vLLM could not start"):
        run()
    assert len(run.lost) == 2


PROGRAM = """
import signal, sys
from pathlib import Path
from test_workers import Run
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder, root, texts = sys.argv[1:]
    run = Run(Path(folder), [f"text number {number}" for number in range(int(texts))], Path(root), groups=("",))
    count = run.on_batch
    def on_batch(texts, tokens):
        print("batch", flush=True)
        count(texts, tokens)
    run.on_batch = on_batch
    run()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_no_worker_is_left_and_what_was_committed_stays(number, tiny_llama, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    words = [sys.executable, str(tmp_path / "program.py"), str(tiny_llama), str(tmp_path), "100000"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)
    while not list(tmp_path.glob("*/*/commits/[!.]*")):
        assert process.stdout.readline()
    workers = children(process.pid)
    process.send_signal(number)
    process.stdout.close()
    process.wait()
    deadline = time.monotonic() + 30
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not any(map(runs, workers))
    cache = Cache.open(next(tmp_path.glob("*/*/spec.json")).parent)
    cache.verify()
    assert cache.commits


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Return whether a process is neither gone nor dead and waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_finds_no_gpu_does_not_fall_back_to_the_cpu(tiny_llama, many, tmp_path):
    run = Run(tiny_llama, many[:20], tmp_path)
    with refused(BackboneError, match="torch can use no GPU here"):
        embed_on_gpus(
            *(run.spec, run.files, run.blocks, run.cache, ["0"]),
            on_ready=run.engines.append,
            on_batch=run.on_batch,
            on_worker_lost=run.lost.append,
            engine="transformers",
            device="cpu",
        )
    assert not run.cache.commits
