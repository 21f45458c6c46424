"""Special tokens: those that the template writes keep their meaning; a text that looks like one stays text.

In: a tokenizer of the model's files and a template. Out: a tokenizer for which no text is a special token, and the
template with marks in place of its special tokens. Knows no lengths.
"""

import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer


@dataclass(frozen=True)
class Marked:
    """A template whose special tokens are written as marks, and the ids of these by the ids of the marks."""

    template: str
    ids: Mapping[int, int]

    def fill(self, text: str) -> str:
        """Return what the model reads for a text."""
        return self.template.replace("{text}", text)

    def real(self, ids: list[int]) -> list[int]:
        """Return token ids with those of the special tokens in place of those of the marks."""
        return [self.ids.get(each, each) for each in ids] if self.ids else ids


def separate(rust: Tokenizer, template: str) -> tuple[Tokenizer, Marked]:
    """Return a tokenizer that takes special tokens from the template alone, and the template that it reads.

    All other ids stay what they are.
    """
    added = {token.content: (number, token) for number, token in rust.get_added_tokens_decoder().items()}
    special = [content for content, (_, token) in added.items() if token.special]
    rust = _reading_text(rust, special)
    # Lower-case letters and digits, which every normaliser leaves alone; nobody can write them into a text.
    nonce = f"mark{secrets.token_hex(16)}n"
    ids: dict[int, int] = {}

    def mark(found: re.Match[str]) -> str:
        number, token = added[found[0]]
        if not token.special:
            return found[0]
        name = f"{nonce}{number}e"
        rust.add_tokens([AddedToken(name, lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized)])
        # Never None: it was just added.
        ids[rust.token_to_id(name) or 0] = number
        return name

    # As the tokenizer finds them: the leftmost, and of these the longest.
    names = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")
    return rust, Marked("{text}".join(names.sub(mark, literal) for literal in template.split("{text}")), ids)


def _reading_text(rust: Tokenizer, special: Collection[str]) -> Tokenizer:
    rust.encode_special_tokens = True
    hidden = {content: f"{secrets.token_hex(16)}-{number}" for number, content in enumerate(_pieces(rust, special))}
    if hidden:
        rust = Tokenizer.from_str(_renamed(json.loads(rust.to_str()), hidden))
        rust.encode_special_tokens = True
    return rust


def _pieces(rust: Tokenizer, special: Collection[str]) -> list[str]:
    """List the special tokens that the model makes of plain text, because its own vocabulary has them too."""
    if type(rust.model).__name__ == "Unigram":
        # Files that came from SentencePiece list them with the score 0, better than any other piece.
        return [content for content in special if rust.model.token_to_id(content) is not None]
    found = []
    for content in special:
        contexts = rust.encode_batch_fast(
            [content, f" {content}", f"a{content}a", f"a {content} a"], add_special_tokens=False
        )
        if any(rust.token_to_id(content) in encoding.ids for encoding in contexts):
            found.append(content)
    return found


def _renamed(written: dict[str, Any], hidden: Mapping[str, str]) -> str:
    model = written["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(piece, piece): number for piece, number in model["vocab"].items()}
        model["unk_token"] = hidden.get(model.get("unk_token"), model.get("unk_token"))
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & hidden.keys()]
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] not in hidden]
    return json.dumps(written)
