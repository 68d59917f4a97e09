"""What is to be tested: kernels x machines x cases, from ``pyvmm-test.toml`` or from the command line alone.

    timeout = 60

    [[kernel]]
    path = "linux-*/arch/x86/boot/bzImage"

    [[machine]]
    name = "small"
    cpus = 1
    memory = "256M"

    [[case]]
    name = "boots"
    initrd = "initramfs.cpio.gz"
    expect = ["login:"]

Paths are relative to the file.  What stands at the top holds wherever a table says nothing else; a case's word counts
before a machine's, and a machine's before a kernel's.  Command lines add up.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from pyvmm.errors import UsageError
from pyvmm.testing import machines
from pyvmm.testing.case import CaseSpec
from pyvmm.testing.toml_file import Key, TomlFile
from pyvmm.text import nearest, perhaps

FILE_NAME = "pyvmm-test.toml"
EXAMPLE = '[[case]], and below it name = "boots"'

_COMMON = {
    "timeout": Key("number", "seconds for a case, from when its guest runs"),
    "memory": Key("size", "guest RAM, as 512M or 1G; a number is in MiB"),
    "cpus": Key("int", "vCPUs"),
    "lab": Key("flag", "run in the lab, an emulated host with real KVM"),
    "cmdline": Key("text", "words for the kernel's command line, added to the serial console"),
    "initrd": Key("path", "initial RAM disk"),
    "modules": Key("path", "where the kernel's modules are"),
    "root": Key("root", "the guest's root: a directory, or /, read-only with a layer over it"),
    "drivers": Key("texts", "modules, by name, that are loaded for a command besides those needed"),
    "rodirs": Key("dirs", "directories that a command sees: HOST or HOST:GUEST"),
    "rwdirs": Key("dirs", "directories that a command can write to as well"),
    "devices": Key("texts", 'devices as on the command line: "disk=FILE,overlay", "net=user", "rng"'),
    "allow_splat": Key("texts", "regular expressions; a splat that one of them matches is no failure"),
}
TOP = {
    "name": Key("text", "what the run is called in reports"),
    "retries": Key("int", "how often a case that did not pass is tried again"),
    **_COMMON,
}
KERNEL = {
    "path": Key("path", "a kernel image, or a pattern for several", required=True),
    "name": Key("text", "what it is called"),
    **{name: _COMMON[name] for name in ("cmdline", "initrd", "modules", "drivers", "allow_splat")},
}
MACHINE = {
    "name": Key("text", "what it is called", required=True),
    "machine": Key("path", "a machine file, as of pyvmm boot --machine"),
    **{name: _COMMON[name] for name in ("memory", "cpus", "lab", "cmdline", "initrd", "devices", "drivers")},
}
CASE = {
    "name": Key("text", "what it is called", required=True),
    "command": Key("command", "what to run in the guest, by pyvmm's agent"),
    "expect": Key("texts", "what the console has to show"),
    "ktap": Key(
        "flag", "the command's output, or the console, holds test results (KTAP), which have to pass"
    ),
    "status": Key("int", "the exit status that is wanted; default: 0"),
    "env": Key("table", "environment of the command"),
    "cwd": Key("text", "working directory of the command"),
    "kernels": Key("texts", "only with these kernels; names, or patterns for them"),
    "machines": Key("texts", "only on these machines; names, or patterns for them"),
    "skip_reason": Key("text", "do not run it, and why"),
    **_COMMON,
}
_ARRAYS = ("kernel", "machine", "case")
#: What adds up, in the order of the machine's layers.
_LISTS = ("devices", "options", "allow_splat", "drivers", "rodirs", "rwdirs")


@dataclass
class Matrix:
    """A run to be: its name, how often to retry, and its cases in order."""

    name: str
    cases: list[CaseSpec] = field(default_factory=list)
    retries: int = 0

    def select(self, pattern: str) -> None:
        """Keep the cases whose id has ``pattern``, a text or a shell pattern, in it; UsageError if none has."""
        kept = [case for case in self.cases if fnmatchcase(case.id, f"*{pattern}*")]
        if not kept:
            near = nearest(pattern, [case.id for case in self.cases], 0.3)
            hint = f"--list shows them{f'; one is {near}' if near else ''}"
            raise UsageError(f"no case has '{pattern}' in its name", hint)
        self.cases = kept


@dataclass
class Axes:
    """The three axes of a matrix, each a list of tables by the keys above, and what holds for all."""

    kernels: list[dict[str, Any]]
    machines: list[dict[str, Any]]
    cases: list[dict[str, Any]]
    top: dict[str, Any]

    def only(self, axis: str, patterns: Sequence[str]) -> None:
        """Keep those of an ``axis`` (kernel, machine, case) whose names match one of ``patterns``.  UsageError."""
        tables: list[dict[str, Any]] = getattr(self, f"{axis}s")
        names = [table["name"] for table in tables]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                message = f"there is no {axis} '{pattern}'{perhaps(pattern, names)}"
                raise UsageError(message, f"there are {', '.join(names)}")
        setattr(self, f"{axis}s", [table for table in tables if _matches(table["name"], patterns)])

    def matrix(self, name: str) -> Matrix:
        """All cases, kernel by kernel."""
        found = [
            _case(self.top, kernel, machine, case)
            for kernel in self.kernels
            for machine in self.machines
            for case in self.cases
            if _matches(kernel["name"], case.get("kernels"))
            and _matches(machine["name"], case.get("machines"))
        ]
        return Matrix(name, found, self.top.get("retries", 0))


def read(path: str) -> Axes:
    """The axes that the test file at ``path`` describes.  UsageError, with file and line."""
    file = TomlFile(path, "name a test file, which is TOML", EXAMPLE)
    top = _devices(file, "", 0, file.values("", 0, file.tables, TOP, _ARRAYS))
    top.setdefault("name", os.path.basename(file.folder))
    kernels: list[dict[str, Any]] = []
    for number, table in enumerate(file.arrays("kernel")):
        kernels += _kernels(file, number, file.values("kernel", number, table, KERNEL))
    found = {
        "kernel": kernels,
        "machine": [
            _machine(
                file,
                number,
                _devices(file, "machine", number, file.values("machine", number, table, MACHINE)),
            )
            for number, table in enumerate(file.arrays("machine"))
        ],
        "case": [
            _devices(file, "case", number, file.values("case", number, table, CASE))
            for number, table in enumerate(file.arrays("case"))
        ],
    }
    for axis, tables in found.items():
        _check_names(file, axis, tables)
    for number, case in enumerate(found["case"]):
        for key, axis in (("kernels", "kernel"), ("machines", "machine")):
            _check_filter(file, number, key, case.get(key, ()), axis, found[axis])
        check_case(case, file.where("case", number, ""))
    if not found["case"]:
        raise UsageError(f"{path}: there is no [[case]]", "write [[case]], and its keys below")
    return Axes(found["kernel"], found["machine"] or [{"name": "default"}], found["case"], top)


def kernels_of(paths: Iterable[str]) -> list[dict[str, Any]]:
    """The kernels at these paths, each with a name that tells it from the others.  UsageError for one given twice."""
    paths = [os.path.abspath(path) for path in paths]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"the kernel {path} is named twice", "name each kernel once")
    names = _names(paths)
    if len(set(names)) < len(names):  # a-b/c and a/b-c
        names = [path.strip(os.sep).replace(os.sep, ":") for path in paths]
    return [{"path": path, "name": name} for path, name in zip(paths, names, strict=True)]


def _kernels(file: TomlFile, number: int, table: dict[str, Any]) -> list[dict[str, Any]]:
    """The kernels of one table: those that its pattern finds, or the one file, whether it is there or not."""
    path = table["path"]
    if os.path.exists(path) or not glob.has_magic(path):
        return [{"name": _names([path])[0], **table}]
    paths = sorted(glob.glob(path, recursive=True))
    if not paths:
        file.fail("kernel", number, "path", f"kernel: nothing matches {path}", "build the kernels first")
    prefix = f"{table['name']}-" if "name" in table and len(paths) > 1 else ""
    names = [table["name"]] if "name" in table and len(paths) == 1 else _names(paths)
    return [{**table, "path": each, "name": prefix + name} for each, name in zip(paths, names, strict=True)]


def _names(paths: Sequence[str]) -> list[str]:
    """Short names for files: the last part of each path or, where that is not enough, the parts that differ."""
    parts = [path.split(os.sep) for path in paths]
    last = [each[-1] for each in parts]
    if len(set(last)) == len(last):
        return last
    shortest = min(map(len, parts))
    before = next((n for n in range(shortest) if len({each[n] for each in parts}) > 1), 0)
    after = next((n for n in range(1, shortest + 1) if len({each[-n] for each in parts}) > 1), 1) - 1
    return ["-".join(each[before : len(each) - after] or each[-1:]) for each in parts]


def _devices(file: TomlFile, table: str, number: int, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the devices checked, and their paths made absolute."""
    if "devices" in values:
        try:
            values["devices"] = [machines.device(text, file.folder) for text in values["devices"]]
        except UsageError as error:
            file.fail(table, number, "devices", f"devices: {error.message}", error.hint)
    return values


def _machine(file: TomlFile, number: int, table: dict[str, Any]) -> dict[str, Any]:
    """A machine, with what its machine file says below what stands in the table itself."""
    path = table.pop("machine", None)
    if path is None:
        return table
    try:
        base = machines.from_file(path)
    except UsageError as error:
        file.fail("machine", number, "machine", f"machine: {error.message}", error.hint)
    for key in _LISTS:
        base[key] = [*base.get(key, []), *table.pop(key, [])]
    if "cmdline" in base and "cmdline" in table:
        table["cmdline"] = f"{base['cmdline']} {table['cmdline']}"
    return {**base, **table}


def _check_names(file: TomlFile, axis: str, tables: list[dict[str, Any]]) -> None:
    names: set[str] = set()
    for number, table in enumerate(tables):
        name = table["name"]
        where = (axis, number, "name") if axis != "kernel" else ("", 0, "kernel")
        if not name.strip() or "/" in name or not name.isprintable():
            file.fail(*where, f"{axis}: '{name}' is no name", "a name is some text without a slash")
        if name in names:
            hint = f"give each [[{axis}]] a name of its own"
            file.fail(*where, f"there are two {axis}s called '{name}'", hint)
        names.add(name)


def check_case(case: Mapping[str, Any], where: str = "") -> None:
    """UsageError for keys that do not go together."""
    if "command" not in case:
        for key in ("env", "cwd"):
            if key in case:
                raise UsageError(
                    f"{where}{key} without a command", "give the case a command, to be run in the guest"
                )
    if case.get("status", 0) > 255:
        raise UsageError(f"{where}status {case['status']} is none", "an exit status is from 0 to 255")


def _check_filter(
    file: TomlFile,
    number: int,
    key: str,
    patterns: Sequence[str],
    axis: str,
    tables: Sequence[dict[str, Any]],
) -> None:
    """The names that a case limits itself to have to be there; kernels may come from the command line alone."""
    names = [table["name"] for table in tables]
    for pattern in patterns:
        if names and not any(fnmatchcase(name, pattern) for name in names):
            message = f"case: there is no {axis} '{pattern}'{perhaps(pattern, names)}"
            file.fail("case", number, key, message, f"there are {', '.join(names)}")


def _matches(name: str, patterns: Sequence[str] | None) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _case(
    top: Mapping[str, Any], kernel: Mapping[str, Any], machine: Mapping[str, Any], case: Mapping[str, Any]
) -> CaseSpec:
    """One case of a matrix."""
    layers = (top, kernel, machine, case)
    values: dict[str, Any] = {}
    for layer in layers:
        values.update(layer)
    values |= {key: [each for layer in layers for each in layer.get(key, ())] for key in _LISTS}
    values["cmdline"] = " ".join(layer["cmdline"] for layer in layers if layer.get("cmdline"))
    values |= {"kernel": kernel["name"], "machine": machine["name"], "case": case["name"]}
    for key in ("name", "retries", "kernels", "machines"):
        values.pop(key, None)
    return CaseSpec(**values)
