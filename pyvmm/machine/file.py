"""A machine in a file: what ``pyvmm boot`` takes on its command line, as TOML (https://toml.io/en/v1.0.0).

    kernel = "bzImage"
    memory = "1G"
    expect = ["login:"]

    [[disk]]
    path = "system.img"
    overlay = "temporary"

Each option has a key of its name, and each attachment a table of an array named like its kind, with the keys of its
``KEYS``.  Paths are relative to the file's directory.  ``pyvmm.machine.schema`` describes it all as a JSON schema.
"""

from __future__ import annotations

import os
import re

from pyvmm.errors import UsageError
from pyvmm.machine.attachments import KINDS, attachment
from pyvmm.machine.spec import PROTOCOLS, parse_size
from pyvmm.machine.toml_text import TomlText, shown
from pyvmm.text import perhaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pyvmm.machine.attachments.base import Attachment, Key


class Setting:
    """A key at the top of the file: ``kind`` is one of text, path, size, int, number, flag, texts."""

    __slots__ = ("choices", "help", "kind", "name")

    def __init__(self, name: str, kind: str, help: str, choices: tuple[str, ...] = ()) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self.choices = choices

    @property
    def dest(self) -> str:
        """The attribute in which argparse keeps the option."""
        return self.name.replace("-", "_")


#: In the order in which they are written.
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("kernel", "path", "a bzImage, arm64 Image, ELF vmlinux, or any ELF file with a PVH note"),
        Setting("cmdline", "text", "kernel command line"),
        Setting("initrd", "path", "initial RAM disk"),
        Setting("memory", "size", "guest RAM, as 512M or 1G; a number is in MiB"),
        Setting("cpus", "int", "vCPUs"),
        Setting("protocol", "text", "boot protocol", PROTOCOLS),
        Setting("timeout", "number", "seconds after which the machine is stopped, with exit code 124"),
        Setting("expect", "texts", "stop with exit code 0 once the console has shown all of them"),
        Setting("verify", "flag", "boot with pyvmm's own init; success only if userspace was reached"),
        Setting("console-log", "path", "write the console to this file too"),
        Setting("result", "path", "write the outcome, times and exit counts to this file as JSON"),
        Setting("control", "path", "make the control socket there"),
        Setting("name", "text", "what pyvmm ps and pyvmm ctl call it"),
        Setting("no-input", "flag", "leave standard input alone"),
        Setting("huge-pages", "flag", "advise the host to back guest RAM with huge pages"),
        Setting("poison", "int", "fill guest RAM with this byte first"),
        Setting(
            "kaslr",
            "flag",
            "true: give a vmlinux a random virtual address; false: leave it where it was linked",
        ),
        Setting("map", "flag", "map kernel and initrd into the guest instead of copying"),
        Setting("no-extract", "flag", "let the guest unpack a bzImage itself"),
        Setting("no-coalesce", "flag", "let every port write leave the kernel on its own"),
        Setting("dtb", "path", "a device tree for the guest instead of the machine's own (aarch64)"),
        Setting("dump-dtb", "path", "write the guest's device tree to this file (aarch64)"),
        Setting("lab", "flag", "boot inside the lab"),
        Setting("verbose", "flag", "say where everything was placed before the guest starts"),
    )
}
#: (given on the command line, not taken from the file then)
_EXCLUDING = (("verify", "initrd"), ("verify", "expect"), ("initrd", "verify"), ("expect", "verify"))
_KIND_NAMES = tuple(kind for kind, *_ in KINDS)
_WORDS = {
    "text": "text",
    "path": "text, a path",
    "size": 'a size, as "512M" or a whole number of MiB',
    "int": "a whole number",
    "number": "a number",
    "flag": "true or false",
    "texts": "a list of texts",
}


def read(path: str, given: Mapping[str, object]) -> dict[str, object]:
    """What a machine file says, by the names and in the forms of argparse's results; ``attachments`` are made already.

    ``given`` is what the command line alone says: what it excludes (an initrd, where it has --verify) is left out.
    UsageError, with file and line, for what cannot be read, is unknown, or has the wrong type.
    """
    file = _MachineFile(path, "give --machine a TOML file", 'key = "text"')
    values = file.values()
    for name, other in _EXCLUDING:
        if given.get(name):
            values.pop(other, None)
    return values


class _MachineFile(TomlText):
    """One file, and its tables into values."""

    def values(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in self.tables.items():
            if name in SETTINGS:
                setting = SETTINGS[name]
                found[setting.dest] = self.option(setting, value)
            elif name not in _KIND_NAMES:
                known = (*SETTINGS, *_KIND_NAMES)
                message = f"unknown key '{name}'{perhaps(name, known)}"
                self.fail("", 0, name, message, f"known are {', '.join(known)}")
        made = {kind: self.attachments(kind) for kind in self.tables if kind in _KIND_NAMES}
        order = [kind for kind in self.headers if kind in made]
        if any(order.count(kind) != len(each) for kind, each in made.items()):  # arrays written inline
            order = [kind for kind, each in made.items() for _ in each]
        if order:
            found["attachments"] = [made[kind].pop(0) for kind in order]
        return found

    def option(self, setting: Setting, value: object) -> object:
        """The value of a key, as argparse has the option's."""
        kind, name = setting.kind, setting.name
        fits = {
            "flag": type(value) is bool,
            "int": type(value) is int,
            "number": type(value) in (int, float),
            "size": type(value) in (int, str),
            "texts": type(value) is list and all(type(each) is str for each in value),
        }.get(kind, type(value) is str)
        if not fits:
            self.fail("", 0, name, f"{name} is {shown(value)}, not {_WORDS[kind]}", f"correct {name}")
        if setting.choices and value not in setting.choices:
            message = f"{name} = '{value}' is unknown{perhaps(str(value), setting.choices)}"
            self.fail("", 0, name, message, f"choose one of {', '.join(setting.choices)}")
        if kind in ("flag", "texts"):
            return value
        if kind == "path":
            return self.absolute(str(value))
        text = str(value)
        if kind == "size":
            try:
                parse_size(text)
            except UsageError as error:
                self.fail("", 0, name, f"{name}: {error.message}", error.hint)
        return text

    def attachments(self, kind: str) -> list[Attachment]:
        """The attachments of a kind, in order."""
        return [self.attachment(kind, number, table) for number, table in enumerate(self.arrays(kind))]

    def attachment(self, kind: str, number: int, table: dict[str, object]) -> Attachment:
        """The attachment of one table."""
        made = attachment(kind)
        values: dict[str, object] = {}
        for name, value in table.items():
            key = made.KEYS.get(name)
            if key is None:
                hint = f"it has {', '.join(made.KEYS)}" if made.KEYS else "it has no settings"
                self.fail(kind, number, name, f"{kind} has no key '{name}'{perhaps(name, made.KEYS)}", hint)
            if key.many != (type(value) is list):
                words = "a list" if key.many else "one value"
                self.fail(
                    kind, number, name, f"{kind}: {name} is {shown(value)}, not {words}", f"correct {name}"
                )
            items = value if type(value) is list else [value]
            try:
                items = [self._resolved(key, key.check(name, item)) for item in items]
            except UsageError as error:
                self.fail(kind, number, name, f"{kind}: {error.message}", error.hint)
            values[name] = items if key.many else items[0]
        try:
            return made.from_table(values)
        except UsageError as error:
            self.fail(kind, number, "", error.message, error.hint)

    def _resolved(self, key: Key, value: object) -> object:
        return self.absolute(str(value)) if is_path(key, value) else value

    def absolute(self, path: str) -> str:
        """A path of the file as the process can use it."""
        return os.path.join(self.folder, path) if path else path


def is_path(key: Key, value: object) -> bool:
    """Whether a ``value`` of an attachment's ``key`` is a path, and not a word or a URL that may stand there."""
    return key.path and isinstance(value, str) and value != key.bare and "://" not in value


def dump(options: Mapping[str, object], attachments: Iterable[Attachment]) -> str:
    """The machine file that says the same as argparse's results ``options`` (valid ones) and ``attachments``.

    Paths are absolute in it, so that it means the same wherever it is kept.  UsageError for a text that no TOML file
    can hold.
    """
    lines: list[str] = []
    for setting in SETTINGS.values():
        value = options.get(setting.dest)
        if value is None or value == [] or (value is False and setting.name != "kaslr"):
            continue
        if setting.kind == "path":
            value = os.path.abspath(str(value))
        elif setting.kind == "int":
            value = int(str(value), 0)
        elif setting.kind == "number":
            value = float(str(value))
        lines.append(f"{setting.name} = {_toml(value)}")
    for each in attachments:
        lines += ["", f"[[{each.KIND}]]"]
        for name, item in each.to_table().items():
            if is_path(each.KEYS[name], item):
                item = os.path.abspath(str(item))
            lines.append(f"{name} = {_toml(item)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1 << 53 else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{text!r} is not text in UTF-8, and cannot stand in a machine file", "rename it"
        ) from None
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    quoted = re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", quoted)
    return f'"{quoted}"'
