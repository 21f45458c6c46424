"""The vLLM engine: token ids -> float32 embeddings [rows, layers, dim], on one GPU or several that share a model.

It keeps up to two blocks in vLLM's queue, so that the GPU goes on while one block is handed over and the next is made
ready. Knows no cache.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from threading import Thread
from typing import Any

import numpy as np

# What vLLM reads from the environment when it is imported; what the user has set counts.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Its second model runner was never tried with these models.
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
# A forked process cannot use a GPU that this one has asked about, does not load our plugin again, and inherits the
# pipes of this one, which then never end.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
# The files of sentence-transformers may name a shorter limit than the model's positions, which are checked before.
os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
# GiB. On a CPU it would otherwise take nearly all memory for keys and values, which pooling hardly needs.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
import vllm
from vllm import EngineArgs, LLMEngine, PoolingParams, PoolingRequestOutput
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.exceptions import EngineDeadError

from llmembed.backbones import BackboneSpec, EngineInfo, OnBatch, Tokens, ignore_batch
from llmembed.backbones.tokenizer import Tokenizer
from llmembed.backbones.vllm.plugin import architecture, unsuitable
from llmembed.backbones.weights import ModelFiles
from llmembed.errors import BackboneError, EngineError

REMEDY = (
    "what vLLM said itself is above. If memory ran out, free the card, lower `max_length` or give the model more GPUs "
    "with `tensor_parallel`; `engine='transformers'` is the other way"
)
# Blocks in vLLM's queue: the GPU works on one while the other is submitted.
BLOCKS_AT_ONCE = 2


@dataclass
class _Block:
    """A block in vLLM's queue, and the rows of it that are not done, by request id."""

    tokens: Tokens
    embeddings: np.ndarray
    rows: dict[str, int]


class VllmBackbone:
    """A model run by vLLM: bfloat16 (float16 on older cards) on GPUs, float32 where vLLM was built for the CPU.

    `options` go to vLLM's `EngineArgs` as they are.

    Raises:
        BackboneError: vLLM has no model of ours for this architecture.
        EngineError: vLLM cannot start.
    """

    def __init__(self, spec: BackboneSpec, files: ModelFiles, *, tensor_parallel: int = 1, **options: Any) -> None:
        reason = unsuitable(files)
        if reason:
            raise BackboneError(f"{files.folder} {reason} Use `engine='transformers'`.")
        self.spec = spec
        self.tokenize = Tokenizer(spec, files)
        dtype = _compute_dtype()
        arguments = EngineArgs(**(_arguments(spec, files) | _platform_arguments() | {"dtype": dtype} | options))
        arguments.tensor_parallel_size = tensor_parallel
        self._engine = _start(arguments, spec.model)
        _check_config(self._engine, spec.model)
        _watch(self._engine)
        self._request = count()
        self.engine = EngineInfo(
            engine="vllm",
            version=vllm.__version__,
            torch=torch.__version__,
            device="cpu" if current_platform.is_cpu() else current_platform.get_device_name(),
            dtype=dtype,
        )

    def embed(self, blocks: Iterable[Tokens], on_batch: OnBatch = ignore_batch) -> Iterator[np.ndarray]:
        """Embed blocks of tokenised texts -> float32 [rows, layers, dim] each."""
        waiting, queue = iter(blocks), deque[_Block]()
        try:
            while True:
                while len(queue) < BLOCKS_AT_ONCE and (tokens := next(waiting, None)) is not None:
                    with self._deaths():
                        queue.append(self._submit(tokens))
                if not queue:
                    return
                while queue[0].rows:
                    with self._deaths():
                        done = self._step(queue)
                    if any(done):
                        on_batch(*done)
                yield queue.popleft().embeddings
        except EngineError:
            # A dead engine has nothing left to abort.
            queue.clear()
            raise
        finally:
            self._engine.abort_request([request for block in queue for request in block.rows])

    def close(self) -> None:
        """End vLLM's processes, which frees the device."""
        self._engine.engine_core.shutdown()

    @contextmanager
    def _deaths(self) -> Iterator[None]:
        # Only around calls of vLLM: an error of whoever gives the texts or takes the embeddings is none of its own.
        try:
            yield
        except (EngineDeadError, RuntimeError) as error:
            raise EngineError(f"vLLM died with {self.spec.model} ({_reason(error)}); {REMEDY}.") from error

    def _submit(self, tokens: Tokens) -> _Block:
        rows = {str(next(self._request)): row for row in range(len(tokens.ids))}
        for request, row in rows.items():
            self._engine.add_request(request, tokens_input(tokens.ids[row]), PoolingParams(task="embed"))
        return _Block(tokens, np.empty((len(rows), len(self.spec.layers), self.spec.dim), np.float32), rows)

    def _step(self, queue: Iterable[_Block]) -> tuple[int, int]:
        outputs = self._engine.step()
        for output in outputs:
            block = next(block for block in queue if output.request_id in block.rows)
            row = block.rows.pop(output.request_id)
            _check_output(output, block.tokens.ids[row])
            block.embeddings[row] = output.outputs.data.numpy().reshape(block.embeddings.shape[1:])
        return len(outputs), sum(len(output.prompt_token_ids) for output in outputs)


def _arguments(spec: BackboneSpec, files: ModelFiles) -> dict[str, Any]:
    # These models have no sliding window in transformers; vLLM would obey one that a config.json names all the same.
    windowless = {"sliding_window": None} if files.model_type in ("llama", "gemma") else {}
    return {
        "model": str(files.folder),
        "runner": "pooling",
        # Here and not in an environment variable, because vLLM's cache of compiled models goes by them.
        "hf_overrides": {
            "architectures": [architecture(files.model_type)],
            # Layers above the highest chosen one are not even loaded.
            "num_hidden_layers": max(*spec.layers, 1),
            **windowless,
            "llmembed": {"layers": list(spec.layers), "depth": spec.depth, "pooling": spec.pooling},
        },
        # Not the files in Mistral's own format, which some repositories have too.
        "config_format": "hf",
        "load_format": "safetensors",
        "skip_tokenizer_init": True,
        "max_model_len": spec.max_length,
        # A prefix taken from the cache would be missing from the pooled vector.
        "enable_prefix_caching": False,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }


def _platform_arguments() -> dict[str, Any]:
    # Compiling takes longer than a CPU saves by it.
    return {"enforce_eager": True} if current_platform.is_cpu() else {}


def _compute_dtype() -> str:
    dtype = torch.float32 if current_platform.is_cpu() else current_platform.supported_dtypes[0]
    return str(dtype).removeprefix("torch.")


def _start(arguments: EngineArgs, model: str) -> LLMEngine:
    try:
        return LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
    except (RuntimeError, ValueError, OSError, AssertionError) as error:
        raise EngineError(f"vLLM could not start {model} ({_reason(error)}); {REMEDY}.") from error


def _watch(engine: LLMEngine) -> None:
    # When its process is killed from outside, vLLM's synchronous client would wait for an answer for ever.
    client = engine.engine_core
    if not hasattr(client, "outputs_queue"):
        return

    def wait_and_tell() -> None:
        client.resources.engine_manager.monitor_engine_liveness()
        client.outputs_queue.put(EngineDeadError())

    Thread(target=wait_and_tell, daemon=True).start()


def _check_config(engine: LLMEngine, model: str) -> None:
    if engine.vllm_config.cache_config.enable_prefix_caching:
        engine.engine_core.shutdown()
        raise BackboneError(
            f"vLLM caches prefixes for {model}, which would leave tokens out of the pooled vectors; turn it off."
        )


def _check_output(output: PoolingRequestOutput, ids: list[int]) -> None:
    if output.error is not None:
        raise RuntimeError(f"a text of {len(ids)} tokens failed: {output.error}")
    if output.prompt_token_ids != ids or output.num_cached_tokens:
        raise BackboneError(
            f"vLLM read {len(output.prompt_token_ids)} tokens, {output.num_cached_tokens} of them from its cache, of a "
            f"text of {len(ids)}; nothing of its block was kept."
        )


def _reason(error: Exception) -> str:
    # Some errors have a headline and then the reason; pydantic adds an address at the end.
    lines = [line.strip() for line in str(error).strip().splitlines() if "https://" not in line]
    return " ".join(lines) or type(error).__name__
