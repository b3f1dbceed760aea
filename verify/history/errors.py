"""What goes wrong with a history; imports no database library, which a run without a history does without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

LIBRARIES = ("sqlalchemy", "alembic")
"""What a history of any kind needs."""


class HistoryError(RuntimeError):
    """A history that can't be opened, read or written; says which and why."""


@contextlib.contextmanager
def libraries_needed(where: str) -> Iterator[None]:
    """Say what to install if what happens inside finds a library missing.

    Parameters
    ----------
    where : str
        The history as it was asked for; a password in it is not repeated.

    Raises
    ------
    HistoryError
        One of `LIBRARIES` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in LIBRARIES:
            raise
        scheme, separator, _ = where.partition("://")
        shown = repr(f"{scheme}://…" if separator else where)
        text = f"history is {shown}, which needs {missing}, and that is not installed; allowed with it: "
        raise HistoryError(f"{text}pip install {' '.join(LIBRARIES)}; a run can do without: --history none") from error
