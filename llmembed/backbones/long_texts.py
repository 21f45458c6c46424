"""Long texts: the head of a text that surely begins with the tokens that the whole text begins with.

In: texts of any length. Out: the text, or a head of it with more tokens than the limit. A text of 10 MB took 23 s and
1.6 GB to tokenise, of which 256 tokens were used. Knows no special tokens and no suffix.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from tokenizers import Encoding, Tokenizer

# Characters of the first head: most texts have fewer than 6 a token.
CHARACTERS_PER_TOKEN = 8
CHARACTERS_BESIDE = 512
GROWTH = 4
# The end of a head may be read otherwise than the same place in the whole text. Of the words that no token crosses,
# so many at the end do not count; what the rules of pre-tokenizers look at ends with the next one or two.
MARGIN_WORDS = 16
# What SentencePiece writes for a space.
SPACE = "▁"


class Heads:
    """Finds heads of texts for one tokenizer, which truncates at `limit` tokens; `before` comes before every text."""

    def __init__(self, rust: Tokenizer, before: str, limit: int) -> None:
        self._rust, self._before, self._limit = rust, before, limit

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Return each text, or a head of it whose tokens up to the limit, and one more, are those of the whole."""
        heads = list(texts)
        size = CHARACTERS_PER_TOKEN * self._limit + CHARACTERS_BESIDE
        waiting = list(range(len(texts)))
        # Half of a text and then all of it would cost more than all of it.
        while waiting := [row for row in waiting if len(texts[row]) > 2 * size]:
            cut = {row: head for row in waiting if (head := _until_white_space(texts[row], size))}
            encodings = self._rust.encode_batch([self._before + head for head in cut.values()])
            for (row, head), encoding in zip(cut.items(), encodings, strict=True):
                if self._sure_tokens(encoding) > self._limit:
                    heads[row] = head
            waiting = [row for row in waiting if heads[row] is texts[row]]
            size *= GROWTH
        return heads

    def _sure_tokens(self, encoding: Encoding) -> int:
        # What the tokenizer cuts off hangs on the encoding; special tokens stand around each part.
        tokens = [
            (word, token)
            for part in (encoding, *encoding.overflowing)
            for word, token, special in zip(part.word_ids, part.tokens, part.special_tokens_mask, strict=True)
            if not special
        ]
        pairs = enumerate(pairwise(tokens), start=1)
        starts = [place for place, (last, following) in pairs if self._apart(last, following)]
        return starts[-MARGIN_WORDS] if len(starts) >= MARGIN_WORDS else 0

    def _apart(self, last: tuple[int | None, str], following: tuple[int | None, str]) -> bool:
        # The model reads every word that the pre-tokenizer gives it on its own.
        if last[0] != following[0]:
            return True
        return self._spaces_begin_words and following[1].startswith(SPACE) and not last[1].endswith(SPACE)

    @cached_property
    def _spaces_begin_words(self) -> bool:
        """Without a pre-tokenizer: no token goes on over a space, so what comes before it does not depend on it."""
        return not any(re.search(f"[^{SPACE}]{SPACE}", piece) for piece in self._rust.get_vocab(False))


def _until_white_space(text: str, size: int) -> str:
    """Return a head of up to `size` characters that ends where white space begins; empty if there is none."""
    parts = text[:size].rsplit(None, 1)
    return parts[0] if len(parts) == 2 else ""
