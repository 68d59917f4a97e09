"""The setup header of a bzImage, read and checked.

Linux Documentation/arch/x86/boot.rst: "The Real-Mode Kernel Header", "Details of Header Fields".

A field means something only from the protocol version on that introduced it; before that the bytes are
code.  :class:`BzImageHeader` gives each field the meaning or default the protocol version says.
"""

from __future__ import annotations

from ctypes import sizeof

from loader import errors
from loader.enums import (
    CMDLINE_SIZE_OLD,
    DEFAULT_SETUP_SECTS,
    HDRS_MAGIC,
    INITRD_ADDR_MAX_OLD,
    KERNEL_INFO_MAGIC,
    SECTOR_SIZE,
    SETUP_HEADER_LIMIT,
    SETUP_HEADER_OFFSET,
    U64_MAX,
    LoadFlags,
    Protocol,
)
from loader.structs import setup_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile

_LOADFLAGS_END = 0x212  # the header must reach here to be told from a zImage's
_VERSION_STRING_MAX = 256


class BzImageHeader:
    """A checked setup header.  Sizes in bytes; fields the protocol version lacks have their old defaults.

    - ``setup_header``: the header as in the file, bytes after its end zero
    - ``raw``: the bytes to copy to the zero page, from 0x1f1 to the header's end
    - ``setup_size``: where the protected-mode code starts in the file; ``code_size``: to the file's end
    - ``protocol``, ``loadflags``, ``xloadflags``, ``relocatable``
    - ``kernel_alignment``: 1 if there is no requirement; ``pref_address``: 0 if none is preferred
    - ``init_size``: what the kernel needs from its run-time start on, 0 if unknown (protocol < 2.10)
    - ``initrd_addr_max``: the last byte an initrd may occupy; ``cmdline_size``: without the NUL
    - ``payload_offset``, ``payload_length``: the compressed kernel in the file, 0 if unknown (< 2.08)
    - ``setup_type_max``: the largest setup_data type the kernel knows, None if it does not say (< 2.15)
    - ``version``: the kernel's version string, "" if there is none
    """

    __slots__ = (
        "cmdline_size",
        "code_size",
        "init_size",
        "initrd_addr_max",
        "kernel_alignment",
        "loadflags",
        "payload_length",
        "payload_offset",
        "pref_address",
        "protocol",
        "raw",
        "relocatable",
        "setup_header",
        "setup_size",
        "setup_type_max",
        "version",
        "xloadflags",
    )

    def __init__(self, raw: bytes, file_size: int) -> None:
        self.raw = raw
        self.setup_header = header = setup_header.from_buffer_copy(raw.ljust(sizeof(setup_header), b"\0"))
        self.setup_size = ((header.setup_sects or DEFAULT_SETUP_SECTS) + 1) * SECTOR_SIZE
        self.code_size = file_size - self.setup_size
        self.protocol = protocol = header.version
        self.loadflags = header.loadflags
        has_initrd_max = protocol >= Protocol.INITRD_ADDR_MAX and header.initrd_addr_max
        self.initrd_addr_max = header.initrd_addr_max if has_initrd_max else INITRD_ADDR_MAX_OLD
        self.relocatable = protocol >= Protocol.RELOCATABLE and header.relocatable_kernel != 0
        has_alignment = protocol >= Protocol.RELOCATABLE and header.kernel_alignment
        self.kernel_alignment = header.kernel_alignment if has_alignment else 1
        has_cmdline_size = protocol >= Protocol.CMDLINE_SIZE and header.cmdline_size
        self.cmdline_size = header.cmdline_size if has_cmdline_size else CMDLINE_SIZE_OLD
        has_payload = protocol >= Protocol.PAYLOAD and header.payload_offset
        self.payload_offset = self.setup_size + header.payload_offset if has_payload else 0
        self.payload_length = header.payload_length if has_payload else 0
        self.pref_address = header.pref_address if protocol >= Protocol.INIT_SIZE else 0
        self.init_size = header.init_size if protocol >= Protocol.INIT_SIZE else 0
        self.xloadflags = header.xloadflags if protocol >= Protocol.XLOADFLAGS else 0
        self.setup_type_max: int | None = None
        self.version = ""

    def runtime_start(self, load: int) -> int:
        """Where a kernel loaded at ``load`` moves itself to unpack and run."""
        if not self.relocatable:
            return self.pref_address or load
        return max(align_up(load, self.kernel_alignment), self.pref_address)

    def reserved(self, load: int) -> tuple[tuple[int, int], ...]:
        """The (start, size) ranges that a kernel loaded at ``load`` occupies, ascending: its image, and the
        room it unpacks into."""
        ranges = [(load, self.code_size)]
        if self.init_size:
            ranges.append((self.runtime_start(load), self.init_size))
        return tuple(sorted(ranges))

    def __repr__(self) -> str:
        return f"<BzImageHeader protocol {self.protocol:#x}, {self.version or 'no version'!r}>"


def read_header(file: ImageFile) -> BzImageHeader:
    """Read and check the setup header of a bzImage.

    Raises ReadBzImageHeader (the file ends inside the header's first fields, or cannot be read),
    InvalidBzImage, BzImageUnderflow (ends inside the setup code), BzImageTruncated (ends before what the
    header announces).
    """
    try:
        raw = file.read(SETUP_HEADER_OFFSET, SETUP_HEADER_LIMIT - SETUP_HEADER_OFFSET)
    except errors.FileUnreadable as error:
        raise errors.ReadBzImageHeader(error.message) from None
    if SETUP_HEADER_OFFSET + len(raw) < _LOADFLAGS_END:
        raise errors.ReadBzImageHeader(
            f"{file.path}: ends at {file.size:#x}, inside the setup header at {SETUP_HEADER_OFFSET:#x}",
            "was it copied completely?",
        )
    header = BzImageHeader(raw[: _header_end(raw) - SETUP_HEADER_OFFSET], file.size)
    _check_magic(file, header)
    if header.code_size < 0:
        raise errors.BzImageUnderflow(
            f"{file.path}: ends at {file.size:#x}, inside its setup code of {header.setup_size:#x} bytes"
            f" (setup_sects {header.setup_header.setup_sects} at {SETUP_HEADER_OFFSET:#x})",
            "was it copied completely?",
        )
    _check_sizes(file, header)
    header.version = _version_string(file, header)
    header.setup_type_max = _setup_type_max(file, header)
    return header


def _header_end(raw: bytes) -> int:
    """The file offset of the header's end: the target of the short jump at 0x200, at most 0x290.

    Anything but a short forward jump over the fields that every version has tells nothing: then the
    whole room is taken, and the protocol version says which fields count.
    """
    opcode, distance = raw[0x200 - SETUP_HEADER_OFFSET], raw[0x201 - SETUP_HEADER_OFFSET]
    if opcode != 0xEB or not _LOADFLAGS_END - 0x202 <= distance < 0x80:
        return SETUP_HEADER_LIMIT
    return min(0x202 + distance, SETUP_HEADER_LIMIT)


def _check_magic(file: ImageFile, header: BzImageHeader) -> None:
    fields = header.setup_header
    if fields.header != HDRS_MAGIC:
        raise errors.InvalidBzImage(
            f'{file.path}: no "HdrS" at 0x202 but {fields.header:#010x}',
            "give a bzImage or another kernel image",
        )
    if header.protocol < Protocol.HIGH_LOAD:
        raise errors.InvalidBzImage(
            f"{file.path}: boot protocol {header.protocol:#x} at 0x206, and bzImage starts with 0x200",
            "build a newer kernel",
        )
    if not header.loadflags & LoadFlags.LOADED_HIGH:
        raise errors.InvalidBzImage(
            f"{file.path}: a zImage, to be loaded low (loadflags {header.loadflags:#04x} at 0x211)",
            "build a bzImage",
        )


def _check_sizes(file: ImageFile, header: BzImageHeader) -> None:
    alignment = header.kernel_alignment
    if alignment & (alignment - 1):
        raise errors.InvalidBzImage(
            f"{file.path}: kernel_alignment {alignment:#x} at 0x230 is no power of two"
        )
    if header.pref_address + header.init_size > U64_MAX:
        raise errors.InvalidBzImage(
            f"{file.path}: pref_address {header.pref_address:#x} at 0x258 plus init_size"
            f" {header.init_size:#x} at 0x260 passes 64 bits"
        )
    announced = header.setup_header.syssize * 16 if header.protocol >= Protocol.SYSSIZE_32_BIT else 0
    if header.code_size < announced or not header.code_size:
        raise errors.BzImageTruncated(
            f"{file.path}: has {header.code_size:#x} bytes of kernel from {header.setup_size:#x} on,"
            f" and its header announces {announced:#x} (syssize at 0x1f4)",
            "was it copied completely?",
        )
    payload_end = header.payload_offset + header.payload_length
    if payload_end > file.size:
        raise errors.BzImageTruncated(
            f"{file.path}: ends at {file.size:#x}, its payload at {payload_end:#x} (payload_length at 0x24c)",
            "was it copied completely?",
        )


def _version_string(file: ImageFile, header: BzImageHeader) -> str:
    """The version string, which boot.rst wants within the setup code; "" if it is not there."""
    offset = header.setup_header.kernel_version
    if not offset or offset + 0x200 >= header.setup_size:
        return ""
    text = file.read(offset + 0x200, min(_VERSION_STRING_MAX, header.setup_size - offset - 0x200))
    return text.split(b"\0")[0].decode("ascii", "replace")


def _setup_type_max(file: ImageFile, header: BzImageHeader) -> int | None:
    """kernel_info.setup_type_max (boot.rst, "The kernel_info"), None if there is no readable kernel_info."""
    offset = header.setup_header.kernel_info_offset
    if header.protocol < Protocol.KERNEL_INFO or not offset:
        return None
    info = file.read(header.setup_size + offset, 16)
    if len(info) < 16 or int.from_bytes(info[:4], "little") != KERNEL_INFO_MAGIC:
        return None
    return int.from_bytes(info[12:16], "little")


def align_up(value: int, alignment: int) -> int:
    return (value + alignment - 1) & ~(alignment - 1)
