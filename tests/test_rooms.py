"""The rooms of the package: who may import whom, where outside libraries live, and that a name stands for one thing."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import typer
from documents import ROOT, blocks

from llmembed.cli import app
from llmembed.cli.remedies import OPTIONS

PACKAGE = ROOT / "llmembed"
# The rooms in which an outside library may be imported.
HOMES = {
    "lightgbm": {"heads/"},
    "matplotlib": {"reports/"},
    "polars": {"datasets/", "features/", "prediction.py", "cli/"},
    "pynvml": {"devices.py"},
    "safetensors": {"backbones/", "cache/", "heads/", "saved.py", "features/"},
    "scipy": {"heads/", "uncertainty/"},
    "threadpoolctl": {"parallel.py"},
    "tokenizers": {"backbones/"},
    "transformers": {"backbones/"},
    "typer": {"cli/"},
    "vllm": {"backbones/"},
}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) == 1 else f"{parts[0]}/"


@cache
def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.Module) -> set[str]:
    """Return the modules that a module imports, wherever it does, but for those that only its types need."""
    typed = {id(node) for part in ast.walk(tree) if _is_for_types(part) for node in ast.walk(part)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def public_names(tree: ast.Module) -> set[str]:
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in defined if not name.startswith("_")}


def test_a_room_imports_only_from_rooms_above_it_on_the_map():
    text = next(block for block in blocks(ROOT / "README.md") if block.startswith("choices"))
    place = {line.split()[0]: number for number, line in enumerate(text.splitlines())}
    upward = []
    for path, tree in sources().items():
        for name in imports(tree):
            first = name.split(".")[1] if name.startswith("llmembed.") else ""
            room = f"{first}/" if (PACKAGE / first).is_dir() else f"{first}.py"
            # What stands in the package itself, such as its version, anybody may use.
            if first and room in place and path.name != "__init__.py" and place[room] > place[room_of(path)]:
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_has_its_homes(library):
    users = {
        room_of(path) for path, tree in sources().items() if library in {name.split(".")[0] for name in imports(tree)}
    }
    assert users, f"{library} is not used any more"
    assert users <= HOMES[library]


def test_a_public_name_stands_for_one_thing():
    where = defaultdict(set)
    for path, tree in sources().items():
        # The commands have the names of the functions that they call.
        for name in public_names(tree) if room_of(path) != "cli/" else ():
            where[name].add(str(path.relative_to(PACKAGE)))
    twice = {name: sorted(places) for name, places in where.items() if len(places) > 1}
    assert twice == {}


def said(tree: ast.Module) -> list[str]:
    """Return the texts of a module that are no docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def test_options_and_command_lines_are_named_by_the_command_line_alone():
    named = [
        (str(path.relative_to(PACKAGE)), found)
        for path, tree in sources().items()
        if room_of(path) != "cli/"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for found in re.findall(r"(?<![\w-])--[a-z]+|llmembed (?:extract|train|predict|compare|evaluate)", node.value)
    ]
    assert named == []


def test_every_argument_that_a_sentence_names_has_an_option():
    named = {
        name
        for path, tree in sources().items()
        if room_of(path) not in ("cli/", "backbones/")
        for text in said(tree)
        for name in re.findall(r"`([a-z_]+)[=`]", text)
    }
    command = typer.main.get_command(app)
    options = {option for each in command.commands.values() for given in each.params for option in given.opts}
    assert named and named <= OPTIONS.keys()
    assert set(OPTIONS.values()) <= options
