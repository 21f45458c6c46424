"""Small tokenizers of the kinds that models have, trained on real texts and saved as a model's folder holds them."""

from pathlib import Path
from types import SimpleNamespace

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llmembed.backbones import BackboneSpec
from llmembed.backbones.tokenizer import Tokenizer as OurTokenizer

SPACE = "▁"
KINDS = ("wordpiece", "bytelevel", "digits", "unigram", "unsplit", "spaceless")


def byte_level(texts: list[str], pattern: str | None = None) -> Tokenizer:
    """Make a byte-level BPE as GPT-2 has it, or with a pattern of its own, as Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, tokenizer.pre_tokenizer])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<pad>", "<|user|>", "<|end|>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wordpiece(texts: list[str]) -> Tokenizer:
    """Make a WordPiece as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=700, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def unigram(texts: list[str]) -> Tokenizer:
    """Make a Unigram as XLM-R has it, whose vocabulary holds the special tokens with the score 0."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=special, unk_token="<unk>", initial_alphabet=list("<>/|[]")
    )
    tokenizer.train_from_iterator(texts[:200], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def unsplit(texts: list[str]) -> Tokenizer:
    """Make a BPE as Llama 2 has it: the text is one word, spaces are ordinary characters, bytes the last resort."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "[INST]", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, special_tokens=special))
    model = trained.model
    model.unk_token, model.fuse_unk, model.byte_fallback = "<unk>", True, True
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(special[:4])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def spaceless(texts: list[str]) -> Tokenizer:
    """Make a BPE without a pre-tokenizer whose tokens go on over spaces: no place in a text is sure."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    lines = [text[:200] for text in texts[:50]]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"]))
    return tokenizer


def make(kind: str, texts: list[str]) -> Tokenizer:
    """Make a tokenizer of a kind."""
    if kind == "digits":
        # Groups of three from the right: a look-ahead over the whole run of digits.
        return byte_level(texts, r"\d{1,3}(?=(?:\d{3})*(?:\D|$))|[^\r\n\p{L}\d]?\p{L}+| ?[^\s\p{L}\d]+[\r\n]*|\s+")
    makers = {"wordpiece": wordpiece, "bytelevel": byte_level, "unigram": unigram}
    return (makers | {"unsplit": unsplit, "spaceless": spaceless})[kind](texts)


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """Save a tokenizer where a model's would lie."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def ours(folder: Path, max_length: int, template: str = "{text}") -> OurTokenizer:
    """Load a saved tokenizer as the engines do."""
    spec = BackboneSpec(
        model="tiny",
        weights="",
        tokenizer="",
        depth=1,
        layers=(1,),
        dim=1,
        pooling="mean",
        max_length=max_length,
        template=template,
    )
    return OurTokenizer(spec, SimpleNamespace(folder=folder))
