"""Tokenising: texts -> token ids, by one rule for every engine.

The ids come from the model's own fast tokenizer, special tokens included, cut to the length limit and never padded;
so two engines that are given the same spec read the same tokens.
"""

from collections.abc import Sequence

import numpy as np
from transformers import AutoTokenizer

from llmembed.backbones import BackboneSpec, Tokens
from llmembed.backbones.weights import ModelFiles
from llmembed.errors import BackboneError


class Tokenizer:
    """The tokenizer of one spec."""

    def __init__(self, spec: BackboneSpec, files: ModelFiles) -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            raise BackboneError(
                f"{files.folder}: the tokenizer cannot be loaded ({str(error).splitlines()[0]})."
            ) from error
        if not tokenizer.is_fast:
            raise BackboneError(
                f"{files.folder}: {type(tokenizer).__name__} has no tokenizer.json; convert it to a fast tokenizer."
            )
        self._rust = tokenizer.backend_tokenizer
        special = self._rust.num_special_tokens_to_add(False)
        if spec.max_length <= special:
            # The tokenizer would then not truncate at all.
            raise BackboneError(f"--max-length {spec.max_length} leaves no room beside {special} special tokens.")
        # The files may ask for padding to a fixed length and for truncation of their own (all-MiniLM-L6-v2: 128).
        self._rust.no_padding()
        self._rust.enable_truncation(spec.max_length)
        self._template = spec.template

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise [rows] texts.

        Raises:
            BackboneError: a text without any token; there would be nothing to pool.
        """
        filled = [self._template.replace("{text}", text) for text in texts]
        encodings = self._rust.encode_batch_fast(filled)
        ids = [encoding.ids for encoding in encodings]
        if not all(ids):
            raise BackboneError(f"The text {texts[ids.index([])]!r} has no tokens; leave it out.")
        truncated = np.fromiter((bool(encoding.overflowing) for encoding in encodings), bool, len(ids))
        return Tokens(ids, truncated)
