"""argparse, made to fail like everything else here: one line, a hint, exit code 125."""

from __future__ import annotations

import argparse

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors and whose options cannot be abbreviated."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with argparse's message."""
        raise UsageError(message, f"{self.prog} --help lists the options")
