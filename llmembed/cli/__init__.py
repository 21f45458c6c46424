"""The command line: parse, call one function of a stage, print. Heavy modules are imported inside the commands.

Results go to stdout (`--json`: one object), everything else to stderr.
"""

import sys

import typer

from llmembed.cli.app import app
from llmembed.cli.ending import run

# Each adds its commands, in the order of the help.
# isort: off
from llmembed.cli import stage1, stage2, experiments, classifiers  # noqa: F401
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; an error that the user can act on becomes one line and an exit code."""
    sys.exit(run(_invoke))


def _invoke() -> None:
    # Not app(): it would end the process in its own ways on Ctrl-C, a closed pipe and a wrong option.
    command = typer.main.get_command(app)
    with command.make_context("llmembed", sys.argv[1:]) as context:
        command.invoke(context)
