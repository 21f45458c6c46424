"""The transformers engine: any text encoder or decoder of Hugging Face, on the CPU or one GPU. Easy to trust.

In: tokens. Out: float32 embeddings [rows, layers, dim]. It stacks texts of similar length up to a token budget, runs
only the layers that are needed and pools each layer as soon as it is computed. Knows no cache.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from llmembed.backbones import BackboneSpec, EngineInfo, OnBatch, Tokens, ignore_batch
from llmembed.backbones.pooling import pool
from llmembed.backbones.tokenizer import Tokenizer
from llmembed.backbones.weights import ModelFiles
from llmembed.devices import find_device
from llmembed.errors import BackboneError, EngineError, TextError

# Measured with all-MiniLM-L6-v2 on 4 cores: 1,024 tokens beat 512 by 8 % and 2,048 by 6 %.
CPU_BATCH_TOKENS = 1024
GPU_BATCH_TOKENS = 16_384


class TransformersBackbone:
    """A model run by transformers: float32 on the CPU, bfloat16 (float16 on older cards) on a GPU."""

    def __init__(self, spec: BackboneSpec, files: ModelFiles, *, device: str | None = None) -> None:
        # First: what cannot be used shows before anything is loaded.
        self._device = torch.device(find_device(device))
        self.spec = spec
        self.tokenize = Tokenizer(spec, files)
        dtype = _compute_dtype(self._device)
        self._model = _load_model(files, dtype).to(self._device)
        self._depth = files.config.depth
        self._batch = threading.local()
        self._watch_layers(_layer_stack(self._model, self._depth, files))
        self.engine = EngineInfo(
            engine="transformers",
            version=transformers.__version__,
            torch=torch.__version__,
            device=torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            dtype=str(dtype).removeprefix("torch."),
        )

    def embed(self, blocks: Iterable[Tokens], on_batch: OnBatch = ignore_batch) -> Iterator[np.ndarray]:
        """Embed blocks of tokenised texts -> float32 [rows, layers, dim] each."""
        with ThreadPoolExecutor(self._workers(), initializer=self._limit_threads) as executor:
            for tokens in blocks:
                yield self._embed_block(tokens, executor, on_batch)

    def close(self) -> None:
        """Free the device."""
        self._model.to("meta")
        if self._device.type == "cuda":
            # torch keeps what is freed in store, out of the reach of another engine.
            torch.cuda.empty_cache()

    def _embed_block(self, tokens: Tokens, executor: ThreadPoolExecutor, on_batch: OnBatch) -> np.ndarray:
        embeddings = np.empty((len(tokens.ids), len(self.spec.layers), self.spec.dim), np.float32)
        failed: dict[int, str] = {}

        def embed_batch(rows: np.ndarray) -> np.ndarray:
            failed.update(self._embed_rows(tokens.ids, rows, embeddings))
            return rows[[row not in failed for row in rows.tolist()]] if failed else rows

        for rows in executor.map(embed_batch, self._batches(tokens.lengths)):
            on_batch(len(rows), int(tokens.lengths[rows].sum()))
        if failed:
            row, reason = next(iter(failed.items()))
            length = len(tokens.ids[row])
            raise TextError(f"{self.spec.model} cannot embed a text of {length:,} tokens: {reason}", failed)
        return embeddings

    def _embed_rows(self, ids: list[list[int]], rows: np.ndarray, embeddings: np.ndarray) -> dict[int, str]:
        """Embed some texts in one batch, or else in ever smaller ones; give why those failed that fail alone."""
        try:
            embeddings[rows] = self._forward([ids[row] for row in rows])
            return {}
        except (RuntimeError, IndexError, MemoryError) as error:
            reason = self._reason(error)
        # Here and not above: an error holds on to the memory that there was too little of.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) == 1:
            return {int(rows[0]): reason}
        halves = np.array_split(rows, 2)
        return {row: why for half in halves for row, why in self._embed_rows(ids, half, embeddings).items()}

    def _reason(self, error: Exception) -> str:
        device = self.engine.device
        if isinstance(error, torch.OutOfMemoryError):
            return f"out of memory on {device}; lower `max_length`, free the card, or use `device='cpu'`"
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        if self._device.type == "cuda":
            # What went wrong there goes wrong ever after in this process.
            raise EngineError(f"{self.spec.model} failed on {device} ({line}).") from error
        return f"the model failed: {line}"

    def _workers(self) -> int:
        # On the CPU, batches in parallel with one thread each: torch's own threads wait for the slowest at every
        # matrix product, which made one batch at a time 1.5 to 4 times slower on a busy 4-core machine.
        return torch.get_num_threads() if self._device.type == "cpu" else 1

    def _limit_threads(self) -> None:
        if self._device.type == "cpu":
            torch.set_num_threads(1)

    def _batches(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        budget = CPU_BATCH_TOKENS if self._device.type == "cpu" else GPU_BATCH_TOKENS
        # Longest first: running out of memory shows at once, and the last batches to finish are short ones.
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            stop = start + max(1, budget // int(lengths[order[start]]))
            yield order[start:stop]
            start = stop

    @torch.inference_mode()
    def _forward(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        lengths = torch.tensor([len(text) for text in ids])
        width = int(lengths.max())
        # Any valid id will do as padding: the mask hides it.
        padded = torch.zeros(len(ids), width, dtype=torch.long)
        for row, text in enumerate(ids):
            padded[row, : len(text)] = torch.tensor(text)
        # Without a mask attention takes a faster path; sorted texts are often of one length.
        mask = (torch.arange(width) < lengths[:, None]).long().to(self._device) if int(lengths.min()) < width else None
        self._batch.lengths = lengths.to(self._device)
        self._batch.pooled = {}
        output = self._model(input_ids=padded.to(self._device), attention_mask=mask)
        self._keep(self._depth, output.last_hidden_state)
        return torch.stack([self._batch.pooled[layer] for layer in self.spec.layers], dim=1).cpu().numpy()

    def _keep(self, layer: int, states: Tensor) -> None:
        if layer in self.spec.layers:
            self._batch.pooled[layer] = pool(states, self._batch.lengths, self.spec.pooling)

    def _watch_layers(self, blocks: nn.ModuleList) -> None:
        # Layers above the highest chosen one need not run. The state of a layer is taken by a hook, before any final
        # norm; the last layer's is taken from the model's output, after it.
        del blocks[max(*self.spec.layers, 1) :]
        blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: self._keep(0, _first(args, kwargs)), with_kwargs=True
        )
        for layer, block in enumerate(blocks, start=1):
            if layer < self._depth:
                block.register_forward_hook(lambda _, args, output, layer=layer: self._keep(layer, _states(output)))


def _first(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _states(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _compute_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _load_model(files: ModelFiles, dtype: torch.dtype) -> nn.Module:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        # Gemma 2 caps its attention logits, which torch's fused attention cannot; transformers 5.19 then leaves the cap
        # out and says nothing: 38 % relative error in the last layer of a random model.
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
        model, report = transformers.AutoModel.from_pretrained(
            files.folder,
            config=config,
            attn_implementation=attention,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BackboneError(f"{files.folder}: the model cannot be loaded ({str(error).splitlines()[0]}).") from error
    # A weight that the files lack would be random; only the pooler over the first token is never used here.
    lacking = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if lacking:
        raise BackboneError(
            f"{files.folder}: the safetensors lack {len(lacking)} weights of the model, such as {lacking[0]}; "
            "get the files again."
        )
    model.config.use_cache = False
    model.eval()
    return cast(nn.Module, model)


def _layer_stack(model: nn.Module, depth: int, files: ModelFiles) -> nn.ModuleList:
    if getattr(model.config, "is_encoder_decoder", False):
        raise BackboneError(f"{files.folder} is an encoder-decoder; use a text encoder or a decoder.")
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise BackboneError(
        f"{files.folder}: {type(model).__name__} has no stack of {depth} layers; it cannot be used as a backbone."
    )
