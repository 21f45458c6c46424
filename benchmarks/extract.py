"""Extraction on the CPU: llmembed, sentence-transformers, the paper's padded loop, and the limit, in one run.

The limit is the time that the matrix products of the linear layers alone would take at the machine's float32 rate. That
is measured beside every round, with torch's own threads and with one thread per product; the faster one counts. In it
attention, padding, norms and pooling are free. Prints medians over rounds and ratios.

    LLMEMBED_DATA=… .venv/bin/python benchmarks/extract.py [--texts 1500] [--rounds 5] [--dataset agnews]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from machine import describe_machine
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from llmembed.backbones import describe_backbone, load_backbone
from llmembed.datasets import load_dataset

LAYERS = (-5, -4, -3, -2, -1)
MAX_LENGTH = 256
PAPER_BATCH = 40


def matrix_rate() -> float:
    """Measure float32 operations per second of products of 1,024 x 1,536 x 1,536, the size of a batch of tokens."""
    left, right = torch.randn(1024, 1536), torch.randn(1536, 1536)
    threads, repeats = torch.get_num_threads(), 40

    def products(_: int) -> None:
        for _ in range(repeats):
            left @ right

    start = time.perf_counter()
    products(0)
    together = 2 * left.numel() * 1536 * repeats / (time.perf_counter() - start)
    start = time.perf_counter()
    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        list(pool.map(products, range(threads)))
    return max(together, 2 * left.numel() * 1536 * repeats * threads / (time.perf_counter() - start))


def paper_loop(model: torch.nn.Module, tokenizer: Callable, texts: list[str]) -> np.ndarray:
    """Embed as the published code does: every text padded to the limit, the mean over all positions, five layers."""
    means = []
    with torch.no_grad():
        for start in range(0, len(texts), PAPER_BATCH):
            batch = texts[start : start + PAPER_BATCH]
            inputs = tokenizer(batch, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            states = model(**inputs, output_hidden_states=True).hidden_states
            means.append(torch.stack([states[layer].mean(dim=1) for layer in LAYERS], dim=1))
    return torch.cat(means).numpy()


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dataset", default="agnews")
    options = parser.parse_args()
    texts = load_dataset(options.dataset).texts("test")[: options.texts]
    spec, files = describe_backbone("minilm", layers=LAYERS, pooling="mean", max_length=MAX_LENGTH)
    backbone = load_backbone(spec, files, device="cpu")
    sentences = SentenceTransformer(str(files.folder), device="cpu")
    sentences.max_seq_length = MAX_LENGTH
    model, tokenizer = AutoModel.from_pretrained(files.folder).eval(), AutoTokenizer.from_pretrained(files.folder)
    tokens = backbone.tokenize(texts)
    config = model.config
    per_token = (
        config.num_hidden_layers * 2 * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size)
    )
    operations = per_token * int(tokens.lengths.sum())
    few = texts[: max(PAPER_BATCH, len(texts) // 5)]
    last = next(backbone.embed([tokens]))[:, -1]
    same = sentences.encode(texts[:50], normalize_embeddings=False)
    own = last[:50] / np.linalg.norm(last[:50], axis=1, keepdims=True)
    assert np.abs(own - same / np.linalg.norm(same, axis=1, keepdims=True)).max() < 1e-4, "the two disagree"

    rates: dict[str, list[float]] = {
        "limit": [],
        "llmembed, 5 layers": [],
        "sentence-transformers": [],
        "paper's loop": [],
    }
    for _ in range(options.rounds):
        rates["limit"].append(len(texts) * matrix_rate() / operations)
        rates["llmembed, 5 layers"].append(
            len(texts) / seconds(lambda: next(backbone.embed([backbone.tokenize(texts)])))
        )
        rates["sentence-transformers"].append(len(texts) / seconds(lambda: sentences.encode(texts, batch_size=32)))
        rates["paper's loop"].append(len(few) / seconds(lambda: paper_loop(model, tokenizer, few)))
    print(describe_machine())
    mean = tokens.lengths.mean()
    print(f"{len(texts):,} texts of {options.dataset}, {mean:.0f} tokens each; median of {options.rounds} rounds\n")
    print("| method | texts/s | lowest - highest | llmembed is |\n|---|--:|--:|--:|")
    ours = rates["llmembed, 5 layers"]
    for name, values in rates.items():
        ratio = statistics.median(own / other for own, other in zip(ours, values, strict=True))
        print(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f} - {max(values):.0f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
