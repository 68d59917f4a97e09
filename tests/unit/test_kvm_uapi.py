"""Every number, size and offset the KVM driver declares, against the compiler's view of <linux/kvm.h>.

The C program is made from the driver's own tables by introspection, so nothing declared can be left out.
Macros that the installed headers are too old for are reported by name as skipped, never dropped silently.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyvmm.kvm import coalesced, exits, ioctls, uapi, uapi_run, uapi_x86, vcpu
from pyvmm.kvm.uapi import Cap

UAPI_MODULES = (uapi, uapi_run, uapi_x86)
AGGREGATES = (ctypes.Structure, ctypes.Union)
TAGGED_PREFIX = "kvm_"  # a class named otherwise is a struct without a tag, inside a tagged one

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the driver declares x86_64's <asm/kvm.h>"
)


def declared_structs() -> dict[str, Any]:
    """Every struct and union the driver declares, by name."""
    return {
        name: value
        for module in UAPI_MODULES
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, AGGREGATES) and value not in AGGREGATES
    }


def declared_constants() -> dict[str, int]:
    """Every KVM_* constant and capability, by the header's name."""
    constants = {
        name: value
        for module in UAPI_MODULES
        for name, value in vars(module).items()
        if name.startswith("KVM") and isinstance(value, int)
    }
    return constants | {f"KVM_CAP_{name}": value for name, value in vars(Cap).items() if name.isupper()}


def fields(struct: Any, prefix: str = "", base: int = 0) -> list[tuple[str, int, int, Any]]:
    """(dotted path, offset, size, type) of every field of a struct and of the structs inside it."""
    found = []
    anonymous = getattr(struct, "_anonymous_", ())
    for name, kind in struct._fields_:
        offset = base + getattr(struct, name).offset
        path = prefix if name in anonymous else f"{prefix}{name}"
        if name not in anonymous:
            found.append((path, offset, ctypes.sizeof(kind), kind))
        if issubclass(kind, AGGREGATES):
            found += fields(kind, path if name in anonymous else f"{path}.", offset)
    return found


def is_flexible(kind: Any) -> bool:
    return issubclass(kind, ctypes.Array) and len(kind()) == 0


def expected() -> dict[str, int]:
    """What the driver believes: key -> number, the keys being those the C program prints."""
    values = {f"constant {name}": value for name, value in declared_constants().items()}
    values |= {f"constant {name}": int(request) for name, request in ioctls.TABLE.items()}
    for name, struct in declared_structs().items():
        if not name.startswith(TAGGED_PREFIX):
            continue
        values[f"size {name}"] = ctypes.sizeof(struct)
        for path, offset, size, kind in fields(struct):
            values[f"offset {name}.{path}"] = offset
            if is_flexible(kind):
                values[f"element {name}.{path}"] = ctypes.sizeof(kind._type_)
            else:
                values[f"size {name}.{path}"] = size
    return values


def c_expression(key: str) -> str:
    what, _, name = key.partition(" ")
    struct, _, path = name.partition(".")
    if what == "constant":
        return name
    if what == "offset":
        return f"offsetof(struct {struct}, {path})"
    if not path:
        return f"sizeof(struct {struct})"
    element = "[0]" if what == "element" else ""
    return f"sizeof(((struct {struct} *)0)->{path}{element})"


def guard(key: str) -> str | None:
    """The macro without which the header cannot answer, if any."""
    what, _, name = key.partition(" ")
    if what == "constant":
        return name
    for field, macro in uapi_run.NEWER_FIELDS.items():
        if name == field or name.startswith(field + "."):
            return macro
    return None


def program() -> str:
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        "#include <linux/kvm.h>",
        "int main(void) {",
    ]
    for key in expected():
        statement = f'printf("%s|%llu\\n", "{key}", (unsigned long long)({c_expression(key)}));'
        macro = guard(key)
        if macro:
            statement = f'\n#ifdef {macro}\n{statement}\n#else\nprintf("%s|absent\\n", "{key}");\n#endif'
        lines.append(statement)
    return "\n".join([*lines, "return 0; }", ""])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the C program prints: key -> number in decimal, or "absent"."""
    folder: Path = tmp_path_factory.mktemp("uapi")
    source, binary = folder / "uapi.c", folder / "uapi"
    source.write_text(program())
    built = subprocess.run(
        ["gcc", "-Wall", "-Werror", "-o", str(binary), str(source)], capture_output=True, text=True
    )
    if "linux/kvm.h: No such file" in built.stderr:
        pytest.skip("<linux/kvm.h> is not installed (linux-libc-dev)")
    assert built.returncode == 0, built.stderr
    output = subprocess.run([str(binary)], capture_output=True, text=True, check=True).stdout
    return dict(line.split("|") for line in output.splitlines())


@needs_x86
@needs_gcc
def test_everything_declared_matches_the_header(compiled: dict[str, str]) -> None:
    wrong = {
        key: (value, compiled[key])
        for key, value in expected().items()
        if compiled[key] not in ("absent", str(value))
    }
    assert not wrong, f"(ours, the compiler's): {wrong}"


@needs_x86
@needs_gcc
def test_names_too_new_for_the_headers_are_reported(compiled: dict[str, str]) -> None:
    assert set(compiled) == set(expected())
    absent = sorted({str(guard(key)) for key, value in compiled.items() if value == "absent"})
    # Every header since Linux 6.1 has all but these; a misspelt name would show up here.
    unknown = set(absent) - {"KVM_EXIT_MEMORY_FAULT", "KVM_CAP_MEMORY_FAULT_INFO"}
    assert not unknown, f"the installed <linux/kvm.h> does not know {unknown}"
    if absent:
        pytest.skip(f"not compared, the installed <linux/kvm.h> is older: {', '.join(absent)}")


def test_no_struct_is_left_out() -> None:
    """Each untagged struct is reached from a tagged one, so its fields are compared."""
    structs = declared_structs()
    reached = {
        kind
        for name, struct in structs.items()
        if name.startswith(TAGGED_PREFIX)
        for _, _, _, kind in fields(struct)
    }
    reached.add(uapi_run.run_exit)  # anonymous: its members are listed as kvm_run's own
    orphans = [
        name for name, kind in structs.items() if not name.startswith(TAGGED_PREFIX) and kind not in reached
    ]
    assert orphans == []
    assert len(structs) > 45 and len(expected()) > 600


def test_ioctl_table_covers_every_ioctl_the_driver_uses() -> None:
    """Each request the driver's modules name is in the table, under its own name."""
    folder = Path(ioctls.__file__).parent
    used = set()
    for module in ("system", "vm", "vcpu", "registers_x86", "device"):
        text = (folder / f"{module}.py").read_text()
        used |= {word.split("ioctls.")[1] for word in _words(text) if word.startswith("ioctls.KVM_")}
    assert used and used <= set(ioctls.TABLE)
    assert set(ioctls.TABLE) == used, "in the table but used by nothing"
    assert all(request.name == name for name, request in ioctls.TABLE.items())


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c in "._" else " " for c in text).split()


def test_exit_objects_lie_over_the_union() -> None:
    for member in ("hw", "io", "mmio", "internal", "system_event", "padding"):
        assert getattr(uapi_run.kvm_run, member).offset == exits.UNION, member
    assert exits.UNION + uapi_run.run_mmio.data.offset == exits._MMIO_DATA * 8
    assert uapi_run.kvm_run.exit_reason.offset == vcpu._EXIT_REASON * 4


def test_coalesced_ring_capacity_is_the_header_s() -> None:
    """KVM_COALESCED_MMIO_MAX, for pages of 4 KiB."""
    if mmap.PAGESIZE == 4096:
        assert coalesced.CAPACITY == 170


def test_names_of_numbers() -> None:
    assert uapi_run.exit_name(2) == "KVM_EXIT_IO"
    assert uapi_run.exit_name(1) == "KVM_EXIT_EXCEPTION"
    assert uapi_run.exit_name(250) == "KVM exit reason 250"
    assert uapi.cap_name(0) == "KVM_CAP_IRQCHIP"
    assert uapi.cap_name(9999) == "KVM capability 9999"
