"""vLLM's models as backbones: the same layers and weights, a forward pass that hands out the chosen layer states.

The loop over the layers is written out here, once for decoders and once for encoders, so that it says by name which
state is which: 0 before the first layer, i after layer i, the last one after the final norm.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.models.adapters import as_embedding_model
from vllm.model_executor.models.bert import BertEmbeddingModel
from vllm.model_executor.models.gemma import GemmaForCausalLM
from vllm.model_executor.models.gemma2 import Gemma2ForCausalLM
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.roberta import RobertaEmbeddingModel
from vllm.sequence import IntermediateTensors

from llmembed.backbones.vllm.pooler import LayerPooler
from llmembed.backbones.weights import LAYER

# The heads of a checkpoint are not run.
HEAD_WEIGHTS = re.compile(r"(lm_head|cls|pooler|classifier|score|qa_outputs)\.")


class _Layers:
    """What both kinds share: which layers are wanted, the pooler over them, and the weights that are loaded."""

    model: Any
    packed_modules_mapping: dict[str, list[str]]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        chosen = vllm_config.model_config.hf_config.llmembed
        self._wanted: list[int] = chosen["layers"]
        self._depth: int = chosen["depth"]
        self._pooling = chosen["pooling"]
        self._running: int = vllm_config.model_config.hf_config.num_hidden_layers
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]

    def _init_pooler(self, vllm_config: VllmConfig, prefix: str = "") -> LayerPooler:
        return LayerPooler(self._pooling)

    def _build_pooler(self, pooler_config: Any) -> LayerPooler:
        return LayerPooler(self._pooling)

    def _chosen(self, states: dict[int, Tensor]) -> tuple[Tensor, ...]:
        return tuple(states[layer] for layer in self._wanted)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the layers that run; their names may begin with that of the model.

        Raises:
            ValueError: a weight is missing.
        """
        given: set[str] = set()

        def noted() -> Iterable[tuple[str, Tensor]]:
            for name, weight in self._needed(weights):
                given.add(name.removeprefix("model."))
                yield name, weight

        loaded: set[str] = super().load_weights(noted())  # type: ignore[misc]
        lacking = sorted(self._parts(loaded) - given)
        if lacking:
            raise ValueError(f"the safetensors lack {len(lacking)} weights of the model, such as {lacking[0]}")
        return loaded

    def _parts(self, loaded: set[str]) -> set[str]:
        # vLLM packs matrices that are multiplied together, and counts one as loaded as soon as one of its parts was.
        return {
            whole.removeprefix("model.").replace(packed, part)
            for packed, parts in self.packed_modules_mapping.items()
            for whole in loaded
            if f".{packed}." in whole
            for part in parts
        }

    def _needed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        for name, weight in weights:
            name = name.removeprefix("bert.").removeprefix("roberta.")
            layer = LAYER.search(name)
            if not HEAD_WEIGHTS.match(name) and (layer is None or int(layer[1]) < self._running):
                yield name, weight


class _DecoderLayers(_Layers):
    """Decoders, whose layers pass on what they add and the sum so far (the residual) as two tensors."""

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Run the layers -> the chosen states, [tokens, dim] each."""
        hidden = self.model.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        # A copy: the first layer keeps this tensor as its residual, and the norms after it add to that in place.
        states = {0: hidden.clone()} if 0 in self._wanted else {}
        for number, layer in enumerate(self.model.layers, start=1):
            hidden, residual = layer(positions, hidden, residual)
            if number in self._wanted and number < self._depth:
                states[number] = hidden + residual
        if self._depth in self._wanted:
            states[self._depth], _ = self.model.norm(hidden, residual)
        return self._chosen(states)


class _EncoderLayers(_Layers):
    """Encoders, whose layers pass on one tensor, and which have no final norm."""

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Run the layers -> the chosen states, [tokens, dim] each."""
        hidden = self.model.embeddings(input_ids=input_ids, position_ids=positions, inputs_embeds=inputs_embeds)
        states = {0: hidden}
        for number, layer in enumerate(self.model.encoder.layer, start=1):
            hidden = states[number] = layer(hidden)
        return self._chosen(states)


class _SideBySide:
    """Lays the states side by side [tokens, layers * dim]: both of vLLM's model runners insist on one tensor.

    Outside of what is compiled: with this inside, the last layer of a compiled model was garbage (vLLM 0.32, CPU).
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        states: tuple[Tensor, ...] = super().__call__(*args, **kwargs)  # type: ignore[misc]
        return torch.cat(states, dim=-1)


def _handing_out_states(kind: type[_Layers], model: Any) -> Any:
    own = {"__module__": __name__}
    compiled = support_torch_compile(type(f"{kind.__name__}Of{model.__name__}", (kind, as_embedding_model(model)), own))
    return type(f"LLMEmbed{model.__name__}", (_SideBySide, compiled), own)


LLMEmbedBert = _handing_out_states(_EncoderLayers, BertEmbeddingModel)
LLMEmbedGemma = _handing_out_states(_DecoderLayers, GemmaForCausalLM)
LLMEmbedGemma2 = _handing_out_states(_DecoderLayers, Gemma2ForCausalLM)
LLMEmbedGemma3 = _handing_out_states(_DecoderLayers, Gemma3ForCausalLM)
LLMEmbedLlama = _handing_out_states(_DecoderLayers, LlamaForCausalLM)
LLMEmbedMistral = _handing_out_states(_DecoderLayers, MistralForCausalLM)
LLMEmbedQwen2 = _handing_out_states(_DecoderLayers, Qwen2ForCausalLM)
LLMEmbedQwen3 = _handing_out_states(_DecoderLayers, Qwen3ForCausalLM)
LLMEmbedRoberta = _handing_out_states(_EncoderLayers, RobertaEmbeddingModel)
