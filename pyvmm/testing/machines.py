"""A machine file (:mod:`pyvmm.machine.file`) as the machine of a case.

What is about one run (kernel, expect, verify, result, console-log, timeout, name, ...) is the case's, and left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pyvmm.errors import UsageError
from pyvmm.machine import file
from pyvmm.machine.attachments import KINDS, attachment
from pyvmm.machine.attachments.base import Attachment
from pyvmm.machine.spec import parse_size
from pyvmm.text import perhaps

#: Options that take a value, and flags, of pyvmm boot which say what the machine is.
_VALUES = ("protocol", "poison", "dtb")
_FLAGS = ("huge-pages", "map", "no-extract", "no-coalesce")


def from_file(path: str) -> dict[str, Any]:
    """The values of a machine file by the names of :class:`pyvmm.testing.case.CaseSpec`.  UsageError."""
    said = file.read(path, {})
    found: dict[str, Any] = {name: said[name] for name in ("cmdline", "initrd", "lab") if name in said}
    if "memory" in said:
        found["memory"] = f"{parse_size(str(said['memory'])) >> 10}k"
    if "cpus" in said:
        found["cpus"] = int(str(said["cpus"]), 0)
    attachments: Any = said.get("attachments", [])
    found["devices"] = [option_text(each) for each in attachments]
    found["options"] = _options(said)
    return found


def _options(said: Mapping[str, Any]) -> list[str]:
    options: list[str] = []
    for name in _VALUES:
        if name in said:
            options += [f"--{name}", str(said[name])]
    options += [f"--{name}" for name in _FLAGS if said.get(name.replace("-", "_"))]
    if "kaslr" in said:
        options.append("--kaslr" if said["kaslr"] else "--no-kaslr")
    return options


def device(text: str, folder: str) -> str:
    """A device as the command line has it (without the dashes), checked; its paths, relative to ``folder``, absolute.

    :raises UsageError: there is no such kind, or it does not take these values
    """
    kind, _, value = text.removeprefix("--").partition("=")
    kinds = [each for each, *_ in KINDS]
    if kind not in kinds:
        raise UsageError(
            f"there is no device '{kind}'{perhaps(kind, kinds)}", f"there are {', '.join(kinds)}"
        )
    made = attachment(kind).parse(value)
    table = {
        name: os.path.join(folder, str(item)) if file.is_path(made.KEYS[name], item) else item
        for name, item in made.to_table().items()
    }
    return option_text(attachment(kind).from_table(table))


def option_text(attachment: Attachment) -> str:
    """An attachment as the command line has it, without the dashes: ``disk=path=FILE,ro``."""
    words = []
    for name, value in attachment.to_table().items():
        for item in value if isinstance(value, list) else [value]:
            text = {True: "on", False: "off"}[item] if isinstance(item, bool) else str(item)
            words.append(f"{name}={text.replace(',', ',,')}")
    return f"{attachment.KIND}={','.join(words)}" if words else attachment.KIND
