"""Blocks of texts -> committed shards, with a loaded backbone in this process.

Tokenising the next block and writing the last one run beside the model. A text that cannot be embedded or stored is
told of and left out; all others of its block are committed. Knows no data set and no labels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np

from llmembed.backbones import Backbone, BadText, OnBatch, Tokens, ignore_batch
from llmembed.backbones.precision import find_bad
from llmembed.cache import Cache
from llmembed.cache.shard import EmbeddedRows
from llmembed.errors import TextError

# The texts of one shard by key, in its order.
Block = Mapping[bytes, str]
OnBad = Callable[[Mapping[bytes, BadText]], None]


def embed_blocks(
    backbone: Backbone,
    blocks: Iterable[Block],
    cache: Cache,
    on_batch: OnBatch,
    on_shard: OnBatch = ignore_batch,
    on_bad: OnBad = lambda _: None,
) -> None:
    """Embed blocks with a loaded backbone and commit each as a shard.

    `on_batch` is told the number of texts and of tokens of what was embedded, with negative numbers of what must come
    again or cannot be stored, `on_shard` of every block what of it was committed, `on_bad` which texts were left out.

    Raises:
        EngineError: the engine died.
    """

    def write(rows: EmbeddedRows) -> None:
        if rows.keys:
            cache.write_shard(rows, asdict(backbone.engine))
        on_shard(len(rows.keys), int(rows.tokens.sum()))

    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as tokenizing, ThreadPoolExecutor(1) as writing:
        work = _Work(backbone, iter(blocks), tokenizing)
        for block, embeddings in work.embedded(on_batch):
            rows, unstorable = _storable(block, embeddings, backbone)
            if unstorable:
                lengths = block.tokens.lengths[list(unstorable)]
                on_batch(-len(lengths), -int(lengths.sum()))
            bad = block.bad | {block.keys[row]: text for row, text in unstorable.items()}
            if bad:
                on_bad(bad)
            if written is not None:
                written.result()
            written = writing.submit(write, rows)
        if written is not None:
            written.result()


@dataclass
class _Tokenized:
    """A block whose texts are tokenised, without those that were found bad so far."""

    keys: list[bytes]
    tokens: Tokens
    bad: dict[bytes, BadText] = field(default_factory=dict)

    def without(self, reasons: Mapping[int, str]) -> "_Tokenized":
        bad = self.bad | {self.keys[row]: BadText(reason) for row, reason in reasons.items()}
        rows = [row for row in range(len(self.keys)) if row not in reasons]
        tokens = Tokens([self.tokens.ids[row] for row in rows], self.tokens.truncated[rows])
        return _Tokenized([self.keys[row] for row in rows], tokens, bad)


class _Work:
    """Blocks on their way through the engine; those that it has not given back can be given to it again."""

    def __init__(self, backbone: Backbone, blocks: Iterator[Block], tokenizing: ThreadPoolExecutor) -> None:
        self._backbone, self._blocks, self._tokenizing = backbone, blocks, tokenizing
        self._again: deque[_Tokenized] = deque()
        self._in_work: deque[_Tokenized] = deque()
        self._following: Future[_Tokenized | None] = tokenizing.submit(self._tokenize_next)

    def embedded(self, on_batch: OnBatch) -> Iterator[tuple[_Tokenized, np.ndarray]]:
        """Yield blocks with their embeddings, in order."""
        while True:
            told = np.zeros(2, np.int64)

            def count(texts: int, tokens: int, told: np.ndarray = told) -> None:
                told[:] += (texts, tokens)
                on_batch(texts, tokens)

            try:
                for embeddings in self._backbone.embed(self._tokens(), count):
                    block = self._in_work.popleft()
                    told -= (len(block.keys), int(block.tokens.lengths.sum()))
                    yield block, embeddings
                return
            except TextError as error:
                # The engine lives on; what it had not given back comes again, without the texts that it named.
                first, *others = self._in_work
                self._in_work.clear()
                self._again.extend([first.without(error.reasons), *others])
                on_batch(*(-told).tolist())

    def _tokens(self) -> Iterator[Tokens]:
        while (block := self._next()) is not None:
            self._in_work.append(block)
            yield block.tokens

    def _next(self) -> _Tokenized | None:
        if self._again:
            return self._again.popleft()
        block = self._following.result()
        if block is not None:
            self._following = self._tokenizing.submit(self._tokenize_next)
        return block

    def _tokenize_next(self) -> _Tokenized | None:
        block = next(self._blocks, None)
        if block is None:
            return None
        try:
            return _Tokenized(list(block), self._backbone.tokenize(list(block.values())))
        except TextError as error:
            bad = {row: BadText(reason) for row, reason in error.reasons.items()}
            keys = list(block)
            rest = {key: text for row, (key, text) in enumerate(block.items()) if row not in bad}
            tokens = self._backbone.tokenize(list(rest.values()))
            return _Tokenized(list(rest), tokens, {keys[row]: text for row, text in bad.items()})


def _storable(block: _Tokenized, embeddings: np.ndarray, backbone: Backbone) -> tuple[EmbeddedRows, dict[int, BadText]]:
    bad, dtype = find_bad(embeddings, backbone.spec), backbone.spec.dtype
    lengths, truncated = block.tokens.lengths, block.tokens.truncated
    if not bad:
        return EmbeddedRows(block.keys, lengths, truncated, embeddings.astype(dtype, copy=False)), bad
    good = [row for row in range(len(block.keys)) if row not in bad]
    keys = [block.keys[row] for row in good]
    return EmbeddedRows(keys, lengths[good], truncated[good], embeddings[good].astype(dtype, copy=False)), bad
