"""Real texts, the real MiniLM, and a tiny random Llama with a tokenizer of its own. No network, no GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from toy_cache import fill
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from llmembed.cache import Cache
from llmembed.cache.shard import Rows
from llmembed.dataset import Dataset, load_dataset
from llmembed.extract import extract, plan_extraction
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
    """Give scikit-learn's handwritten digits, standardised: X [1257, 64] to train on, X [540, 64] to test, y, y."""
    X, y = load_digits(return_X_y=True)
    scale = X.std(axis=0)
    X = ((X - X.mean(axis=0)) / np.where(scale > 0, scale, 1)).astype(np.float32)
    return train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)


@pytest.fixture(scope="session")
def pydocs() -> Dataset:
    return load_dataset("pydocs", limit=700)


@pytest.fixture(scope="session")
def texts(pydocs: Dataset) -> list[str]:
    """Give 60 real texts of very different length, in no order."""
    by_length = sorted(pydocs.texts("train"), key=len)
    return sorted([*by_length[:: len(by_length) // 58], "a", by_length[-1] * 3], key=text_key)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, pydocs: Dataset) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(pydocs.texts("train")[:500], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    save_llama(folder)
    return folder


def save_llama(folder: Path, **changes: float) -> None:
    """Write a Llama of 4 layers with random weights; `changes` overwrites all values of one weight by its name."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    model = randomise(LlamaModel(config))
    for name, weight in model.named_parameters():
        if name in changes:
            torch.nn.init.constant_(weight, changes[name])
    model.save_pretrained(folder)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Fill norms and biases: norm weights of 1 would hide a norm applied once too often, biases of 0 one left out."""
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, 0, 0.3)
        elif "norm" in name.lower():
            torch.nn.init.uniform_(weight, 0.3, 3.0)
    return model


@pytest.fixture(scope="session")
def pydocs_cache(tmp_path_factory: pytest.TempPathFactory, pydocs: Dataset) -> Path:
    """Give the root of a cache with MiniLM's embeddings of `pydocs`."""
    root = tmp_path_factory.mktemp("cache")
    extract(plan_extraction(pydocs, root=root))
    return root


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Cache, Rows]:
    """Give a cache of three shards of unequal size, and what they hold in one piece."""
    return fill(tmp_path)
