"""The vllm engine against the transformers engine, with the real vLLM on the CPU: `make test-vllm`.

vLLM is imported inside the functions that start it, so that the other tests can be collected where there is none.
"""

import faulthandler
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import randomise
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_models import copy_of

from llmembed.backbones import Tokens, describe_backbone, load_backbone
from llmembed.backbones.vllm.plugin import MODELS
from llmembed.errors import BackboneError, EngineError

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("vllm_on_cpu")]

# The state of a single token rounds most (`last`: 1.2e-5 on a Zen 4 core); the next layer differs by over 1e-1.
TOLERANCE = 3e-5
ALL = (0, 1, 2, 3, 4)
POOLINGS = ("mean", "max", "first", "last")
SHAPE = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
# vLLM's attention on the CPU wants heads of 32 or more; a window of 32 tokens is shorter than most texts.
DECODER = {**SHAPE, "num_key_value_heads": 1, "head_dim": 32}
WINDOW = {**DECODER, "sliding_window": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SHAPE,
    "gemma": DECODER,
    "gemma2": {**WINDOW, "query_pre_attn_scalar": 32},
    "gemma3_text": {
        **WINDOW,
        "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "llama": {**DECODER, "attention_bias": True},
    "mistral": WINDOW,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "roberta": {**SHAPE, "max_position_embeddings": 258, "pad_token_id": 1, "type_vocab_size": 1},
}


def describe(name: str | Path, layers: tuple[int, ...] = ALL, pooling: str = "mean", max_length: int = 256) -> Any:
    return describe_backbone(str(name), layers=layers, pooling=pooling, max_length=max_length)


@contextmanager
def started(described: Any, **options: Any) -> Iterator[Any]:
    from llmembed.backbones.vllm.engine import VllmBackbone

    backbone = VllmBackbone(*described, **options)
    try:
        yield backbone
    finally:
        backbone.close()


def embed(backbone: Any, texts: list[str]) -> np.ndarray:
    return next(backbone.embed([backbone.tokenize(texts)]))


def reference(described: Any, texts: list[str]) -> np.ndarray:
    return embed(load_backbone(*described, engine="transformers", device="cpu"), texts)


def relative_error(given: np.ndarray, wanted: np.ndarray) -> float:
    assert given.shape == wanted.shape
    return float((np.linalg.norm(given - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).max())


def check(described: Any, texts: list[str], **options: Any) -> None:
    with started(described, **options) as backbone:
        assert relative_error(embed(backbone, texts), reference(described, texts)) < TOLERANCE


def save_tiny(folder: Path, tokenizer: Path, model_type: str, door: Any = transformers.AutoModel) -> Path:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS.get(model_type, SHAPE))
    randomise(door.from_config(config, dtype=torch.float32)).save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process where vLLM is not imported yet and begins processes of its own; a hang ends."""
    limit = partial(faulthandler.dump_traceback_later, 120, exit=True)
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, get_context("spawn"), limit) as pool:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        return pool.submit(function, *arguments).result()


@pytest.fixture
def llama(tiny_llama: Path) -> Iterator[Any]:
    """Return an engine for all layers of the tiny Llama; a text may have 64 tokens.

    Only one engine can run in a process at a time, so that tests cannot share it.
    """
    with started(describe(tiny_llama, max_length=64)) as backbone:
        yield backbone


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_layer_equals_the_transformers_engine(tiny_llama, texts, pooling):
    check(describe(tiny_llama, pooling=pooling), texts)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_layer_of_minilm_equals_the_transformers_engine(texts, pooling):
    check(describe("minilm", (0, 1, 2, 3, 4, 5, 6), pooling), texts)


@pytest.mark.parametrize("model_type", MODELS)
def test_every_architecture_equals_the_transformers_engine(model_type, tiny_llama, texts, tmp_path):
    folder = save_tiny(tmp_path / "model", tiny_llama, model_type)
    check(describe(folder), texts)


@pytest.mark.parametrize("model_type", ["llama", "bert"])
def test_a_model_that_is_compiled_as_on_a_gpu_gives_the_same(model_type, tiny_llama, texts, tmp_path):
    folder = save_tiny(tmp_path / "model", tiny_llama, model_type)
    check(describe(folder), texts, enforce_eager=False)


def test_a_shorter_limit_in_the_files_of_sentence_transformers_does_not_count(texts):
    described = describe("minilm", (6,), max_length=512)
    with started(described) as backbone:
        assert backbone.tokenize([" ".join(texts)]).lengths.max() == 512
        assert relative_error(embed(backbone, [" ".join(texts)]), reference(described, [" ".join(texts)])) < TOLERANCE


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text", "qwen3", "bert"])
def test_layers_above_the_highest_chosen_one_do_not_run(model_type, tiny_llama, texts, tmp_path):
    described = describe(save_tiny(tmp_path / "model", tiny_llama, model_type), (1, 2))
    with started(described) as backbone:
        assert relative_error(embed(backbone, texts), reference(described, texts)) < TOLERANCE
        weights = backbone._engine.apply_model(lambda model: [name for name, _ in model.named_parameters()])[0]
    assert any(".1." in name for name in weights)
    assert not any(".2." in name or ".3." in name for name in weights)


def test_the_embedding_layer_alone_can_be_had(tiny_llama, texts):
    check(describe(tiny_llama, (0,)), texts)


@pytest.mark.parametrize(
    ("model_type", "door", "prefix"),
    [
        ("llama", transformers.AutoModelForCausalLM, "model."),
        ("gemma2", transformers.AutoModelForCausalLM, "model."),
        ("bert", transformers.AutoModelForMaskedLM, "bert."),
        ("roberta", transformers.AutoModelForMaskedLM, "roberta."),
    ],
)
def test_the_names_of_the_weights_may_begin_with_the_models(model_type, door, prefix, tiny_llama, texts, tmp_path):
    folder = save_tiny(tmp_path / "model", tiny_llama, model_type, door)
    names = load_file(folder / "model.safetensors").keys()
    assert any(name.startswith(prefix) for name in names)
    check(describe(folder), texts)


def test_the_names_that_old_bert_checkpoints_have_are_known(tiny_llama, texts, tmp_path):
    folder = save_tiny(tmp_path / "model", tiny_llama, "bert", transformers.AutoModelForMaskedLM)

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "LayerNorm" in name]:
            weights[name.replace("m.weight", "m.gamma").replace("m.bias", "m.beta")] = weights.pop(name)
        weights["bert.embeddings.position_ids"] = torch.arange(256)[None]

    change_weights(folder, rename)
    check(describe(folder), texts)


def test_weights_in_several_files_are_loaded(tiny_llama, texts, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    transformers.AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 2
    check(describe(folder), texts)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_texts_that_are_split_over_steps_and_begun_again_give_the_same(tiny_llama, texts, pooling):
    described = describe(tiny_llama, pooling=pooling)
    few_tokens = {"max_num_batched_tokens": 64, "long_prefill_token_threshold": 16, "enable_chunked_prefill": True}
    few_blocks = {"block_size": 32, "num_gpu_blocks_override": 12, "scheduler_reserve_full_isl": False}
    preempted = set()
    with started(described, **few_tokens, **few_blocks) as backbone:
        scheduler = backbone._engine.engine_core.engine_core.scheduler
        tokens = backbone.tokenize(texts)

        def watch(texts: int, tokens: int) -> None:
            preempted.update(name for name, request in scheduler.requests.items() if request.num_preemptions)

        given = next(backbone.embed([tokens], watch))
    assert relative_error(given, reference(described, texts)) < TOLERANCE
    assert tokens.lengths.max() > 200
    assert preempted


def test_a_cache_of_prefixes_is_refused(tiny_llama):
    with (
        refused(BackboneError, match="caches prefixes"),
        started(describe(tiny_llama), enable_prefix_caching=True),
    ):
        pass


def test_a_text_whose_first_tokens_were_never_seen_is_not_pooled(vllm_on_cpu):
    from vllm import PoolingParams
    from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

    from llmembed.backbones.vllm.pooler import LayerPooler

    text = PoolingMetadata(torch.tensor([10]), None, None, [PoolingParams(task="embed")], [PoolingStates()])
    text.build_pooling_cursor(np.array([6]), torch.tensor([10]), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="6 of the 10 tokens"):
        LayerPooler("mean")(torch.ones(6, 8), text)


def test_the_company_of_a_text_changes_nothing(llama, texts):
    together = embed(llama, texts)
    alone = np.concatenate([embed(llama, [text]) for text in texts[:5]])
    backwards = embed(llama, texts[::-1])[::-1]
    assert relative_error(together[:5], alone) < TOLERANCE
    assert relative_error(together, backwards) < TOLERANCE


def test_short_and_overlong_texts_are_read_as_transformers_reads_them(llama, tiny_llama, texts):
    described = describe(tiny_llama, max_length=64)
    other = load_backbone(*described, engine="transformers", device="cpu")
    short_and_long = ["a", "", *texts]
    ours, theirs = llama.tokenize(short_and_long), other.tokenize(short_and_long)
    assert ours.ids == theirs.ids
    assert ours.truncated.tolist() == theirs.truncated.tolist()
    assert ours.lengths[:2].tolist() == [2, 1]
    assert ours.lengths.max() == 64
    assert 0 < ours.truncated.sum() < len(short_and_long)
    assert relative_error(embed(llama, short_and_long), embed(other, short_and_long)) < TOLERANCE


def test_a_text_without_any_token_is_refused(tiny_llama, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    with started(describe(folder)) as backbone, refused(BackboneError, match="'' has no tokens"):
        backbone.tokenize(["a text", ""])


def test_blocks_come_back_in_order(llama, texts):
    blocks = [llama.tokenize(texts[start:stop]) for start, stop in pairwise([0, 1, 30, 30, 59, len(texts)])]
    told: list[tuple[int, int]] = []
    given = list(llama.embed(iter(blocks), lambda *batch: told.append(batch)))
    assert [len(block) for block in given] == [1, 29, 0, 29, len(texts) - 59]
    assert relative_error(np.concatenate(given), embed(llama, texts)) < TOLERANCE
    assert tuple(map(sum, zip(*told, strict=True))) == (len(texts), sum(int(block.lengths.sum()) for block in blocks))


def test_an_abandoned_run_does_not_spoil_the_next_one(llama, texts):
    wanted = embed(llama, texts)
    run = llama.embed([llama.tokenize(texts[::-1])] * 3)
    next(run)
    run.close()
    assert not llama._engine.has_unfinished_requests()
    assert relative_error(embed(llama, texts), wanted) < TOLERANCE


def test_an_error_of_the_texts_is_not_taken_for_one_of_the_engine(llama, texts):
    def blocks() -> Iterator[Tokens]:
        yield llama.tokenize(texts)
        raise RuntimeError("the texts ended")

    with pytest.raises(RuntimeError, match=r"^the texts ended"):
        list(llama.embed(blocks()))
    assert not llama._engine.has_unfinished_requests()


def test_the_last_layer_equals_vllms_own_mean(tiny_llama, texts):
    from vllm import LLM
    from vllm.config import PoolerConfig

    with started(describe(tiny_llama)) as backbone:
        ids, given = backbone.tokenize(texts).ids, embed(backbone, texts)
    mean = PoolerConfig(pooling_type="MEAN", use_activation=False)
    own = LLM(str(tiny_llama), runner="pooling", pooler_config=mean, dtype="float32", enforce_eager=True)
    outputs = own.encode([{"prompt_token_ids": row} for row in ids], pooling_task="embed", use_tqdm=False)
    own.llm_engine.engine_core.shutdown()
    wanted = np.stack([output.outputs.data.float().numpy() for output in outputs])
    assert relative_error(given[:, -1], wanted) < TOLERANCE


def test_an_architecture_that_it_does_not_know_is_refused(tiny_llama, tmp_path):
    folder = save_tiny(tmp_path / "model", tiny_llama, "phi")
    with refused(BackboneError, match=r"type phi; the vllm engine runs bert, .*, roberta\. Use --engine trans"):
        load_backbone(*describe(folder), engine="vllm")


@pytest.mark.parametrize("lacking", ["norm.weight", "layers.3.mlp.up_proj.weight", "layers.3.self_attn.k_proj.weight"])
def test_a_weight_that_the_files_lack_is_refused(lacking, tiny_llama, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    change_weights(folder, lambda weights: weights.pop(lacking))
    with refused(BackboneError, match="weights"), started(describe(folder)):
        pass


def embed_in_other_processes(described: Any, texts: list[str], tensor_parallel: int) -> np.ndarray:
    with started(described, tensor_parallel=tensor_parallel) as backbone:
        assert active_children()
        return embed(backbone, texts)


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_processes_of_their_own_find_the_models(tiny_llama, texts, tensor_parallel):
    described = describe(tiny_llama)
    given = in_new_process(embed_in_other_processes, described, texts, tensor_parallel)
    assert relative_error(given, reference(described, texts)) < TOLERANCE


def kill_the_engine(described: Any, texts: list[str]) -> list[int]:
    """Kill vLLM's process after the first batch; give those of the killed processes that still run."""
    killed = set()

    def kill(*_: int) -> None:
        for child in active_children():
            child.kill()
            killed.add(child.pid)

    with started(described) as backbone, refused(EngineError, match="vLLM died"):
        list(backbone.embed([backbone.tokenize(texts)] * 40, kill))
    assert killed
    # By the kernel's word: vLLM waits for its process too, and of two that wait for one, one may never learn its end.
    deadline = time.monotonic() + 30
    while any(map(runs, killed)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [pid for pid in killed if runs(pid)]


def runs(pid: int) -> bool:
    """Return whether a process is neither gone nor dead and waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_engine_that_is_killed_ends_in_an_error(tiny_llama, texts):
    assert in_new_process(kill_the_engine, describe(tiny_llama), texts) == []
