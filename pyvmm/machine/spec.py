"""What the user asked for: a machine in a few plain values, checked before anything is built."""

from __future__ import annotations

import re

from pyvmm.arch import DEFAULT_CMDLINE
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.machine.attachments.base import Attachment

PROTOCOLS = ("auto", "linux64", "linux32", "pvh")
DEFAULT_MEMORY = 512 << 20

_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def parse_size(text: str, *, default_unit: str = "m") -> int:
    """Bytes for ``512M``, ``1G``, ``64k``, ``1GiB``; a bare number is in ``default_unit`` (mebibytes).

    Units are powers of 1024.  Raises UsageError.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a size", "write it as a number and a unit: 512M, 1G")
    number, unit = int(match[1]), match[2].lower()
    return number << _SHIFT[unit or default_unit]


class MachineSpec:
    """A machine to be built.

    ``memory`` is in bytes, ``timeout`` in seconds (None: no limit).  ``initrd`` is a path, or bytes that
    stand for a file's content.  ``expect`` texts end the run when all of them have been seen; ``require``
    texts must have been seen when the guest ends.  ``poison`` fills RAM with that byte first.
    ``extract`` lets the host unpack a bzImage, where it can, instead of the guest.  ``kaslr``: move a vmlinux to a
    random virtual address; None moves what a bzImage holds, as it would move itself.  ``map_files`` lets guest RAM
    be the files themselves, privately, instead of copies: quicker to set up, slower for the guest, and the files
    must not be written to meanwhile.  ``dtb`` is a device tree that the guest is given instead of the
    machine's own, and ``dump_dtb`` a file that the guest's is written to (aarch64).
    ``interactive`` says whether standard input goes to the guest, ``show_console`` whether its console goes to standard
    output.  ``attachments`` are the virtio devices, in order.
    """

    __slots__ = (
        "attachments",
        "cmdline",
        "coalesce",
        "console_log",
        "cpus",
        "dtb",
        "dump_dtb",
        "expect",
        "extract",
        "huge_pages",
        "initrd",
        "interactive",
        "kaslr",
        "kernel",
        "map_files",
        "memory",
        "poison",
        "protocol",
        "require",
        "show_console",
        "timeout",
    )

    def __init__(
        self,
        kernel: str,
        *,
        cmdline: str = DEFAULT_CMDLINE,
        initrd: str | bytes | None = None,
        memory: int = DEFAULT_MEMORY,
        cpus: int = 1,
        protocol: str = "auto",
        timeout: float | None = None,
        expect: Sequence[str] = (),
        require: Sequence[str] = (),
        console_log: str | None = None,
        huge_pages: bool = False,
        poison: int | None = None,
        coalesce: bool = True,
        extract: bool = True,
        kaslr: bool | None = None,
        map_files: bool = False,
        interactive: bool = True,
        show_console: bool = True,
        dtb: str | None = None,
        dump_dtb: str | None = None,
        attachments: Sequence[Attachment] = (),
    ) -> None:
        if protocol not in PROTOCOLS:
            raise UsageError(
                f"there is no boot protocol '{protocol}'", f"choose one of {', '.join(PROTOCOLS)}"
            )
        if timeout is not None and not timeout > 0:
            raise UsageError(f"a timeout of {timeout:g} s makes no sense", "give a number of seconds above 0")
        if any(not text for text in (*expect, *require)):
            raise UsageError("an empty text cannot be expected", "give --expect some text")
        if poison is not None and not 0 <= poison <= 0xFF:
            raise UsageError(f"poison {poison:#x} is not a byte", "give a value from 0 to 0xff")
        if cpus < 1:
            raise UsageError(f"a machine with {cpus} vCPUs makes no sense", "give --cpus 1 or more")
        self.kernel = kernel
        self.cmdline = cmdline
        self.initrd = initrd
        self.memory = memory
        self.cpus = cpus
        self.protocol = protocol
        self.timeout = timeout
        self.expect = tuple(expect)
        self.require = tuple(require)
        self.console_log = console_log
        self.huge_pages = huge_pages
        self.poison = poison
        self.coalesce = coalesce
        self.extract = extract
        self.kaslr = kaslr
        self.map_files = map_files
        self.interactive = interactive
        self.show_console = show_console
        self.dtb = dtb
        self.dump_dtb = dump_dtb
        self.attachments = tuple(attachments)
