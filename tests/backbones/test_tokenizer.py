"""Every kind of tokenizer: what a text may not write, what a template keeps, and how much of a long text is read."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import refused
from tiny_tokenizers import KINDS, make, ours, save
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer

from llmembed.backbones.weights import find_model
from llmembed.errors import BackboneError

SUFFIXED = 'review: "{text}" sentiment:'
# What texts are made of; repeated, they are words, one endless word, white space, and characters of several tokens.
ATOMS = [
    "the ",
    "model",
    " ",
    "\n",
    "a",
    "é",
    "e\u0301",
    "👩‍👧",
    "数据",
    "7",
    ". ",
    "don't ",
    "\u0301",
    "▁",
    "\x1c",
    " \t",
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, texts: list[str], pydocs) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    made = {kind: save(make(kind, pydocs.texts("train")[:500]), root / kind) for kind in KINDS}
    return made | {"minilm": find_model("minilm").folder}


def plain(folder: Path, limit: int | None = None) -> Tokenizer:
    """Load the tokenizer as it is, without anything of ours."""
    rust = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    rust.no_padding()
    rust.enable_truncation(limit) if limit else rust.no_truncation()
    return rust


def ids(rust: Tokenizer, texts: Sequence[str], template: str = "{text}") -> list[list[int]]:
    return [encoding.ids for encoding in rust.encode_batch([template.replace("{text}", text) for text in texts])]


@pytest.mark.parametrize("template", ["{text}", "topic: {text}", "{text} {text}"])
@pytest.mark.parametrize("kind", [*KINDS, "minilm"])
def test_real_texts_are_read_as_the_tokenizer_reads_them(folders, kind, template, texts):
    short = [text for text in texts if len(text) < 300] if template.endswith(" {text}") else texts
    limit = 2000 if template.startswith("{text} ") else 40
    assert ours(folders[kind], limit, template)(short).ids == ids(plain(folders[kind], limit), short, template)


@pytest.mark.parametrize("kind", ["wordpiece", "bytelevel", "digits", "unigram", "unsplit", "minilm"])
def test_a_special_token_that_a_text_writes_is_text(folders, kind):
    rust = plain(folders[kind])
    special = {token.content: number for number, token in rust.get_added_tokens_decoder().items() if token.special}
    around = ids(rust, [""])[0]
    unknown = {special.get(name) for name in ("<unk>", "[UNK]")}
    for name in special:
        for text in (name, f"the {name} of", f"{name}{name}"):
            given = ours(folders[kind], 100)([text]).ids[0]
            assert not (set(given[1 : len(given) - 1]) & set(special.values())) - unknown, (name, given)
            assert len(given) > len(around) + 2


def test_special_tokens_of_the_template_keep_their_meaning(folders):
    template, rust = "<|user|>{text} or so<|end|>", plain(folders["bytelevel"])
    user, end = rust.token_to_id("<|user|>"), rust.token_to_id("<|end|>")
    tokenizer = ours(folders["bytelevel"], 20, template)
    assert tokenizer(["a text"]).ids == ids(rust, ["a text"], template)
    for text in ("the <|end|> of it", "long " * 100, "<|user|>" * 50):
        given = tokenizer([text]).ids[0]
        assert (given[0], given[-1], given.count(user), given.count(end)) == (user, end, 1, 1)


@pytest.mark.parametrize("kind", [*KINDS, "minilm"])
def test_a_text_is_cut_and_the_template_is_not(folders, kind, texts):
    rust, limit = plain(folders[kind]), 30
    given = ours(folders[kind], limit, SUFFIXED)(texts)
    whole = [len(row) for row in ids(rust, texts, SUFFIXED)]
    assert given.truncated.tolist() == [length > limit for length in whole]
    assert 0 < given.truncated.sum() < len(texts)
    for text, row in zip(texts, given.ids, strict=True):
        assert row == longest_that_fits(rust, text, limit)


def longest_that_fits(rust: Tokenizer, text: str, limit: int) -> list[int]:
    """Try every place where a token of the filled template ends, from the end of the text to its beginning."""
    before = SUFFIXED.index("{text}")
    ends = {end - before for _, end in rust.encode(SUFFIXED.replace("{text}", text)).offsets}
    heads = [text[:end] for end in sorted({0, len(text)} | ends, reverse=True) if 0 <= end <= len(text)]
    heads = [head for head in heads if len(head) <= 40 * limit]
    return next(row for row in ids(rust, heads, SUFFIXED) if len(row) <= limit)


def test_a_template_that_leaves_no_room_is_refused_with_the_numbers(folders):
    with refused(BackboneError, match=r"--max-length 12 leaves no room beside 2 special tokens and the template"):
        ours(folders["minilm"], 12, "a template of ten words and more of them: {text} so it is")


@pytest.mark.parametrize("template", ["{text}", SUFFIXED])
@pytest.mark.parametrize("kind", [*KINDS, "minilm"])
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.tuples(st.sampled_from(ATOMS), st.integers(1, 900)), min_size=1, max_size=10))
@example(parts=[("the ", 40), ("a", 100_000)])
@example(parts=[("a", 1_000_000)])
@example(parts=[("\n", 5_000), ("model ", 900)])
@example(parts=[("the 7", 500), ("7", 2_000)])
def test_a_long_text_is_cut_first_and_reads_the_same(folders, kind, template, parts):
    text, limit = "the" + "".join(atom * count for atom, count in parts), 24
    tokenizer, reading_whole = (loaded(folders[kind], limit, template, cut) for cut in (True, False))
    given, whole = tokenizer([text]), reading_whole([text])
    assert given.ids == whole.ids
    assert given.truncated.tolist() == whole.truncated.tolist()


@cache
def loaded(folder: Path, limit: int, template: str, cut: bool):
    tokenizer = ours(folder, limit, template)
    if not cut:
        tokenizer._heads = list
    return tokenizer


class Recorded:
    """A tokenizer that keeps count of the characters it is given."""

    def __init__(self, rust: Tokenizer) -> None:
        self._rust, self.characters = rust, 0

    def encode(self, text: str) -> Encoding:
        self.characters += len(text)
        return self._rust.encode(text)

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        self.characters += sum(map(len, texts))
        return self._rust.encode_batch(texts)

    encode_batch_fast = encode_batch

    def __getattr__(self, name: str):
        return getattr(self._rust, name)


@pytest.mark.parametrize("template", ["{text}", SUFFIXED])
@pytest.mark.parametrize("kind", ["minilm", "bytelevel", "unigram", "unsplit"])
def test_of_ten_megabytes_a_few_thousand_characters_are_tokenised(folders, kind, template, pydocs):
    text = "\n\n".join(pydocs.texts("train"))
    text *= 10_000_000 // len(text) + 1
    tokenizer = ours(folders[kind], 256, template)
    recorded = Recorded(tokenizer._rust)
    tokenizer._rust = tokenizer._heads._rust = recorded
    assert len(tokenizer([text]).ids[0]) <= 256
    assert 1_000 < recorded.characters < 60_000
