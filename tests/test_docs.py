"""What the documents say of commands, options, JSON, exit codes and modules is what there is."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from inspect import unwrap
from itertools import chain, pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from documents import DOCUMENTS, LINK, ROOT, blocks, command_lines, mentions, sections, tables, words

from llmembed import errors
from llmembed.backbones.parity import LayerParity, Parity
from llmembed.cli import app, ending
from llmembed.datasets.jobs import Hub, Job
from llmembed.features.fusion import Fusion
from llmembed.heads import HEADS

COMMANDS = typer.main.get_command(app).commands
HINTS = {
    each.name or each.callback.__name__.replace("_", "-"): get_type_hints(unwrap(each.callback))
    for each in app.registered_commands
}
each_command = pytest.mark.parametrize("name", list(COMMANDS))
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def options(name: str) -> dict[str, Any]:
    """Return the options of a command by name, without `--help`."""
    found = [each for each in COMMANDS[name].params if each.param_type_name == "option"]
    return {each.opts[0]: each for each in found if each.opts[0] != "--help"}


def documented(name: str) -> dict[str, dict[str, str]]:
    """Return the rows of docs/commands.md on the options of a command: of its section, and of those that it shares."""
    everywhere = sections("docs/commands.md")
    shared = [row for text in everywhere.values() for table in tables(text) for row in table if "commands" in row]
    own = [row for table in tables(everywhere[name]) for row in table if "commands" not in row]
    rows = [*own, *(row for row in shared if name in words(row["commands"]))]
    assert len({row["option"] for row in rows}) == len(rows)
    return {words(row["option"])[0]: row for row in rows}


def choices(hint: Any) -> Iterator[str]:
    """Yield the values of the Literals in a type."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        yield from chain.from_iterable(map(choices, get_args(hint)))


def keys(section: str) -> set[str]:
    """Return the keys that a section of docs/json.md names."""
    return {key for row in next(tables(sections("docs/json.md")[section])) for key in words(row["key"])}


@each_command
def test_every_option_is_documented_and_no_other(name):
    assert documented(name).keys() == options(name).keys()


@each_command
def test_the_documented_defaults_and_choices_are_those_of_the_command(name):
    for option, row in documented(name).items():
        default = options(name)[option].default
        if default is not None and default is not False:
            assert words(row["default"]) == [str(default)], option
        hint = HINTS[name][options(name)[option].name]
        assert set(choices(hint)) <= {*words(row["meaning"]), *words(row["default"])}, option


def test_every_fusion_and_head_is_documented():
    found = list(tables((ROOT / "docs/training.md").read_text()))
    assert sorted(word for row in found[0] for word in words(row["fusion"])) == sorted(get_args(Fusion))
    assert sorted(word for row in found[1] for word in words(row["head"])) == sorted(HEADS)


def test_every_key_of_a_job_file_is_documented():
    rows = next(tables(sections("docs/datasets.md")["Job files"]))
    assert {words(row["key"])[0] for row in rows} == Job.model_fields.keys()
    hub = next(row["meaning"] for row in rows if words(row["key"]) == ["hub"])
    assert words(hub) == list(Hub.model_fields)


@each_document
def test_every_command_line_can_be_parsed(document):
    for name, *rest in command_lines(document, "llmembed"):
        COMMANDS[name].make_context(name, [*rest])
        for option, names in {"--fusion": get_args(Fusion), "--head": HEADS}.items():
            given = [value for before, value in pairwise(rest) if before == option]
            assert {each for value in given for each in value.split(",")} <= {*names}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target, *_ in (*command_lines(document, "make"), *mentions(document, "make")):
        assert target in targets


@each_document
def test_options_in_the_prose_are_those_of_the_command(document):
    for name, *rest in mentions(document, "llmembed"):
        if name in COMMANDS:
            assert {word for word in rest if word.startswith("--")} <= {*options(name), "--help"}


def test_the_command_lines_are_found():
    found = [line for document in DOCUMENTS for line in command_lines(document, "llmembed")]
    assert {name for name, *_ in found} == COMMANDS.keys()
    assert ["predict", "models/…", "-"] in found and ["train"] in found and ["extract", "pydocs"] in found


@each_document
def test_links_lead_to_files_that_are_there(document):
    missing = [link for link in LINK.findall(document.read_text()) if not (document.parent / link).exists()]
    assert [link for link in missing if "://" not in link] == []


def test_the_map_of_the_package_is_the_tree():
    text = next(block for block in blocks(ROOT / "README.md") if block.startswith("choices"))
    listed = [line.split()[0] for line in text.splitlines()]
    tree = [
        path.name + "/" * path.is_dir()
        for path in (ROOT / "llmembed").iterdir()
        if path.name[:2] != "__" and path.name != "py.typed"
    ]
    assert sorted(listed) == sorted(tree)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_every_error_stands_beside_its_exit_code():
    rows = next(tables((ROOT / "docs/errors.md").read_text()))
    named = {error: int(row["code"]) for row in rows for error in words(row["error"])}
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and each.__module__ == errors.__name__]
    assert named == {each.__name__: each.exit_code for each in kinds if each is not errors.LLMEmbedError}
    codes = {int(row["code"]) for row in rows}
    assert codes == {0, errors.LLMEmbedError.exit_code, *named.values(), ending.STOPPED, ending.UNREAD}


def test_the_python_of_the_documents_runs(pydocs_cache, capsys):
    # What cache/README.md has is run by tests/cache/test_cache.py.
    # What the README has, by tests/test_public.py.
    documents = [document for document in DOCUMENTS if document.parent.name == "docs"]
    examples = [block for document in documents for block in blocks(document, "python")]
    assert examples
    for example in examples:
        assert '"cache"' in example and 'load_dataset("pydocs")' in example
        program = example.replace('"cache"', repr(str(pydocs_cache)))
        exec(program.replace('load_dataset("pydocs")', 'load_dataset("pydocs", limit=700)'), {})
        scores = [float(word) for word in capsys.readouterr().out.strip("[]\n ").split()]
        assert len(scores) == 3 and min(scores) > 0.6


@pytest.fixture(scope="module")
def run(pydocs, pydocs_cache, tmp_path_factory):
    """Return a function that runs a command with `--json` in a folder with a cache of pydocs, also named mr."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(pydocs_cache / "pydocs", folder / "cache" / "pydocs")
    shutil.copytree(pydocs_cache / "pydocs", folder / "cache" / "mr")
    for split in ("train", "test"):
        (folder / "sets" / "mr").mkdir(parents=True, exist_ok=True)
        pydocs.table.filter(split=split).select("text", "label").write_parquet(folder / "sets/mr" / f"{split}.parquet")

    def call(line: str) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLMEMBED_DATA", str(folder / "sets"))
            patch.setenv("PYTHONPATH", str(ROOT))
            program = [sys.executable, "-c", "from llmembed.cli import main; main()", *line.split(), "--json"]
            done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    call("train --head lda --fusion mean --out models/m")
    return call


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("extract", "extract pydocs --limit 700"),
        ("extract --dry-run", "extract pydocs --limit 700 --dry-run"),
        ("train", "train --head lda --fusion last"),
        ("compare", "compare --head lda --fusion mean --folds 2 --out models/c"),
        ("reproduce", "reproduce --dataset mr --head lda --fusion mean"),
        ("predict", "predict models/m --text graph"),
        ("evaluate", "evaluate models/m pydocs --limit 700"),
    ],
)
def test_the_documented_keys_are_those_that_are_printed(section, line, run):
    assert keys(section) == run(line).keys()


def test_the_documented_keys_of_parity_are_those_of_its_report():
    agreement = LayerParity(layer=0, cosine=1.0, relative_error=0.0)
    parity = Parity(rows=1, tokens=2, layers=(agreement,), tolerance=0.1, passed=True, engines=({}, {}))
    assert keys("check-parity") == asdict(parity).keys()
