"""The command line as a whole: its help, its version, and the object that commands are added to."""

from typing import Annotated

import typer

from llmembed import __version__
from llmembed.printable import print_line

app = typer.Typer(
    help="Run a frozen language model once over a data set, then fit classifiers from disk in seconds.",
    epilog="Exit codes: 0 done, 1 a fault of llmembed, or engines that differ (check-parity), 2 usage, 3 data set, "
    "4 backbone, 5 cache, 6 classifier, 130 stopped (Ctrl-C, SIGTERM), 141 nobody reads stdout.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Run a frozen language model once over a data set, then fit classifiers from disk in seconds."""
    if show:
        print_line(__version__)
        raise typer.Exit
