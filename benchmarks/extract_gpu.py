"""Extraction with a large decoder: llmembed's two engines, vLLM's own pooling, the paper's padded loop, in one run.

The model has the shape of Llama-2-7B (or a small one) and random weights, made here; the texts are random token ids
whose lengths are distributed like those of AG News. So nothing is downloaded, and the script runs wherever a GPU is, or
on the CPU. The competitors take turns, each beginning in turn. They are measured by the rate of one large matrix
product, taken beside every round: MFU is the share of that rate that the matrix products of the layers that run would
need over the real tokens. Padding is no work; attention among the tokens (1 % here) is not counted. Memory is what a
competitor holds on the card, vLLM's cache of keys and values included; the joules are those of the whole card. Prints
medians over rounds and ratios.

With `--weights saved` all load one checkpoint and must agree. With `dummy` (7B: 13 GB less to write) vLLM fills in its
own numbers, and only the engines under vLLM are compared. With the 7B shape all five need 75 of the 80 GB of a card; on
a smaller one leave some out. Without vLLM: `--skip ours middle vllm`.

    python benchmarks/extract_gpu.py [--shape llama2-7b] [--texts 4096] [--rounds 5] [--skip paper]
    python benchmarks/extract_gpu.py --shape small [--texts 600] [--rounds 5] [--threads 4]
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModel, LlamaConfig, PreTrainedTokenizerFast

import llmembed.backbones.transformers as transformers_engine
from llmembed.backbones import BackboneSpec, Tokens
from llmembed.backbones.parity import TOLERANCE
from llmembed.backbones.weights import ModelFiles
from llmembed.devices import energy, visible_gpus
from llmembed.extraction import SHARD_ROWS

SHAPES = {
    "llama2-7b": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11_008, "num_attention_heads": 32},
    "small": {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8},
}
VOCABULARY = 32_000
MAX_LENGTH = 256
PAPER_BATCH = 40
# Tokens of 48,208 training texts of AG News with the tokenizer of all-MiniLM-L6-v2, cut at 256 (mean 53.3; drawn from
# these quantiles 53.7). Llama's own tokenizer would give somewhat more.
QUANTILES = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)
LENGTHS = (11, 25, 31, 36, 41, 44, 48, 51, 54, 57, 62, 70, 83, 125, 202, 256)
# Texts that are compared.
CHECKED = 40
TITLES = {
    "ours": "llmembed (vllm), last 5 layers",
    "middle": "llmembed (vllm), 5 layers up to 3/4",
    "vllm": "vLLM's own, last layer",
    "transformers": "llmembed (transformers), last 5 layers",
    "paper": "paper's loop, last 5 layers",
}


@dataclass
class Competitor:
    """One way to embed: `embed` takes token ids and gives [texts, layers, dim]; `run` layers of the model run."""

    title: str
    layers: tuple[int, ...]
    run: int
    texts: int
    embed: Callable[[list[list[int]]], np.ndarray]
    memory: float = 0.0
    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)


def write_model(folder: Path, shape: str, *, save: bool) -> ModelFiles:
    """Write a configuration and a tokenizer for nothing, and random weights if they are to be saved."""
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16" if torch.cuda.is_available() else "float32",
        pad_token_id=None,
    )
    if save:
        random_model(config).save_pretrained(folder)
    # Again, because the weights were saved with the name of a model that has no head.
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a"))).save_pretrained(folder)
    return ModelFiles(shape, shape, folder, str(folder))


def random_model(config: LlamaConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModel.from_config(config, dtype=config.dtype).eval()


def share_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a model without its weights, which both then use; so the one can lose layers and get hooks."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def draw_texts(number: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    lengths = np.interp(generator.random(number), QUANTILES, LENGTHS).round().astype(int)
    return [generator.integers(1, VOCABULARY, length).tolist() for length in lengths]


def specify(files: ModelFiles, layers: tuple[int, ...]) -> BackboneSpec:
    config = files.config
    return BackboneSpec(
        model=files.model,
        weights="",
        tokenizer="",
        depth=config.depth,
        layers=layers,
        dim=config.dim,
        pooling="mean",
        max_length=MAX_LENGTH,
    )


def blocks(texts: list[list[int]]) -> Iterator[Tokens]:
    """Cut texts into blocks of the size that an extraction gives to an engine."""
    for start in range(0, len(texts), SHARD_ROWS):
        block = texts[start : start + SHARD_ROWS]
        yield Tokens(block, np.zeros(len(block), bool))


def vllm_options(files: ModelFiles, *, layers: int, batch_tokens: int, save: bool) -> dict[str, Any]:
    """Return what all engines under vLLM are started with; a cache of keys and values that holds one step of each."""
    config = files.config
    width = 2 if torch.cuda.is_available() else 4
    return {
        "load_format": "auto" if save else "dummy",
        "max_num_batched_tokens": batch_tokens,
        # A text's keys and values take whole blocks of 16 tokens or more, hence a quarter more than the tokens.
        "kv_cache_memory_bytes": int(1.25 * batch_tokens) * 2 * layers * config.dim * width,
        # Only checked at the start, because the line above says how much to take.
        "gpu_memory_utilization": 0.1,
    }


def start_ours(files: ModelFiles, layers: tuple[int, ...], options: dict[str, Any]) -> Callable:
    from llmembed.backbones.vllm.engine import VllmBackbone

    backbone = VllmBackbone(specify(files, layers), files, **options)
    scheduler = backbone._engine.vllm_config.scheduler_config
    print(f"{backbone.engine}: {scheduler.max_num_batched_tokens} tokens and {scheduler.max_num_seqs} texts a step")
    return lambda texts: np.concatenate(list(backbone.embed(blocks(texts))))


def start_vllm(files: ModelFiles, options: dict[str, Any]) -> Callable:
    # First, for what it tells vLLM through the environment.
    import llmembed.backbones.vllm.engine as engine  # isort: skip
    from vllm import LLM, PoolingParams
    from vllm.config import PoolerConfig

    llm = LLM(
        model=str(files.folder),
        runner="pooling",
        convert="embed",
        pooler_config=PoolerConfig(seq_pooling_type="MEAN", use_activation=False),
        max_model_len=MAX_LENGTH,
        enable_prefix_caching=False,
        dtype=engine._compute_dtype(),
        **(engine._platform_arguments() | options),
    )
    scheduler = llm.llm_engine.vllm_config.scheduler_config
    print(f"vLLM: {scheduler.max_num_batched_tokens} tokens and {scheduler.max_num_seqs} texts a step")
    parameters = PoolingParams(use_activation=False)

    def embed(texts: list[list[int]]) -> np.ndarray:
        prompts = [{"prompt_token_ids": ids} for ids in texts]
        outputs = llm.encode(prompts, parameters, pooling_task="embed", use_tqdm=False)
        return np.stack([output.outputs.data.float().numpy() for output in outputs])[:, None]

    return embed


def start_transformers(files: ModelFiles, layers: tuple[int, ...], model: torch.nn.Module) -> Callable:
    # Its own loader reads a checkpoint, of which there may be none.
    transformers_engine._load_model = lambda files, dtype: share_weights(model).to(dtype)
    backbone = transformers_engine.TransformersBackbone(specify(files, layers), files)
    return lambda texts: np.concatenate(list(backbone.embed(blocks(texts))))


def start_paper(layers: tuple[int, ...], model: torch.nn.Module) -> Callable:
    """Embed as the published code does: every text padded to the limit, the mean over all positions, five layers."""

    @torch.inference_mode()
    def embed(texts: list[list[int]]) -> np.ndarray:
        means = []
        for start in range(0, len(texts), PAPER_BATCH):
            batch = texts[start : start + PAPER_BATCH]
            ids = torch.tensor([text + [0] * (MAX_LENGTH - len(text)) for text in batch], device=model.device)
            mask = torch.tensor([[1] * len(text) + [0] * (MAX_LENGTH - len(text)) for text in batch])
            states = model(
                ids, attention_mask=mask.to(model.device), output_hidden_states=True, use_cache=False
            ).hidden_states
            means.append(torch.stack([states[layer].mean(dim=1) for layer in layers], dim=1).float().cpu())
        return torch.cat(means).numpy()

    return embed


@torch.inference_mode()
def reference(model: torch.nn.Module, texts: list[list[int]]) -> dict[int, np.ndarray]:
    """Embed one text at a time, every layer [texts, dim]."""
    means = []
    for ids in texts:
        states = model(torch.tensor([ids], device=model.device), output_hidden_states=True, use_cache=False)
        means.append(torch.stack([state[0].float().mean(dim=0) for state in states.hidden_states]).cpu())
    return dict(enumerate(torch.stack(means, dim=1).numpy()))


def compare(vectors: dict[str, dict[int, np.ndarray]], tolerance: float) -> None:
    """Compare, layer by layer [texts, dim], all that claim to be the same; the largest relative error of a text.

    Raises:
        SystemExit: two differ by more than the tolerance.
    """
    for (one, left), (other, right) in combinations(vectors.items(), 2):
        for layer in sorted(left.keys() & right.keys()):
            distance = np.linalg.norm(left[layer] - right[layer], axis=1) / np.linalg.norm(right[layer], axis=1)
            print(f"layer {layer}: {one} and {other} differ by {distance.max():.1e}")
            if not distance.max() <= tolerance:
                raise SystemExit(f"{one} and {other} differ by more than {tolerance:.0e}; nothing was measured.")


def matrix_rate() -> float:
    """Measure operations per second of a square product in the dtype that is computed in."""
    gpu = torch.cuda.is_available()
    size, repeats = (8192, 20) if gpu else (2048, 6)
    left, right = torch.randn(2, size, size, device="cuda" if gpu else "cpu", dtype=torch.bfloat16 if gpu else None)
    left @ right
    return repeats * 2 * size**3 / seconds(lambda: [left @ right for _ in range(repeats)])


def seconds(run: Callable[[], object]) -> float:
    """Time a call, the GPU's work included."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def operations_per_token(shape: str, layers: int) -> int:
    """Two for every weight of the matrices in the layers that run."""
    hidden, intermediate = SHAPES[shape]["hidden_size"], SHAPES[shape]["intermediate_size"]
    return 2 * layers * (4 * hidden**2 + 3 * hidden * intermediate)


def memory_in_use() -> float:
    """Return the bytes of the card that all processes hold, less what torch only keeps in store here."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return float(total - free)


def start_competitors(options: argparse.Namespace, files: ModelFiles, texts: list[list[int]]) -> dict[str, Competitor]:
    """Start what is not skipped, one after the other, and run each once."""
    depth, save = files.config.depth, options.weights == "saved"
    last = tuple(range(depth - 4, depth + 1))
    middle = tuple(layer - depth // 4 for layer in last)
    below = middle[-1]
    batch = {"batch_tokens": options.batch_tokens, "save": save}
    few = max(PAPER_BATCH, len(texts) // 5 // PAPER_BATCH * PAPER_BATCH)
    full, less = vllm_options(files, layers=depth, **batch), vllm_options(files, layers=below, **batch)
    plans: dict[str, tuple[tuple[int, ...], int, int, Callable[[], Callable]]] = {
        "ours": (last, depth, len(texts), lambda: start_ours(files, last, full)),
        "middle": (middle, below, len(texts), lambda: start_ours(files, middle, less)),
        "vllm": ((depth,), depth, len(texts), lambda: start_vllm(files, full)),
        "transformers": (last, depth, len(texts), lambda: start_transformers(files, last, options.model())),
        "paper": (last, depth, few, lambda: start_paper(last, options.model())),
    }
    competitors = {}
    for name, (layers, run, number, start) in plans.items():
        if name in options.skip:
            continue
        with measure_memory(name) as measured:
            embed = start()
            embed(texts[:number])
        competitors[name] = Competitor(TITLES[name], layers, run, number, embed, measured[0])
    return competitors


@contextmanager
def measure_memory(name: str) -> Iterator[list[float]]:
    """Measure what starting and running a competitor takes of the card: the peak here, the growth elsewhere."""
    measured: list[float] = []
    before = memory_in_use()
    if name in ("transformers", "paper") and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield measured
        measured.append(float(torch.cuda.max_memory_reserved()))
    else:
        yield measured
        measured.append(memory_in_use() - before)


def check(options: argparse.Namespace, competitors: dict[str, Competitor], texts: list[list[int]]) -> None:
    """Compare the vectors of all that have the same weights; the paper's are others, because it counts padding."""
    chosen = sorted(texts, key=len)[:: max(1, len(texts) // CHECKED)]
    same = [name for name in competitors if name != "paper"]
    vectors = {}
    if options.weights == "saved":
        vectors["one text at a time"] = reference(options.model(), chosen)
    else:
        print("Dummy weights: vLLM's numbers are its own; only the engines under it are compared.")
        same = [name for name in same if name != "transformers"]
    for name in same:
        found = competitors[name].embed(chosen)
        vectors[name] = {layer: found[:, column] for column, layer in enumerate(competitors[name].layers)}
    compare(vectors, TOLERANCE["bfloat16" if torch.cuda.is_available() else "float32"])


def measure(options: argparse.Namespace, competitors: dict[str, Competitor], texts: list[list[int]]) -> list[float]:
    """Let the competitors take turns; give the matrix rate of every round."""
    gpus, limits, names = visible_gpus()[:1] if torch.cuda.is_available() else [], [], list(competitors)
    for number in range(options.rounds):
        first = number % len(names)
        limits.append(matrix_rate())
        for name in names[first:] + names[:first]:
            competitor = competitors[name]
            taken = texts[: competitor.texts]
            tokens = sum(map(len, taken))
            joules = energy(gpus) or 0.0
            elapsed = seconds(lambda competitor=competitor, taken=taken: competitor.embed(taken))
            competitor.joules.append(((energy(gpus) or 0.0) - joules) / len(taken) * 1000)
            competitor.rates.append(len(taken) / elapsed)
            operations = operations_per_token(options.shape, competitor.run) * tokens
            competitor.shares.append(operations / elapsed / limits[-1])
    return limits


def print_table(competitors: dict[str, Competitor], texts: list[list[int]]) -> None:
    gpu, first = torch.cuda.is_available(), next(iter(competitors.values()))
    joules = gpu and any(first.joules)
    columns = ["method", "texts/s", "lowest - highest", "tokens/s", "MFU", f"{first.title} is"]
    columns += ["GB of the card"] * gpu + ["J per 1,000 texts"] * joules
    print("| " + " | ".join(columns) + " |\n|---" + "|--:" * (len(columns) - 1) + "|")
    for competitor in competitors.values():
        rate = statistics.median(competitor.rates)
        ratio = statistics.median(own / other for own, other in zip(first.rates, competitor.rates, strict=True))
        cells = [competitor.title, f"{rate:,.1f}", f"{min(competitor.rates):,.1f} - {max(competitor.rates):,.1f}"]
        mean = sum(map(len, texts[: competitor.texts])) / competitor.texts
        cells += [f"{rate * mean:,.0f}", f"{statistics.median(competitor.shares):.0%}", f"{ratio:.2f}x"]
        cells += [f"{competitor.memory / 1e9:.1f}"] * gpu + [f"{statistics.median(competitor.joules):,.0f}"] * joules
        print("| " + " | ".join(cells) + " |")


def parse() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama2-7b" if gpu else "small")
    parser.add_argument("--texts", type=int, default=4096 if gpu else 600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", nargs="*", choices=TITLES, default=[])
    parser.add_argument("--weights", choices=("saved", "dummy"), help="default: saved if small, else dummy")
    parser.add_argument("--batch-tokens", type=int, default=8192 if gpu else 4096, help="of a step of vLLM")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every competitor, on the CPU")
    options = parser.parse_args()
    options.weights = options.weights or ("saved" if options.shape == "small" else "dummy")
    return options


def set_threads(threads: int) -> None:
    """Return every competitor as many; vLLM's processes read it from the environment."""
    torch.set_num_threads(threads)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # Each engine in a process of its own, as in an extraction, and not forked from one that has threads.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


def main() -> None:
    options = parse()
    set_threads(options.threads)
    texts = draw_texts(options.texts)
    with tempfile.TemporaryDirectory() as folder:
        files = write_model(Path(folder), options.shape, save=options.weights == "saved")
        made: list[torch.nn.Module] = []

        def model() -> torch.nn.Module:
            if not made:
                made.append(random_model(LlamaConfig.from_pretrained(folder)))
            return made[0]

        options.model = model
        competitors = start_competitors(options, files, texts)
        check(options, competitors, texts)
        limits = measure(options, competitors, texts)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {options.threads} threads"
    low, median, high = (f"{value / 1e12:.3g}" for value in (min(limits), statistics.median(limits), max(limits)))
    print(f"\n{describe_machine()}\n{device}; {options.shape}, {options.weights} weights")
    print(f"{options.batch_tokens:,} tokens a step of vLLM; matrix product {median} ({low} - {high}) TFLOP/s")
    mean = sum(map(len, texts)) / len(texts)
    print(f"{len(texts):,} texts, {mean:.1f} tokens each; median of {options.rounds} rounds\n")
    print_table(competitors, texts)


if __name__ == "__main__":
    main()
