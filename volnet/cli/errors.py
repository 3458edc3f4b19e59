"""What the user gets for bad input: one line on stderr and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from volnet.report.staging import OutputFolderError

BAD_INPUT = 2


@contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """Turn errors about the user's files into a line that names the file and the reason.

    Anything else is a fault of volnet's and keeps its traceback.

    Args:
        others: more exceptions whose message names a file and what is wrong with it.

    Raises:
        typer.Exit: with code 2, in place of `InvalidScanError`, `OutputFolderError`, `OSError` and `others`.
    """
    # The data package loads every reader, which `volnet --help` and `volnet info` can do without.
    from volnet.data.errors import InvalidScanError

    expected: tuple[type[Exception], ...] = (InvalidScanError, OutputFolderError, *others)
    try:
        yield
    except expected as error:
        message = str(error)
    except OSError as error:
        named = error.filename is not None and error.strerror
        message = f"{error.filename}: {error.strerror}" if named else str(error)
    else:
        return
    typer.echo(f"volnet: error: {' '.join(message.split())}", err=True)
    raise typer.Exit(BAD_INPUT)
