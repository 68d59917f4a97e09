"""The boot structures: the layouts the C headers give, and the sizes the protocols fix."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from loader import structs

SIZES = {
    "setup_header": 123,
    "boot_params": 4096,
    "boot_e820_entry": 20,
    "setup_data": 16,
    "hvm_start_info": 56,
    "hvm_modlist_entry": 32,
    "hvm_memmap_table_entry": 24,
    "arm64_image_header": 64,
    "riscv64_image_header": 64,
}


@pytest.mark.parametrize("name", SIZES)
def test_size(name):
    assert ctypes.sizeof(getattr(structs, name)) == SIZES[name]


def c_offsets(tmp_path: Path, include: str, names: list[str]) -> dict[str, tuple[int, int]]:
    """Offset and size of each field of the structures, as the C compiler sees them."""
    lines = []
    for name in names:
        for field, *_ in getattr(structs, name)._fields_:
            place = f"offsetof(struct {name}, {field}), sizeof(((struct {name} *)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {place});')
        lines.append(f'printf("{name} 0 %zu\\n", sizeof(struct {name}));')
    source = tmp_path / "offsets.c"
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{include}\nint main(void) {{ {' '.join(lines)} }}\n"
    )
    program = tmp_path / "offsets"
    subprocess.run(["cc", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: (int(offset), int(size)) for name, offset, size in map(str.split, output.splitlines())}


def own_offsets(names: list[str]) -> dict[str, tuple[int, int]]:
    found = {}
    for name in names:
        structure = getattr(structs, name)
        for field, *_ in structure._fields_:
            descriptor = getattr(structure, field)
            found[f"{name}.{field}"] = (descriptor.offset, descriptor.size)
        found[name] = (0, ctypes.sizeof(structure))
    return found


def has_header(header: str) -> bool:
    if shutil.which("cc") is None:
        return False
    source = f"#include <stdint.h>\n#include <{header}>\n"
    return (
        subprocess.run(
            ["cc", "-E", "-"], input=source, text=True, capture_output=True, check=False
        ).returncode
        == 0
    )


def test_setup_structures_are_those_of_bootparam_h(tmp_path):
    if not has_header("asm/bootparam.h"):
        pytest.skip("no C compiler, or no <asm/bootparam.h> (the headers of an x86 kernel)")
    names = ["setup_header", "boot_e820_entry", "boot_params"]
    assert own_offsets(names) == c_offsets(tmp_path, "#include <asm/bootparam.h>", names)


def test_pvh_structures_are_those_of_start_info_h(tmp_path):
    places = ("xen/interface/hvm/start_info.h", "xen/arch-x86/hvm/start_info.h")  # Linux; Xen (libxen-dev)
    header = next(filter(has_header, places), None)
    if header is None:
        pytest.skip("no C compiler, or no start_info.h (in Debian's libxen-dev)")
    names = ["hvm_start_info", "hvm_modlist_entry", "hvm_memmap_table_entry"]
    assert own_offsets(names) == c_offsets(tmp_path, f"#include <stdint.h>\n#include <{header}>", names)


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [
        ("boot_params", "acpi_rsdp_addr", 0x70),
        ("boot_params", "ext_ramdisk_image", 0xC0),
        ("boot_params", "ext_ramdisk_size", 0xC4),
        ("boot_params", "ext_cmd_line_ptr", 0xC8),
        ("boot_params", "e820_entries", 0x1E8),
        ("boot_params", "sentinel", 0x1EF),
        ("boot_params", "hdr", 0x1F1),
        ("boot_params", "e820_table", 0x2D0),
        ("setup_header", "header", 0x202 - 0x1F1),
        ("setup_header", "xloadflags", 0x236 - 0x1F1),
        ("setup_header", "kernel_info_offset", 0x268 - 0x1F1),
        ("hvm_start_info", "memmap_paddr", 40),
        ("hvm_start_info", "memmap_entries", 48),
        ("hvm_modlist_entry", "cmdline_paddr", 16),
        ("hvm_memmap_table_entry", "type", 16),
        ("arm64_image_header", "text_offset", 8),
        ("arm64_image_header", "image_size", 0x10),
        ("arm64_image_header", "flags", 0x18),
        ("arm64_image_header", "magic", 0x38),
        ("riscv64_image_header", "image_size", 0x10),
        ("riscv64_image_header", "version", 0x20),
        ("riscv64_image_header", "magic", 0x30),
        ("riscv64_image_header", "magic2", 0x38),
    ],
)
def test_offsets_of_the_documents(structure, field, offset):
    assert getattr(getattr(structs, structure), field).offset == offset


def test_fields_are_little_endian():
    assert bytes(structs.hvm_start_info(magic=0x336EC578))[:4] == b"\x78\xc5\x6e\x33"


@pytest.mark.parametrize("name", SIZES)
def test_type_checkers_see_every_number_there_is(name):
    """Assigning to a field that does not exist is silent in ctypes, so the two lists must agree."""
    source = Path(structs.__file__).read_text()
    body = source.split(f"class {name}(")[1].split("\nclass ")[0]
    declared = body.split("if TYPE_CHECKING:")[1].replace("=", " ").replace(":", " ").split()
    plain = (structs.u8, structs.u16, structs.u32, structs.u64)
    numbers = [field for field, kind in getattr(structs, name)._fields_ if kind in plain]
    assert [field for field in numbers if field not in declared] == []
