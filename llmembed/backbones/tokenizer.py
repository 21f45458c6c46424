"""Tokenising: texts -> token ids, by one rule for every engine.

The ids come from the model's own fast tokenizer, special tokens included, cut to the length limit and never padded;
so two engines that are given the same spec read the same tokens. A text that is too long is cut, the template never.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import tokenizers
from transformers import AutoTokenizer

from llmembed.backbones import BackboneSpec, Tokens
from llmembed.backbones.long_texts import Heads
from llmembed.backbones.special import separate
from llmembed.backbones.weights import ModelFiles
from llmembed.errors import BackboneError, TextError

# Where a head ends inside a word, its last token and the first one of the suffix may become more or fewer.
SLACK_TOKENS = 4
# Heads that are tried at once.
TRIES = 8


class Tokenizer:
    """The tokenizer of one spec.

    Raises:
        BackboneError: no fast tokenizer, or the length limit leaves no room beside the template.
    """

    def __init__(self, spec: BackboneSpec, files: ModelFiles) -> None:
        rust = _load(files)
        # The files may ask for padding to a fixed length and for truncation of their own (all-MiniLM-L6-v2: 128).
        rust.no_padding()
        rust.no_truncation()
        self._rust, self._template = separate(rust, spec.template)
        self._limit = spec.max_length
        alone = len(self._rust.encode(self._template.fill("")).ids)
        if alone >= self._limit:
            # With the special tokens alone the tokenizer would not truncate at all.
            special = self._rust.num_special_tokens_to_add(False)
            raise BackboneError(
                f"`max_length={self._limit}` leaves no room beside {special} special tokens and the template: "
                f"{spec.template!r} has {alone} tokens without a text."
            )
        self._rust.enable_truncation(self._limit)
        self._before, *after = self._template.template.split("{text}")
        # More than one where the template repeats the text.
        self._places = len(after)
        self._text_is_last = after == [""]
        self._room = self._limit - alone
        self._heads = Heads(self._rust, self._before, self._limit)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise [rows] texts.

        Raises:
            TextError: texts without any token; there would be nothing to pool.
        """
        heads = self._heads(texts)
        encodings = self._rust.encode_batch_fast([self._template.fill(head) for head in heads])
        truncated = np.fromiter((bool(encoding.overflowing) for encoding in encodings), bool, len(heads))
        ids = [encoding.ids for encoding in encodings]
        if not self._text_is_last:
            for row in np.flatnonzero(truncated):
                ids[row] = self._fit(heads[row])
        ids = [self._template.real(row) for row in ids]
        if not all(ids):
            empty = {row: "no tokens" for row, given in enumerate(ids) if not given}
            raise TextError(f"The text {texts[min(empty)][:80]!r} has no tokens; leave it out.", empty)
        return Tokens(ids, truncated)

    def _fit(self, text: str) -> list[int]:
        """Return the ids of the filled template with the longest head of a text with which it fits."""
        heads = (text[:end] for end in self._ends(text))
        while tried := list(islice(heads, TRIES)):
            for encoding in self._rust.encode_batch_fast([self._template.fill(head) for head in tried]):
                if not encoding.overflowing:
                    return list(encoding.ids)
        raise AssertionError("the template alone fits")

    def _ends(self, text: str) -> Iterator[int]:
        """Return where tokens end in a text, from a little more than there is room for down to 0."""
        encoding = self._rust.encode(self._template.fill(text))
        ends = [
            end - len(self._before)
            for part in (encoding, *encoding.overflowing)
            for (_, end), special in zip(part.offsets, part.special_tokens_mask, strict=True)
            if not special and 0 < end - len(self._before) < len(text)
        ]
        yield from sorted({0, *ends[: self._room // self._places + SLACK_TOKENS]}, reverse=True)


def _load(files: ModelFiles) -> tokenizers.Tokenizer:
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
    rust: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    return rust
