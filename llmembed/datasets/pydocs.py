"""The built-in data set: docstrings of the installed scientific packages, labelled by package.

In: the source files of packages that come with this project's own dependencies, parsed, never imported.
Out: one table with text, label and split, the same for the same package versions, with no download.
Names of packages are masked in every text: the task is what a text is about. Knows no file of its own.
"""

import ast
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path

import polars as pl

from llmembed.errors import DatasetError

BUILDER_VERSION = 1
LABELS_TO_DISTRIBUTIONS = {
    "networkx": "networkx",
    "numpy": "numpy",
    "polars": "polars",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
MAX_TEXTS_PER_LABEL = 1500
# Parsing takes most of the time, so reading stops here: a few more than are kept, because some stand under two labels.
ENOUGH_TEXTS_PER_LABEL = 1600
MIN_CHARACTERS, MAX_CHARACTERS, MAX_WORDS = 40, 2000, 100
# A text with a larger share of other characters is a table, a formula or code.
MAX_SYMBOL_SHARE = 0.2
SYMBOL = re.compile("[^A-Za-z ]")
# Texts that begin with the same words are near copies (a method of Series and of Expr): they would leak over the split.
OPENING_WORDS = 10
TEST_EVERY = 5
MASK = "library"

# Tests are not documentation, and a vendored copy would carry the wrong label.
SKIPPED_NAME = re.compile(r"_?tests?(ing)?(_\w+)?|conftest|_?vendor(ed)?|_?externals?|array_api_\w+|_antlr|deprecated")
SKIPPED_FOLDERS = (
    "numpy/f2py",  # many module docstrings are copyright notices
    "numpy/distutils",  # only in the wheels for Python < 3.12: the set would depend on the Python version
    "scipy/_lib",  # mostly vendored
    "sympy/parsing/autolev",  # generated
    "torch/_",  # the private folders: half of the source, and torch/_numpy documents what numpy does
    "transformers/models",  # 45 MB to parse, much of it copied from model to model
)

# The order matters: whole sections and blocks of code go first, while indentation and backticks still show them.
REMOVED_BLOCKS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^[ ]*(Examples?|EXAMPLES?|See [Aa]lso|References?|Bibliography)[ ]*(::?[ ]*$|\n[ ]*[-=~*]{3,})[\s\S]*",
        r"^[ ]*```[\s\S]*?(```|\Z)",
        r"^[ ]*>>>(?:.*\S.*(\n|\Z))+",
        r"^([ ]*)\.\. .*(?:\n(?:\1[ ]+\S.*|[ \t]*$))*",
        r"(?<=:):[ ]*$(?:\n[ \t]*$)*(?:\n([ ]+)\S.*)(?:\n(?:\1.*|[ \t]*$))*",
        r"^[ ]*(from[ ]+[\w.]+[ ]+import\b.*|import[ ]+[\w.]+([ ]+as[ ]+\w+)?[ ]*)$",
        r"^[ ]*((Other )?Parameters?|(Keyword )?Arg(ument)?s|Attributes|Methods|Returns?|Yields?|Raises|Notes?)[ ]*:*$",
        r"^[ ]*(Description|Explanation|Inputs?|Outputs?|Shape|Warn(ing)?s?)[ ]*:*$",
        r"^[ ]*[-=~*^#\"+_]{3,}[ ]*$",
    )
)
MARKUP = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?::[a-z]+)*:?`([^`<]+?)\s*<[^`>]*>`_*", r"\1"),
        (r"\[([^\[\]]+)\]\([^()\s]*\)", r"\1"),
        (r"(https?://|ftp://|www\.|doi:)\S+", ""),
        (r"(?::[a-z]+)+:`~?([^`]*)`", r"\1"),
        (r"\[?`+~?([^`]*)`+(\]|_+)?", r"\1"),
        (r"\*\*([^*\n]+)\*\*", r"\1"),
        (r"(?<![\w*])\*(\w[^*\n]*)\*(?!\w)", r"\1"),
        (r"\[\w+\]_|\[\d+\]|</?Tip[^>]*>|[\u2500-\u259f]+|`", ""),
        (r"::(?=\s|$)", ":"),
        # Set phrases of one package's documentation, and names of texts that are filled in on import.
        (r"(Read more in|For more information,? see)\s+the\s+User\s+Guide\.?|\bsphx_glr_\w+(\.py)?|\{[a-z_]{3,}\}", ""),
    )
)
# The long names stand for nothing else, so they are masked inside other names too (`to_numpy`, `PyTorchModel`). The
# short ones need lower case or a dot behind them: NP-hard is about graphs. The look-ahead makes it three times faster.
PACKAGE_NAME = re.compile(
    r"(?=[HhJjLlNnPpSsTt])(?:"
    r"(?i:(py)?torch|(?<![a-z])transformers(?![a-z])|hugging[ _-]?face|(?<![a-z])hf(?![a-z])|numpy|scipy|sklearn"
    r"|scikits?([ _-]?learn)?|polars|pyarrow|pandas|pydantic|lightgbm|networkx|sympy|sympif[a-z]*)"
    r"|\b(np|nx|jnp)\b|\b(pl|pa|pd|sp)(?=\.[A-Za-z_]))"
)


def build_pydocs() -> pl.DataFrame:
    """Build the table of the data set: one row per text, columns text, label and split, all String.

    The order is that of a hash of the text, so any slice is a random sample. Within each label every fifth text is
    "test", the rest "train". Raises DatasetError when one of the packages is not installed.
    """
    texts_by_label = {label: _read_texts(label) for label in LABELS_TO_DISTRIBUTIONS}
    labels_per_opening = Counter(opening for texts in texts_by_label.values() for opening in texts)
    rows = []
    for label, texts in texts_by_label.items():
        rows += _split(label, [text for opening, text in texts.items() if labels_per_opening[opening] == 1])
    schema = {"text": pl.String, "label": pl.String, "split": pl.String}
    return pl.DataFrame(sorted(rows, key=lambda row: _digest(row[0])), schema=schema, orient="row")


def pydocs_version() -> str:
    """Return 12 hex digits that change when a package's version or this builder does: a name to store the table under.

    Raises DatasetError when one of the packages is not installed.
    """
    parts = [f"builder {BUILDER_VERSION}"]
    for label, distribution in LABELS_TO_DISTRIBUTIONS.items():
        try:
            parts.append(f"{label} {version(distribution)}")
        except PackageNotFoundError:
            raise _missing(label) from None
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()


def _missing(label: str) -> DatasetError:
    return DatasetError(
        f"The data set pydocs reads the docstrings of {label}, which is not installed here. "
        f"Run `pip install {LABELS_TO_DISTRIBUTIONS[label]}`."
    )


def _read_texts(label: str) -> dict[str, str]:
    """Read the cleaned texts of one package, keyed by their opening, until there are ENOUGH_TEXTS_PER_LABEL."""
    texts: dict[str, str] = {}
    for path in _source_files(label):
        for docstring in _docstrings(path):
            if len(docstring) >= MIN_CHARACTERS and _is_prose(text := _clean(docstring)):
                texts.setdefault(_opening(text), text)
        if len(texts) >= ENOUGH_TEXTS_PER_LABEL:
            break
    return texts


def _source_files(label: str) -> list[Path]:
    """List the Python files of one package without tests and vendored code, in the order of a hash of their path."""
    spec = find_spec(label)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(label)
    root = Path(spec.submodule_search_locations[0])
    paths = []
    for path in root.rglob("*.py"):
        names = path.relative_to(root).with_suffix("").parts
        folder = "/".join((label, *names[:-1]))
        if not folder.startswith(SKIPPED_FOLDERS) and not any(map(SKIPPED_NAME.fullmatch, names)):
            paths.append(path)
    return sorted(paths, key=lambda path: _digest(path.relative_to(root).as_posix()))


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a file's module, classes, functions and methods, and those set by a call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        nodes: list[ast.AST] = [ast.parse(path.read_bytes())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node, clean=False) or ""
        if isinstance(node, ast.Module | ast.ClassDef | ast.If | ast.Try):
            nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _docstrings_of_call(node.value)


def _docstrings_of_call(call: ast.Call) -> Iterator[str]:
    """Yield the strings in `add_newdoc(...)` and `add_docstr(...)`, which document what is compiled."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if "add_newdoc" in name or "add_docstr" in name:
        for node in ast.walk(call):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _clean(docstring: str) -> str:
    """Turn a docstring into a line of prose: no code, no markup, no package name, at most MAX_WORDS words."""
    text = cleandoc(docstring)
    for pattern in REMOVED_BLOCKS:
        text = pattern.sub("", text)
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return PACKAGE_NAME.sub(MASK, " ".join(text.split()[:MAX_WORDS]))


def _is_prose(text: str) -> bool:
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
        return False
    # "%(" is a place for text that is filled in when the package is imported.
    return "%(" not in text and len(SYMBOL.findall(text)) <= MAX_SYMBOL_SHARE * len(text)


def _opening(text: str) -> str:
    return " ".join(re.findall("[a-z]+", text.lower())[:OPENING_WORDS])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _split(label: str, texts: list[str]) -> list[tuple[str, str, str]]:
    """Choose at most MAX_TEXTS_PER_LABEL texts in the order of their hash; every fifth is a test text."""
    chosen = sorted(texts, key=_digest)[:MAX_TEXTS_PER_LABEL]
    return [(text, label, "train" if rank % TEST_EVERY else "test") for rank, text in enumerate(chosen)]
