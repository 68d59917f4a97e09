"""A TOML file (https://toml.io/en/v1.0.0) and where its keys stand, for complaints that say file and line.

Python's tomllib tells no lines: tables and keys are found by how a line begins.
"""

from __future__ import annotations

import os
import re
import tomllib

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class TomlText:
    """What the file at ``path`` says.

    :raises UsageError: it cannot be read, which has the hint ``wanted``, or is no TOML, of which ``example`` is some
    """

    def __init__(self, path: str, wanted: str, example: str) -> None:
        self.path = path
        self.folder = os.path.dirname(os.path.abspath(path))
        #: The names of its tables, each as often as it is written ([[name]]), in order; without tables in tables.
        self.headers: list[str] = []
        self._lines: dict[tuple[str, int, str], int] = {}  # (table or "", its number, key or ""): line
        try:
            with open(path, "rb") as stream:
                text = stream.read().decode()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", wanted) from None
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not text in UTF-8", wanted) from None
        try:
            self.tables: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise self._syntax(text, str(error), example) from None
        self._find_lines(text)

    def _syntax(self, text: str, message: str, example: str) -> UsageError:
        found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
        line = int(found[1]) if found and found[1] else max(1, len(text.splitlines()))
        words = message[: found.start()] if found else message
        return UsageError(f"{self.path}:{line}: {words[:1].lower()}{words[1:]}", f"it is TOML: {example}")

    def _find_lines(self, text: str) -> None:
        table, number = "", 0
        for line, words in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*\[\[?\s*\"?([\w-]+)\"?\s*(?:\.\s*\"?([\w-]+)\"?\s*)?\]", words):
                table, within = header[1], header[2] or ""
                number = self.headers.count(table)
                if within:
                    number = max(0, number - 1)
                else:
                    self.headers.append(table)
                self._lines.setdefault((table, number, within), line)
                self._lines.setdefault(("", 0, table), line)
            elif key := re.match(r"\s*(?:\"([^\"]*)\"|([\w-]+))\s*[=.]", words):
                self._lines.setdefault((table, number, key[1] or key[2] or ""), line)

    def where(self, table: str, number: int, name: str) -> str:
        """``file:line: `` of the key ``name`` in the ``number``-th ``table`` ("": the top), or else of the table."""
        for key in ((table, number, name), (table, number, ""), ("", 0, table)):
            if key in self._lines:
                return f"{self.path}:{self._lines[key]}: "
        return f"{self.path}: "

    def fail(self, table: str, number: int, name: str, message: str, hint: str) -> NoReturn:
        """Raise a UsageError that says where, as :meth:`where` does."""
        raise UsageError(self.where(table, number, name) + message, hint)

    def arrays(self, name: str) -> list[dict[str, Any]]:
        """The tables of the array ``name``, none if it is not there.  UsageError for what is no array of tables."""
        tables = self.tables.get(name, [])
        if type(tables) is not list or not all(type(table) is dict for table in tables):
            message = f"{name} is {shown(tables)}, not an array of tables"
            self.fail("", 0, name, message, f"write [[{name}]], and its keys below")
        return tables


def shown(value: object) -> str:
    """A value as complaints show it."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "an array of tables"
    return repr(value)
