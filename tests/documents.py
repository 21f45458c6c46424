"""The Markdown of this repository, taken apart for tests: files -> sections, tables, command lines, links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "docs", "benchmarks", "cache")
DOCUMENTS = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#]+)")


def sections(document: str) -> dict[str, str]:
    """Return what stands under each heading of the second level, by heading; what stands before them under ''."""
    first, *others = re.split(r"^## ", (ROOT / document).read_text(), flags=re.MULTILINE)
    return {"": first} | {title: body for title, _, body in (part.partition("\n") for part in others)}


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    """Yield the tables of a text, each as its rows by heading."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        headings, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines())
        yield [dict(zip(headings, row, strict=True)) for row in rows]


def words(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return CODE.findall(cell)


def blocks(document: Path, language: str = "") -> list[str]:
    """Return the fenced blocks in a language."""
    return [block for found, block in FENCED.findall(document.read_text()) if found == language]


def command_lines(document: Path, program: str) -> list[list[str]]:
    """Return the words after a program's name, of each line of a fenced block that begins with it or pipes into it."""
    starts = re.compile(rf"^(?:[^|\n]*\| )?(?:\.venv/bin/)?{program} (.+)$", re.MULTILINE)
    return [shlex.split(line, comments=True) for block in blocks(document) for line in starts.findall(block)]


def mentions(document: Path, program: str) -> list[list[str]]:
    """Return the words after a program's name in text between backticks."""
    prose = FENCED.sub("", document.read_text())
    return [span.split()[1:] for span in CODE.findall(prose) if span.split()[:1] == [program] and " " in span]
