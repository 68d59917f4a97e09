"""What an arm64 or riscv64 Image, or an EFI zboot image, says of itself.

Linux Documentation/arch/arm64/booting.rst ("4. Call the kernel image"), arch/riscv/boot-image-header.rst,
drivers/firmware/efi/libstub/zboot-header.S.
"""

from __future__ import annotations

from loader.field_descriptions import (
    ARM64_IMAGE,
    ARM64_PAGE_SIZES,
    ARM64_SECTION,
    EFI_ZBOOT,
    RISCV_IMAGE,
    section,
)
from pyvmm.inspect import placement
from pyvmm.inspect.bzimage import compression, pe_entry
from pyvmm.inspect.report import EntryPoint, Field, Payload, Report, magic_text, printable, size_text
from pyvmm.inspect.version import find_version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from loader.files import ImageFile

_OLD_TEXT_OFFSET = 0x8_0000  # where image_size is 0 (kernels before 3.17)


def inspect(report: Report, file: ImageFile, memory: int) -> None:
    """Fill ``report`` with what ``file``, an arm64 or riscv64 Image, says; placement in ``memory`` bytes."""
    arm = report.machine == "aarch64"
    reference = section("arm64", ARM64_SECTION) if arm else section("riscv", "")
    report.is_kernel = True
    report.fields = read_fields(file, ARM64_IMAGE if arm else RISCV_IMAGE, reference)
    values = {field.name: field.value for field in report.fields if isinstance(field.value, int)}
    report.protocol = "arm64 Image" if arm else f"riscv Image header {_riscv_version(values)}"
    _decode(report, arm)
    report.relocatable = True
    report.kaslr = "left to the kernel: it moves itself by the seed in the device tree or from EFI"
    report.version, report.version_source = find_version(file), '"Linux version" in the image'
    report.entry_points = [EntryPoint("Image (its first byte)", None, 0, section=reference)]
    pe = pe_entry(file)
    if pe is not None:
        report.entry_points.append(
            EntryPoint("EFI (PE program)", None, pe, section="UEFI specification, PE/COFF")
        )
    text_offset, size = values.get("text_offset", 0), values.get("image_size", 0)
    if arm and not size:
        text_offset = _OLD_TEXT_OFFSET
    if text_offset + max(size, file.size) > (1 << 64) - 1:
        report.warn(f"cannot be booted: text_offset {text_offset:#x} and image_size {size:#x} pass 64 bits")
        return
    report.placement = placement.of_image(report.machine, text_offset, file.size, size, memory)
    if report.placement.fits:
        report.entry_points[0].address = text_offset


def _riscv_version(values: dict[str, int]) -> str:
    version = values.get("version", 0)
    return f"{version >> 16}.{version & 0xFFFF}"


def read_fields(file: ImageFile, table: Sequence[tuple[str, int, int, str]], reference: str) -> list[Field]:
    """The fields of a header at the start of ``file``, as many as it has: (name, offset, size, meaning)."""
    data = file.read(0, max(offset + size for _, offset, size, _ in table))
    fields = []
    for name, offset, size, meaning in table:
        raw = data[offset : offset + size]
        if len(raw) < size:
            break
        value: int | str = int.from_bytes(raw, "little") if size <= 8 else printable(raw.split(b"\0")[0])
        fields.append(Field(name, offset, size, value, meaning, reference))
    return fields


def _decode(report: Report, arm: bool) -> None:
    for field in report.fields:
        value = field.value
        if not isinstance(value, int):
            continue
        if field.name in ("text_offset", "image_size"):
            field.decoded = size_text(value)
        elif field.name in ("magic", "magic2"):
            field.decoded = magic_text(value, field.size)
        elif field.name == "version":
            field.decoded = f"{value >> 16}.{value & 0xFFFF}"
        elif field.name == "flags":
            field.bits = _flags(value, arm)


def _flags(value: int, arm: bool) -> list[str]:
    words = ["big-endian" if value & 1 else "little-endian"]
    if arm:
        words.append(ARM64_PAGE_SIZES[value >> 1 & 3])
        words.append("anywhere in memory" if value & 8 else "near the start of RAM")
    known = 0xF if arm else 1
    words += [f"bit {n}" for n in range(64) if value & ~known & 1 << n]
    return words


def inspect_zboot(report: Report, file: ImageFile) -> None:
    """Fill ``report`` with what ``file``, an EFI zboot image, says; the Image is in its payload."""
    report.is_kernel = True
    report.protocol = "EFI zboot"
    report.fields = read_fields(file, EFI_ZBOOT, section("zboot", ""))
    values = {field.name: field.value for field in report.fields}
    for field in report.fields:
        if isinstance(field.value, int) and field.name in ("mz_magic", "zimg_magic"):
            field.decoded = magic_text(field.value, field.size)
        elif isinstance(field.value, int) and field.name == "payload_size":
            field.decoded = size_text(field.value)
    offset, length = values.get("payload_offset"), values.get("payload_size")
    if isinstance(offset, int) and isinstance(length, int) and offset and length:
        report.payload = Payload(offset, length, compression(file.read(offset, 8)))
        if offset + length > file.size:
            report.warn(f"ends at {file.size:#x}, its payload at {offset + length:#x}")
    pe = pe_entry(file)
    if pe is not None:
        report.entry_points = [
            EntryPoint("EFI (PE program)", None, pe, section="UEFI specification, PE/COFF")
        ]
