"""What commands say on standard error, and how they refuse what they can't do."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.text import Text

USAGE = 2
"""Exit code for a mistake in what was asked, or in the environment."""
# Names of subjects and folders may hold brackets: nothing that is printed is markup.
_err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def warn(text: str) -> None:
    """Print what a person should know, and go on."""
    _err.print(Text(text, style="yellow"))


def usage(message: str) -> typer.Exit:
    """Print an error, line by line, and return what ends the command with `USAGE`."""
    for line in message.splitlines() or [""]:
        _err.print(Text.assemble(("error: ", "bold red"), line))
    return typer.Exit(USAGE)
