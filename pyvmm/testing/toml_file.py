"""A test file's tables by the keys they may have: every complaint says file, line, and the name that was meant."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pyvmm.errors import UsageError
from pyvmm.machine.spec import parse_size
from pyvmm.machine.toml_text import TomlText, shown
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


class TomlFile(TomlText):
    """A file whose tables are read by the keys that they may have."""

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
                table, number, name, f"{label} is {shown(value)}, not {_WORDS[kind]}", f"correct {name}"
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
