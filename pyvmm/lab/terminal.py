"""The user's terminal while a command runs on a terminal in the lab: raw, and restored whatever happens."""

from __future__ import annotations

import contextlib
import os
import termios
import tty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def size(descriptor: int) -> tuple[int, int]:
    """(rows, columns) of the terminal; (24, 80) if it does not say."""
    try:
        columns, rows = os.get_terminal_size(descriptor)
    except OSError:
        return 24, 80
    return (rows, columns) if rows and columns else (24, 80)


def both(stdin: int | None, stdout: int) -> bool:
    """Whether input and output are terminals."""
    return stdin is not None and os.isatty(stdin) and os.isatty(stdout)


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Raw mode: every key goes to the lab's terminal, which does the echoing and the Ctrl-C."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
