"""From image files to a guest that only has to be entered: kernel, initrd, command line and tables into RAM.

Linux Documentation/arch/x86/boot.rst for the Linux protocols, and the Xen documentation, misc/pvh, for PVH.
What is placed is claimed in guest memory, so that nothing can stand on anything else.

A bzImage unpacks itself in the guest.  Where this host can have the vmlinux inside it (:mod:`pyvmm.kernel_cache`),
that is loaded instead, to the place it would have been unpacked to, with the bzImage's own header in the zero page.
"""

from __future__ import annotations

import os

from loader import bzimage, cmdline, elf, initrd
from loader.enums import PVH_ADDRESS_MAX, LoadFlags, SetupDataType, XLoadFlags
from loader.errors import LoaderError
from pyvmm.arch import images
from pyvmm.arch.x86_64 import acpi, entry, layout, mptable
from pyvmm.errors import ImageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.bzimage import BzImageHeader
    from loader.elf import ElfImage
    from loader.files import ImageFile
    from loader.kernel_file import KernelFile
    from loader.result import KernelLoaderResult
    from pyvmm.kvm import Vcpu
    from pyvmm.machine.spec import MachineSpec
    from pyvmm.memory import GuestMemory

RNG_SEED_BYTES = 32


class Entry:
    """How the first vCPU starts: ``protocol``, ``rip``, and ``params``, the address of what the guest is told.

    ``needs_full_cpu`` says that the guest is a kernel that no software KVM can run.
    """

    __slots__ = ("needs_full_cpu", "params", "protocol", "rip")

    def __init__(self, protocol: str, rip: int, params: int, *, needs_full_cpu: bool) -> None:
        self.protocol = protocol
        self.rip = rip
        self.params = params
        self.needs_full_cpu = needs_full_cpu


def open_image(path: str) -> KernelFile:
    """Open the kernel image, and find that it is one for this architecture.  Raises LoaderError."""
    return images.open_image(path, "x86_64")


def load(kernel: KernelFile, spec: MachineSpec, memory: GuestMemory) -> Entry:
    """Place everything; returns how to start.  Raises LoaderError, ImageError or GuestMemoryError."""
    if spec.dtb is not None or spec.dump_dtb is not None:
        raise UsageError("an x86_64 machine has no device tree", "leave out --dtb and --dump-dtb")
    header = bzimage.read_header(kernel) if kernel.format.value == "bzImage" else None
    kernel.may_map = spec.map_files
    result, moved = _load_kernel(kernel, header, spec, memory)
    protocol, rip = _choose(spec, kernel, header, result)
    for start, size in _merged(result.reserved):
        memory.claim(start, size, "kernel")

    text = cmdline.check(spec.cmdline, min(result.cmdline_size, layout.COMMAND_LINE_SIZE - 1))
    memory.claim(layout.COMMAND_LINE, len(text) + 1, "command line")
    cmdline.load_cmdline(memory, layout.COMMAND_LINE, text)
    limit = PVH_ADDRESS_MAX if protocol == "pvh" else result.initrd_addr_max
    ramdisk = images.load_initrd(
        spec, memory, lambda size: initrd.place(memory.ranges, size, result.reserved, limit)
    )
    _place(
        memory, layout.ACPI_TABLES, acpi.build(spec.cpus, extra_devices=_virtio_devices(spec)), "ACPI tables"
    )
    _place(memory, layout.MP_TABLE, mptable.build(spec.cpus), "MP table")
    _place(memory, layout.RESET_STUB, layout.RESET_STUB_CODE, "reset stub")

    if protocol == "pvh":
        params = _write_start_info(spec, memory, ramdisk)
    else:
        params = _write_zero_page(spec, memory, header, result, ramdisk, moved=moved)
    return Entry(protocol, rip, params, needs_full_cpu=result.is_linux)


def _virtio_devices(spec: MachineSpec) -> list[bytes]:
    """What the DSDT says of each attachment."""
    devices = []
    for index in range(len(spec.attachments)):
        base, gsi = layout.virtio_slot(index)
        devices.append(acpi.virtio_mmio(f"VR{index:02}", index, base, layout.PAGE_SIZE, gsi))
    return devices


def _load_kernel(
    kernel: KernelFile, header: BzImageHeader | None, spec: MachineSpec, memory: GuestMemory
) -> tuple[KernelLoaderResult, bool]:
    """Load it; the result, and whether it was moved to a random virtual address.

    A bzImage is moved by default, as it would move itself; a vmlinux if asked for.
    """
    zeroed = spec.poison is None
    if header is None:
        image = elf.read_image(kernel, kernel.machine)
        result = elf.load(memory, kernel, machine=kernel.machine, image=image, memory_is_zero=zeroed)
        return result, bool(spec.kaslr) and _move(spec, memory, kernel, image, result, None)
    if spec.extract and spec.protocol == "auto" and header.xloadflags & XLoadFlags.KERNEL_64:
        unpacked = _load_unpacked(kernel, header, spec, memory)
        if unpacked is not None:
            return unpacked
    return bzimage.load(memory, kernel, bzimage.place(memory, header), header=header), False


def _load_unpacked(
    kernel: KernelFile, header: BzImageHeader, spec: MachineSpec, memory: GuestMemory
) -> tuple[KernelLoaderResult, bool] | None:
    """Load the vmlinux that a bzImage holds; None if it cannot be had, or would not start as the bzImage does.

    The 64-bit entry of a vmlinux needs of the boot protocol only the zero page and the identity map (Linux
    arch/x86/kernel/head_64.S, startup_64); linked for the address it is at, it relocates nothing.  What the header
    says of limits holds for it as well.
    """
    from pyvmm import kernel_cache

    if not memory.contains(header.pref_address, header.init_size):
        return None  # the bzImage knows better what it needs, and says so
    vmlinux = kernel_cache.vmlinux(kernel, header)
    if vmlinux is None:
        return None
    # Copied, since a guest whose image is mapped starts slower than the copy takes: from entry to its first message,
    # measured in the lab, 0.4 to 0.7 s copied and 1.9 s or more mapped.
    vmlinux.may_map = False
    with vmlinux:
        try:
            image = elf.read_image(vmlinux)
            starts_here = any(segment.paddr <= image.entry < segment.end for segment in image.segments)
            if not (image.is_linux and starts_here and image.base == header.pref_address):
                return None
            # From entry to its first message, in the lab: 0.5 to 0.7 s in huge pages, 1.2 s or more in small ones.
            memory.prefer_huge_pages(header.pref_address, header.init_size)
            result = elf.load(memory, vmlinux, image=image, memory_is_zero=spec.poison is None)
        except LoaderError:  # too little memory for one: the bzImage knows better what it needs
            return None
        moved = spec.kaslr is not False and _move(spec, memory, vmlinux, image, result, header)
    result.initrd_addr_max = header.initrd_addr_max
    result.cmdline_size = header.cmdline_size
    result.reserved = tuple(sorted((*result.reserved, (result.load_base, header.init_size))))
    return result, moved


def _move(
    spec: MachineSpec,
    memory: GuestMemory,
    file: ImageFile,
    image: ElfImage,
    result: KernelLoaderResult,
    header: BzImageHeader | None,
) -> bool:
    """Give a loaded vmlinux a random virtual address, unless the command line says ``nokaslr``.

    One that cannot be moved stays, and is an error only if it was to be moved by all means.
    """
    from loader import relocation
    from loader.relocation_errors import RelocationError

    if not relocation.wanted(spec.cmdline):
        return False
    if spec.protocol not in ("auto", "linux64"):
        raise UsageError(
            f"--kaslr is for the 64-bit entry, not the {spec.protocol} protocol", "leave one out"
        )
    try:
        if header is None:
            relocation.kaslr(memory, file, image, result)
        else:
            alignment, room = header.kernel_alignment, header.init_size
            relocation.kaslr(memory, file, image, result, alignment=alignment, room=room)
    except RelocationError:
        if spec.kaslr:
            raise
        return False
    return True


def _choose(
    spec: MachineSpec, kernel: KernelFile, header: BzImageHeader | None, result: KernelLoaderResult
) -> tuple[str, int]:
    """The boot protocol and the entry point; ImageError if the image does not have the one asked for.

    Left to us, a Linux kernel for 64 bits is entered in 64-bit mode, which spares it its own way there, and an
    image that only has a PVH note, by that.
    """
    pvh = result.pvh_boot_cap.entry
    entries = {
        "linux64": result.entry_64 if header is not None or kernel.machine == "x86_64" else None,
        "linux32": result.entry_32,
        "pvh": pvh,
    }
    order = ("linux64", "linux32", "pvh") if result.is_linux or pvh is None else ("pvh", "linux64")
    has = [name for name in order if entries[name] is not None]
    wanted = spec.protocol if spec.protocol != "auto" else (has[0] if has else "auto")
    rip = entries.get(wanted)
    if rip is None:
        known = f"it can be booted by {' or '.join(has)}" if has else "it has no entry that pyvmm knows"
        raise ImageError(
            f"{spec.kernel}: {kernel.description}, cannot be booted by the {wanted} protocol", known
        )
    return wanted, rip


def _merged(ranges: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Ascending (start, size) ranges, those that touch or overlap made one."""
    merged: list[tuple[int, int]] = []
    for start, size in ranges:
        if merged and start <= sum(merged[-1]):
            first, length = merged[-1]
            merged[-1] = (first, max(length, start + size - first))
        else:
            merged.append((start, size))
    return merged


def _place(memory: GuestMemory, address: int, data: bytes, name: str) -> None:
    memory.claim(address, len(data), name)
    memory.write(address, data)


def _write_zero_page(
    spec: MachineSpec,
    memory: GuestMemory,
    header: BzImageHeader | None,
    result: KernelLoaderResult,
    ramdisk: tuple[int, int] | None,
    *,
    moved: bool,
) -> int:
    from loader.configurator import linux

    setup_data = 0
    if linux.accepts_setup_data(header, SetupDataType.RNG_SEED):
        setup_data = layout.SETUP_DATA
        seed = [(SetupDataType.RNG_SEED, os.urandom(RNG_SEED_BYTES))]
        end = linux.write_setup_data(memory, setup_data, seed)
        memory.claim(setup_data, end - setup_data, "setup_data")
    params = linux.build(
        header,
        result,
        e820=layout.e820(spec.memory),
        cmdline_addr=layout.COMMAND_LINE,
        initrd=ramdisk,
        acpi_rsdp_addr=layout.ACPI_TABLES,
        setup_data_addr=setup_data,
    )
    if moved:
        params.hdr.loadflags |= LoadFlags.KASLR_FLAG
    memory.claim(layout.ZERO_PAGE, linux.ZERO_PAGE_SIZE, "zero page")
    linux.write(memory, layout.ZERO_PAGE, params)
    return layout.ZERO_PAGE


def _write_start_info(spec: MachineSpec, memory: GuestMemory, ramdisk: tuple[int, int] | None) -> int:
    from loader.configurator import pvh

    params = pvh.build(
        layout.PVH_START_INFO,
        memmap=layout.e820(spec.memory),
        cmdline_addr=layout.COMMAND_LINE,
        rsdp_addr=layout.ACPI_TABLES,
        modules=[ramdisk] if ramdisk is not None else [],
    )
    memory.claim(layout.PVH_START_INFO, layout.ZERO_PAGE - layout.PVH_START_INFO, "PVH start_info")
    pvh.write(memory, layout.PVH_START_INFO, params)
    return layout.PVH_START_INFO


def enter(vcpu: Vcpu, memory: GuestMemory, start: Entry) -> None:
    """Set the first vCPU's registers so that it begins as the protocol says."""
    if start.protocol == "linux64":
        entry.enter_long_mode(vcpu, memory, rip=start.rip, rsi=start.params)
    elif start.protocol == "linux32":
        entry.enter_protected_mode(vcpu, memory, rip=start.rip, esi=start.params)
    else:
        entry.enter_protected_mode(vcpu, memory, rip=start.rip, ebx=start.params)
