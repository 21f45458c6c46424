"""Real texts, the real MiniLM, and a tiny random Llama with a tokenizer of its own. No network, no GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tiny_models import randomise as randomise
from tiny_models import save_llama, save_tokenizer
from toy_cache import fill

from llmembed.cache import Cache
from llmembed.cache.shard import EmbeddedRows
from llmembed.datasets import Dataset, load_dataset
from llmembed.extraction import plan_extraction, run_extraction
from llmembed.identity import text_key

VLLM_ON_CPU = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@pytest.fixture(scope="session")
def vllm_on_cpu() -> Iterator[None]:
    """Let vLLM run without a GPU, in this process and with little memory; it reads these when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VLLM_ON_CPU.items():
            patch.setenv(name, os.environ.get(name, value))
        yield


@pytest.fixture(scope="session")
def digits() -> list[np.ndarray]:
    """Return scikit-learn's handwritten digits, standardised: X [1257, 64] to train on, X [540, 64] to test, y, y."""
    X, y = load_digits(return_X_y=True)
    scale = X.std(axis=0)
    X = ((X - X.mean(axis=0)) / np.where(scale > 0, scale, 1)).astype(np.float32)
    return train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)


@pytest.fixture(scope="session")
def pydocs() -> Dataset:
    return load_dataset("pydocs", limit=700)


@pytest.fixture(scope="session")
def texts(pydocs: Dataset) -> list[str]:
    """Return 60 real texts of very different length, in no order."""
    by_length = sorted(pydocs.texts("train"), key=len)
    return sorted([*by_length[:: len(by_length) // 58], "a", by_length[-1] * 3], key=text_key)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, pydocs: Dataset) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_tokenizer(folder, pydocs.texts("train")[:500])
    save_llama(folder)
    return folder


@pytest.fixture(scope="session")
def pydocs_cache(tmp_path_factory: pytest.TempPathFactory, pydocs: Dataset) -> Path:
    """Return the root of a cache with MiniLM's embeddings of `pydocs`."""
    root = tmp_path_factory.mktemp("cache")
    run_extraction(plan_extraction(pydocs, root=root))
    return root


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Cache, EmbeddedRows]:
    """Return a cache of three shards of unequal size, and what they hold in one piece."""
    return fill(tmp_path)
