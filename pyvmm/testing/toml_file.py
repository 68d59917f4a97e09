"""A TOML file read for its user: every complaint is one line that says file, line, and the name that was meant.

TOML 1.0.0 (https://toml.io/en/v1.0.0), as Python reads it; where keys and tables stand is found by their lines.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any, NoReturn

from pyvmm.errors import UsageError
from pyvmm.machine.spec import parse_size
from pyvmm.text import perhaps

_WORDS = {
    "text": "text",
    "path": "text, a path",
    "size": 'a size, as "512M" or a whole number of MiB',
    "int": "a whole number",
    "number": "a number of seconds above 0",
    "flag": "true or false",
    "texts": "a text or a list of texts",
    "dirs": "a text or a list of texts",
    "command": "text for the guest's shell, or a list of a program and its arguments",
    "table": "a table of texts",
    "root": "text, a path or initramfs",
}


class Key:
    """A key: what ``kind`` of value it has (those of ``_WORDS``), and what it means."""

    __slots__ = ("help", "kind", "required")

    def __init__(self, kind: str, help: str, *, required: bool = False) -> None:
        self.kind = kind
        self.help = help
        self.required = required


class TomlFile:
    """The tables of the file at ``path``, and where its keys stand; UsageError for a file that cannot be read."""

    def __init__(self, path: str, example: str) -> None:
        self.path = path
        self.folder = os.path.dirname(os.path.abspath(path))
        try:
            with open(path, "rb") as stream:
                text = stream.read().decode()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", "name a test file") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not text in UTF-8", "name a TOML file") from None
        try:
            self.tables: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise self._syntax(text, str(error), example) from None
        self._lines: dict[tuple[str, int, str], int] = {}  # (table or "", its number, key or ""): line
        self._find_lines(text)

    def _syntax(self, text: str, message: str, example: str) -> UsageError:
        found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
        line = int(found[1]) if found and found[1] else max(1, len(text.splitlines()))
        words = message[: found.start()] if found else message
        return UsageError(f"{self.path}:{line}: {words[:1].lower()}{words[1:]}", f"it is TOML: {example}")

    def _find_lines(self, text: str) -> None:
        seen: dict[str, int] = {}
        table, number = "", 0
        for line, words in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*(\[\[?)\s*\"?([\w-]+)\"?\s*(?:\.\s*\"?([\w-]+)\"?\s*)?\]", words):
                table = header[2]
                if not header[3]:
                    number = seen.get(table, 0)
                    seen[table] = number + 1
                else:
                    number = max(0, seen.get(table, 1) - 1)
                self._lines.setdefault((table, number, header[3] or ""), line)
                self._lines.setdefault(("", 0, table), line)
            elif key := re.match(r"\s*(?:\"([^\"]*)\"|([\w-]+))\s*[=.]", words):
                self._lines.setdefault((table, number, key[1] or key[2] or ""), line)

    def fail(self, table: str, number: int, name: str, message: str, hint: str) -> NoReturn:
        """Raise a UsageError that says where: at the key ``name`` of the ``number``-th ``table``, or at the table."""
        raise UsageError(self.where(table, number, name) + message, hint)

    def where(self, table: str, number: int, name: str) -> str:
        """``file:line: ``, for what stands at the start of a message."""
        for key in ((table, number, name), (table, number, ""), ("", 0, table)):
            if key in self._lines:
                return f"{self.path}:{self._lines[key]}: "
        return f"{self.path}: "

    def arrays(self, name: str) -> list[dict[str, Any]]:
        """The tables of the array ``name``; empty if there are none."""
        tables = self.tables.get(name, [])
        if type(tables) is not list or not all(type(table) is dict for table in tables):
            message = f"{name} is {_shown(tables)}, not an array of tables"
            self.fail("", 0, name, message, f"write [[{name}]], and its keys below")
        return tables

    def values(
        self,
        table: str,
        number: int,
        given: Mapping[str, Any],
        keys: Mapping[str, Key],
        others: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """The values of one table (``table`` "" is the top of the file), checked; a dash in a key is an underscore.

        A path is made absolute, "texts" become a list.  ``others`` are keys that are read elsewhere.
        """
        found: dict[str, Any] = {}
        what = table or "the file"
        for written, value in given.items():
            name = written.replace("-", "_")
            if written in others:
                continue
            if name not in keys:
                known = (*keys, *others)
                message = f"{table} has no key '{written}'" if table else f"unknown key '{written}'"
                hint = f"{what} has {', '.join(known)}"
                self.fail(table, number, written, message + perhaps(name, known), hint)
            if name in found:
                self.fail(table, number, written, f"{name} is given twice", f"give {name} once")
            found[name] = self._value(table, number, written, keys[name].kind, value)
        for name, key in keys.items():
            if key.required and name not in found:
                self.fail(table, number, "", f"{table} without {name}", f"give {name}: {key.help}")
        return found

    def _value(self, table: str, number: int, name: str, kind: str, value: Any) -> Any:
        texts = type(value) is list and all(type(each) is str and each for each in value) and bool(value)
        fits = {
            "flag": type(value) is bool,
            "int": type(value) is int and value >= 0,
            "number": type(value) in (int, float) and 0 < value < 1e9,
            "size": type(value) in (int, str),
            "texts": value == [] or texts or (type(value) is str and value != ""),
            "dirs": value == [] or texts or (type(value) is str and value != ""),
            "command": texts or (type(value) is str and value.strip() != ""),
            "table": type(value) is dict and all(type(each) in (str, int) for each in value.values()),
            "path": type(value) is str and value != "",
            "root": type(value) is str and value != "",
        }.get(kind, type(value) is str)
        label = f"{table}: {name}" if table else name
        if not fits:
            self.fail(
                table, number, name, f"{label} is {_shown(value)}, not {_WORDS[kind]}", f"correct {name}"
            )
        if kind == "size":
            try:
                return f"{parse_size(str(value)) >> 10}k"
            except UsageError as error:
                self.fail(table, number, name, f"{label}: {error.message}", error.hint)
        if kind == "path" or (kind == "root" and value != "initramfs"):
            return self.absolute(value)
        if kind in ("texts", "dirs"):
            many = [value] if type(value) is str else value
            return [self.absolute(each) for each in many] if kind == "dirs" else many
        if kind == "table":
            return {key: str(each) for key, each in value.items()}
        return value

    def absolute(self, path: str) -> str:
        """A path of the file, which is relative to its directory, as the process can use it."""
        return os.path.normpath(os.path.join(self.folder, os.path.expanduser(path)))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "an array of tables"
    return repr(value)
