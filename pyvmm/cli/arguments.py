"""argparse, made to fail like everything else here: one line, a hint, exit code 125."""

from __future__ import annotations

import argparse
import os

from pyvmm.errors import UsageError
from pyvmm.text import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Help in lines of at most 100 characters.  Given no width, argparse would import shutil, and with it every
    compression library, each time an option is added: 4 ms of a boot."""
    columns = os.environ.get("COLUMNS", "")
    return argparse.HelpFormatter(prog, width=min(int(columns) if columns.isdigit() else 100, 100))


# argparse looks its own words up in gettext's catalogues, which it has none of, and imports locale for that.
argparse._ = lambda text: text  # type: ignore[attr-defined]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors and whose options cannot be abbreviated.

    ``others`` are options that it has too, but was not told of: the nearest to a misspelt one may be among them.
    ``advice`` is added to the hint about an option that it does not have.
    """

    others: tuple[str, ...] = ()
    advice = ""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=_formatter)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message, and the option that is meant if one is near."""
        hint = f"{self.prog} --help lists the options"
        if message.startswith("unrecognized arguments: -"):
            hint += self.advice
            word = message.split()[2].partition("=")[0]
            near = nearest(word, (*self._option_string_actions, *self.others), 0.7)
            if near and near != word:
                message += f"; perhaps you mean {near}"
        raise UsageError(message, hint)


def whole_number(text: str, option: str) -> int:
    """The number, not negative, that ``option`` is given.  UsageError."""
    if not text.isdecimal() or len(text) > 9:
        raise UsageError(f"{option} {text}: not a whole number", f"give {option} one that is not negative")
    return int(text)


def seconds(text: str, option: str) -> float:
    """The time that ``option`` is given.  UsageError."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 < found < 1e9:
        raise UsageError(f"{option} {text}: not a number of seconds", "give a number above 0")
    return found
