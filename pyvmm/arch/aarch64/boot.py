"""From image files to a guest that only has to be entered: kernel, initrd and device tree into RAM.

Linux Documentation/arch/arm64/booting.rst: an Image goes ``text_offset`` bytes above a 2 MiB boundary; the device tree,
of 2 MiB at most, on a multiple of 8, and for kernels before 4.2 within 512 MiB of the kernel; kernel and initrd
together within 32 GiB; X0 has the address of the device tree, X1 to X3 are zero, interrupts are masked, the MMU is off.

A vmlinux is the ELF file that the Image is made from, linked for virtual addresses: its segments keep their distances.
Any other ELF file goes where it says, and is entered the same way.

The device tree waits until the vCPUs and the interrupt controller are there, since it describes them; its place
is chosen, and claimed, with all others.
"""

from __future__ import annotations

import os

from loader import cmdline, elf, files, image, initrd
from loader.errors import LoaderError
from pyvmm.arch import images
from pyvmm.arch.aarch64 import fdt, layout
from pyvmm.arch.aarch64.devicetree import flatten_with, unflatten
from pyvmm.errors import HostError, ImageError, UsageError
from pyvmm.kvm import arm64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from loader.kernel_file import KernelFile
    from loader.result import KernelLoaderResult
    from pyvmm.arch.aarch64.devicetree import Node
    from pyvmm.arch.aarch64.gic import Gic
    from pyvmm.kvm import Vcpu
    from pyvmm.machine.spec import MachineSpec
    from pyvmm.memory import GuestMemory

MACHINE = "aarch64"
DTB_SIZE_MAX = 2 << 20
DTB_ROOM = 64 << 10  # more than 123 vCPUs and 32 devices take
DTB_DISTANCE = 512 << 20
IMAGE_ALIGNMENT = 2 << 20
SEED_BYTES, KASLR_SEED_BYTES = 32, 8
PSTATE_EL1H_MASKED = 0x3C5  # D, A, I and F masked; EL1 with a stack pointer of its own


class Entry:
    """How the first vCPU starts: ``pc``, and ``dtb``, the address and size of the room for the device tree.

    ``user_tree`` is the device tree the user gave, and its memory reservations; ``dump`` where the guest's is to be
    written.  ``needs_full_cpu`` says that the guest is a stock kernel.
    """

    __slots__ = ("chosen", "dtb", "dump", "needs_full_cpu", "pc", "user_tree", "virtio")

    def __init__(
        self,
        pc: int,
        dtb: tuple[int, int],
        chosen: fdt.Chosen,
        *,
        virtio: int,
        user_tree: tuple[Node, list[tuple[int, int]]] | None = None,
        dump: str | None = None,
        needs_full_cpu: bool,
    ) -> None:
        self.pc = pc
        self.dtb = dtb
        self.chosen = chosen
        self.virtio = virtio
        self.user_tree = user_tree
        self.dump = dump
        self.needs_full_cpu = needs_full_cpu


def open_image(path: str) -> KernelFile:
    """Open the kernel image, and find that it is one for this architecture.  Raises LoaderError."""
    return images.open_image(path, MACHINE)


def load(kernel: KernelFile, spec: MachineSpec, memory: GuestMemory) -> Entry:
    """Place everything; returns how to start.  Raises LoaderError, ImageError, UsageError or GuestMemoryError."""
    if spec.protocol != "auto":
        raise UsageError(f"the {spec.protocol} protocol is for x86_64", "leave --protocol out")
    layout.check_vcpus(spec.cpus)
    tree = _user_tree(spec.dtb) if spec.dtb is not None else None
    kernel.may_map = spec.map_files
    result, pc = _load_kernel(kernel, spec, memory)
    for start, size in result.reserved:
        memory.claim(start, size, "kernel")
    text = cmdline.check(spec.cmdline, result.cmdline_size)
    dtb = _dtb_room(memory, result, DTB_SIZE_MAX if tree is not None else DTB_ROOM)
    memory.claim(*dtb, "device tree")
    taken, limit = sorted((*result.reserved, dtb)), result.initrd_addr_max
    ramdisk = images.load_initrd(spec, memory, lambda size: _place(memory, size, taken, limit, "an initrd"))
    chosen = fdt.Chosen(
        text.decode() if isinstance(text, bytes) else text,
        ramdisk,
        os.urandom(SEED_BYTES),
        b"" if spec.kaslr is False else os.urandom(KASLR_SEED_BYTES),
    )
    return Entry(
        pc,
        dtb,
        chosen,
        virtio=len(spec.attachments),
        user_tree=tree,
        dump=spec.dump_dtb,
        needs_full_cpu=result.is_linux,
    )


def _load_kernel(
    kernel: KernelFile, spec: MachineSpec, memory: GuestMemory
) -> tuple[KernelLoaderResult, int]:
    """Load it; the result, and where it is entered."""
    if kernel.format.value != "ELF":
        result = image.load(memory, kernel, machine=MACHINE)
        assert result.entry_64 is not None
        return result, result.entry_64
    headers = elf.read_image(kernel, MACHINE)
    offset = _link_offset(headers.base, memory)
    result = elf.load(
        memory, kernel, offset, machine=MACHINE, image=headers, memory_is_zero=spec.poison is None
    )
    pc = result.entry_64
    if pc is None:
        raise ImageError(
            f"{spec.kernel}: its entry point is in none of its segments", "was it linked completely?"
        )
    return result, pc


def _link_offset(base: int, memory: GuestMemory) -> int | None:
    """What to add to the addresses of an ELF file that starts at ``base``: None if RAM is there, else what brings it to
    the start of RAM, as far from a 2 MiB boundary as it was linked."""
    if memory.contains(base, 1):
        return None
    (start, _) = memory.ranges[0]
    return start + base % IMAGE_ALIGNMENT - base


def _dtb_room(memory: GuestMemory, result: KernelLoaderResult, size: int) -> tuple[int, int]:
    """Where the device tree goes, as high as may be: (address, size)."""
    limit = result.load_base + DTB_DISTANCE - 1
    return _place(memory, size, result.reserved, limit, "device tree"), size


def _place(memory: GuestMemory, size: int, reserved: Sequence[tuple[int, int]], limit: int, name: str) -> int:
    """The highest free place up to ``limit`` (its last byte).  ImageError if there is none."""
    start, length = memory.ranges[0]
    try:
        return initrd.place(memory.ranges, size, reserved, limit, floor=start)
    except LoaderError:
        taken = sum(each for _, each in reserved)
        raise ImageError(
            f"there is no room for {name} of {size} bytes beside the {taken} bytes that are taken in "
            f"{length >> 20} MiB of memory",
            "give the machine more with --memory",
        ) from None


def _user_tree(path: str) -> tuple[Node, list[tuple[int, int]]]:
    """The device tree in the user's file.  Raises LoaderError, ImageError."""
    with files.open_file(path) as file:
        if file.size > DTB_SIZE_MAX // 2:
            raise ImageError(
                f"{path}: {file.size} bytes are too many for a device tree",
                "a kernel takes 2 MiB, additions included",
            )
        return unflatten(file.read(0, file.size), path)


def write_device_tree(vcpus: Sequence[Vcpu], memory: GuestMemory, start: Entry, gic: Gic) -> None:
    """Write the device tree to its place: the machine's own, or the user's with the machine's RAM and /chosen.

    Raises ImageError if it does not fit, HostError if it cannot be dumped.
    """
    if start.user_tree is not None:
        root, reservations = start.user_tree
        fdt.choose(root, start.chosen)
        try:
            fdt.describe_memory(root, memory.ranges)
        except OverflowError:
            raise ImageError(
                "the device tree's #address-cells and #size-cells do not suit the machine's memory",
                "give them the value 2",
            ) from None
    else:
        mpidrs = [vcpu.get_one_reg(arm64.MPIDR_EL1) for vcpu in vcpus]
        root = fdt.build(ram=memory.ranges, mpidrs=mpidrs, gic=gic, virtio=start.virtio, chosen=start.chosen)
        reservations = []
    blob = flatten_with(root, reservations)
    address, room = start.dtb
    if len(blob) > room:
        raise ImageError(
            f"the device tree has {len(blob)} bytes, and there is room for {room}",
            "give a shorter command line",
        )
    memory.write(address, blob)
    if start.dump is not None:
        try:
            with open(start.dump, "wb") as out:
                out.write(blob)
        except OSError as error:
            raise HostError(
                f"cannot write the device tree to {start.dump}: {error.strerror}", "choose a writable place"
            ) from None


def enter(vcpu: Vcpu, memory: GuestMemory, start: Entry) -> None:
    """Set the first vCPU's registers so that it begins as booting.rst says; KVM's reset has the MMU off."""
    vcpu.set_one_reg(arm64.PSTATE, PSTATE_EL1H_MASKED)
    vcpu.set_one_reg(arm64.PC, start.pc)
    vcpu.set_one_reg(arm64.X[0], start.dtb[0])
    for register in arm64.X[1:4]:
        vcpu.set_one_reg(register, 0)
