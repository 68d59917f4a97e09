"""What loading a kernel gives: where it stands, how to enter it, and what to keep away from it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.structs import setup_header


class PvhBootCapability:
    """Whether the kernel can be entered by the PVH boot protocol, and where.

    ``status`` is "ignored" (nobody looked, or a kernel_offset makes the note's address useless),
    "not present" or "present"; ``entry`` is the physical address of the 32-bit entry point, if present.
    """

    __slots__ = ("entry", "status")

    def __init__(self, status: str, entry: int | None = None) -> None:
        self.status = status
        self.entry = entry

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PvhBootCapability):
            return NotImplemented
        return (self.status, self.entry) == (other.status, other.entry)

    def __hash__(self) -> int:
        return hash((self.status, self.entry))

    def __repr__(self) -> str:
        if self.entry is None:
            return f"<PVH entry {self.status}>"
        return f"<PVH entry {self.status} at {self.entry:#x}>"


PVH_ENTRY_IGNORED = PvhBootCapability("ignored")
PVH_ENTRY_NOT_PRESENT = PvhBootCapability("not present")


def pvh_entry_present(entry: int) -> PvhBootCapability:
    """The capability of a kernel whose PVH note names ``entry``."""
    return PvhBootCapability("present", entry)


class KernelLoaderResult:
    """Where a kernel was loaded.  All addresses are guest-physical, all ends exclusive.

    - ``kernel_load``: for a bzImage, where its protected-mode code starts; for an ELF file its entry point
      (as in the crate, whose users jump there; ``load_base`` is where the image starts)
    - ``kernel_end``: the end of what the loader wrote or zeroed
    - ``setup_header``: a bzImage's header, code32_start rewritten; None for ELF
    - ``pvh_boot_cap``: a PvhBootCapability
    - ``load_base``: the lowest address loaded to
    - ``entry_64``, ``entry_32``: entry points of the Linux boot protocols, None for those the image lacks
    - ``reserved``: (start, size) ranges the kernel occupies until it has read its memory map, ascending;
      they reach beyond ``kernel_end`` where a kernel unpacks itself, and nothing else may be placed there
    - ``initrd_addr_max``: the last byte an initrd may occupy
    - ``cmdline_size``: the characters of a command line the kernel keeps, without the NUL
    - ``is_linux``: whether the image is known to be Linux
    """

    __slots__ = (
        "cmdline_size",
        "entry_32",
        "entry_64",
        "initrd_addr_max",
        "is_linux",
        "kernel_end",
        "kernel_load",
        "load_base",
        "pvh_boot_cap",
        "reserved",
        "setup_header",
    )

    def __init__(
        self,
        kernel_load: int = 0,
        kernel_end: int = 0,
        setup_header: setup_header | None = None,
        pvh_boot_cap: PvhBootCapability = PVH_ENTRY_IGNORED,
        *,
        load_base: int = 0,
        entry_64: int | None = None,
        entry_32: int | None = None,
        reserved: tuple[tuple[int, int], ...] = (),
        initrd_addr_max: int = 0,
        cmdline_size: int = 0,
        is_linux: bool = False,
    ) -> None:
        self.kernel_load = kernel_load
        self.kernel_end = kernel_end
        self.setup_header = setup_header
        self.pvh_boot_cap = pvh_boot_cap
        self.load_base = load_base
        self.entry_64 = entry_64
        self.entry_32 = entry_32
        self.reserved = reserved
        self.initrd_addr_max = initrd_addr_max
        self.cmdline_size = cmdline_size
        self.is_linux = is_linux

    def __repr__(self) -> str:
        return (
            f"<KernelLoaderResult {self.kernel_load:#x}..{self.kernel_end:#x}"
            f" entry_64={_hex(self.entry_64)} entry_32={_hex(self.entry_32)} {self.pvh_boot_cap!r}>"
        )


def _hex(address: int | None) -> str:
    return "none" if address is None else f"{address:#x}"
