"""Real models too small to know anything, made on the spot: a Llama with random weights and a tokenizer of its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast


def save_tokenizer(folder: Path, texts: Sequence[str]) -> None:
    """Write a byte-level BPE of up to 600 tokens, learned from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


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


def copy_of(folder: Path, parent: Path) -> Path:
    copy = parent / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def relative_error(given: np.ndarray, wanted: np.ndarray) -> float:
    return float((np.abs(given - wanted).max(axis=-1) / np.abs(wanted).max(axis=-1)).max())
