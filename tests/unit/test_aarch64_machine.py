"""The Arm machine, built against a stand-in for arm64's KVM that refuses what comes in the wrong order."""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from arm64_kvm import ITS, V2, V3, Arm64Kvm
from conftest import ROOT

from loader.errors import LoaderError
from pyvmm import arch as architectures
from pyvmm.arch import aarch64
from pyvmm.arch.aarch64 import devicetree, layout
from pyvmm.arch.aarch64.memory import vm_type
from pyvmm.errors import CapabilityMissing, HostError, ImageError, KvmMissing, PyvmmError, UsageError
from pyvmm.kvm import KvmError, System, arm64, uapi_arm64
from pyvmm.kvm.uapi import Cap
from pyvmm.machine.attachments import attachment
from pyvmm.machine.build import build
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import Outcome
from pyvmm.machine.runner import GuestEnded
from pyvmm.machine.spec import MachineSpec

MIB = 1 << 20
MASKED_EL1H = 0x3C5


def image(text_offset: int = 0, image_size: int = 0x30000, size: int = 0x10000) -> bytes:
    """An arm64 Image: the header of booting.rst, and nothing after it."""
    header = struct.pack("<2I6Q2I", 0x14000010, 0, text_offset, image_size, 0b1010, 0, 0, 0, 0x644D5241, 0)
    return header.ljust(size, b"\xaa")


def elf(entry: int, address: int, content: bytes) -> bytes:
    """An ELF file for aarch64 of one segment."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 183, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    program = struct.pack("<2I6Q", 1, 5, 0x1000, address, address, len(content), len(content), 0x1000)
    return (head + program).ljust(0x1000, b"\0") + content


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> Arm64Kvm:
    found = Arm64Kvm()
    found.install(monkeypatch)
    monkeypatch.setattr("pyvmm.arch.host", lambda: aarch64)
    return found


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "Image"
    path.write_bytes(image())
    return str(path)


def tree_of(machine: Machine) -> devicetree.Node:
    """The device tree the guest finds by X0."""
    address = machine.runners[0].vcpu.get_one_reg(arm64.X[0])
    assert address % 8 == 0
    total = int.from_bytes(machine.memory.read(address + 4, 4), "big")
    return devicetree.unflatten(machine.memory.read(address, total))[0]


def node(root: devicetree.Node, name: str) -> devicetree.Node:
    (found,) = [child for child in root.children if child.name == name]
    return found


def test_a_machine_is_built_in_the_order_that_kvm_asks_for(kvm: Arm64Kvm, kernel: str) -> None:
    with build(MachineSpec(kernel, cpus=3, memory=128 * MIB, interactive=False)):
        assert kvm.vm_type == 36
        assert kvm.slots == [(layout.RAM, 128 * MIB)]
        common = [
            uapi_arm64.KVM_ARM_VCPU_PSCI_0_2,
            uapi_arm64.KVM_ARM_VCPU_SVE,
            uapi_arm64.KVM_ARM_VCPU_PTRAUTH_ADDRESS,
            uapi_arm64.KVM_ARM_VCPU_PTRAUTH_GENERIC,
        ]
        off = [uapi_arm64.KVM_ARM_VCPU_POWER_OFF]
        assert kvm.features == {0: common, 1: off + common, 2: off + common}
        assert kvm.finalized == {0, 1, 2}
        assert kvm.initialised == {V3, ITS}
        assert kvm.interrupts == 96
        assert kvm.addresses == {
            uapi_arm64.KVM_VGIC_V3_ADDR_TYPE_DIST: layout.GIC_DISTRIBUTOR,
            uapi_arm64.KVM_VGIC_V3_ADDR_TYPE_REDIST: layout.GIC_REDISTRIBUTORS,
            uapi_arm64.KVM_VGIC_ITS_ADDR_TYPE: layout.GIC_ITS,
        }
        last_vcpu = max(at for at, name in enumerate(kvm.calls) if name == "KVM_ARM_VCPU_FINALIZE")
        assert kvm.calls.index("KVM_CREATE_DEVICE") > last_vcpu


def test_the_first_vcpu_starts_as_booting_rst_says(kvm: Arm64Kvm, kernel: str) -> None:
    with build(MachineSpec(kernel, cpus=2, memory=128 * MIB, interactive=False)) as machine:
        registers = kvm.registers[0]
        assert registers[arm64.PSTATE] == MASKED_EL1H
        assert registers[arm64.PC] == layout.RAM
        assert [registers[each] for each in arm64.X[1:4]] == [0, 0, 0]
        assert machine.memory.read(registers[arm64.PC], 4) == struct.pack("<I", 0x14000010)
        assert arm64.PC not in kvm.registers[1]
        assert not aarch64.is_halted(machine.runners[0].vcpu)
        assert aarch64.is_halted(machine.runners[1].vcpu)


def test_the_device_tree_says_what_was_built(kvm: Arm64Kvm, kernel: str, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"x" * 5000)
    spec = MachineSpec(
        kernel, cmdline="console=ttyAMA0 quiet", initrd=str(initrd), cpus=18, memory=128 * MIB, interactive=False,
        attachments=[attachment("rng").parse("")],
    )  # fmt: skip
    with build(spec) as machine:
        root = tree_of(machine)
        chosen = node(root, "chosen").properties
        assert chosen["bootargs"] == b"console=ttyAMA0 quiet\0"
        start, end = (int.from_bytes(chosen[f"linux,initrd-{edge}"], "big") for edge in ("start", "end"))
        assert end - start == 5000 and machine.memory.read(start, 5000) == b"x" * 5000
        assert len(set(chosen["rng-seed"])) > 4 and len(chosen["kaslr-seed"]) == 8
        memory = node(root, f"memory@{layout.RAM:x}").properties
        assert memory["reg"] == struct.pack(">2Q", layout.RAM, 128 * MIB)
        cpus = node(root, "cpus").children
        assert [int.from_bytes(cpu.properties["reg"], "big") for cpu in cpus] == [*range(16), 0x100, 0x101]
        gic = node(root, f"intc@{layout.GIC_DISTRIBUTOR:x}")
        assert struct.unpack(">4Q", gic.properties["reg"])[2:] == (layout.GIC_REDISTRIBUTORS, 18 * 0x20000)
        assert [child.name for child in gic.children] == [f"its@{layout.GIC_ITS:x}"]
        virtio = node(root, f"virtio@{layout.VIRTIO:x}").properties
        assert struct.unpack(">3I", virtio["interrupts"]) == (0, kvm.irqfds[0], 1)
        assert node(root, "psci").properties["method"] == b"hvc\0"


def test_devices_answer_where_the_tree_says(kvm: Arm64Kvm, kernel: str) -> None:
    spec = MachineSpec(kernel, cmdline="console=ttyAMA0", memory=128 * MIB, interactive=False)
    with build(spec) as machine:
        root = tree_of(machine)
        uart = node(root, f"serial@{layout.UART:x}").properties
        identification = [machine.bus.mmio_read(layout.UART + 0xFE0 + 4 * each, 4) for each in range(4)]
        assert bytes(identification)[::-1] == uart["arm,primecell-periphid"]
        clock = node(root, f"rtc@{layout.RTC:x}").properties
        identification = [machine.bus.mmio_read(layout.RTC + 0xFE0 + 4 * each, 4) for each in range(4)]
        assert bytes(identification)[::-1] == clock["arm,primecell-periphid"]
        assert kvm.zones == [(layout.UART, 4, 0)]
        # The interrupt that the tree names goes up with input, once it is enabled.
        machine.bus.mmio_write(layout.UART + 0x38, 0x50, 4)
        machine.serial.receive(b"a")
        _, spi, _ = struct.unpack(">3I", uart["interrupts"])
        assert kvm.lines == [(1 << 24 | spi + 32, 1)]


@pytest.mark.parametrize("cmdline", ["quiet console=ttyS0,115200", "earlycon=uart8250,mmio,0x9000000"])
def test_a_16550_where_the_command_line_asks_for_it(kvm: Arm64Kvm, kernel: str, cmdline: str) -> None:
    with build(MachineSpec(kernel, cmdline=cmdline, memory=128 * MIB, interactive=False)) as machine:
        uart = node(tree_of(machine), f"serial@{layout.UART:x}").properties
        assert uart["compatible"] == b"ns16550a\0"
        assert struct.unpack(">3I", uart["interrupts"]) == (0, layout.UART_SPI, 1)
        assert machine.bus.mmio_read(layout.UART + 5, 1) == 0x60, "LSR: nothing to read, all is sent"
        machine.bus.mmio_write(layout.UART + 7, 0x5A, 1)
        assert machine.bus.mmio_read(layout.UART + 7, 1) == 0x5A, "SCR"
        machine.bus.mmio_write(layout.UART, ord("x"), 1)
        assert machine.bus.mmio_read(layout.UART + 8, 1) == 0, "there is no ninth register"
        machine.bus.mmio_write(layout.UART + 8, 1, 1)
        machine.console.collect()
        assert machine.console.tail() == "x"
        assert (layout.UART, 1, 0) in kvm.zones


@pytest.mark.parametrize(
    ("devices", "version", "its"),
    [((V3, ITS), 3, True), ((V3,), 3, False), ((V2,), 2, False), ((V2, V3), 3, False)],
)
def test_the_best_interrupt_controller_is_taken(
    kvm: Arm64Kvm, kernel: str, devices: tuple[int, ...], version: int, its: bool
) -> None:
    kvm.devices = devices
    with build(MachineSpec(kernel, cpus=2, memory=128 * MIB, interactive=False)) as machine:
        gic = node(tree_of(machine), f"intc@{layout.GIC_DISTRIBUTOR:x}")
        timer = struct.unpack(">12I", node(tree_of(machine), "timer").properties["interrupts"])
    assert gic.properties["compatible"] == (b"arm,gic-v3\0" if version == 3 else b"arm,cortex-a15-gic\0")
    assert bool(gic.children) is its
    assert kvm.initialised == ({V3, ITS} if its else {V3} if version == 3 else {V2})
    assert timer[1::3] == (13, 14, 11, 10)
    assert set(timer[2::3]) == ({4} if version == 3 else {0x304})


def test_without_an_interrupt_controller_there_is_no_machine(kvm: Arm64Kvm, kernel: str) -> None:
    kvm.devices = ()
    with pytest.raises(CapabilityMissing, match="interrupt controller"):
        build(MachineSpec(kernel, memory=128 * MIB, interactive=False))


@pytest.mark.parametrize(("devices", "cpus", "most"), [((V2,), 9, 8), ((V3, ITS), 124, 123)])
def test_more_vcpus_than_the_interrupt_controller_serves(
    kvm: Arm64Kvm, kernel: str, devices: tuple[int, ...], cpus: int, most: int
) -> None:
    kvm.devices = devices
    with pytest.raises(UsageError, match=f"more than the {most}"):
        build(MachineSpec(kernel, cpus=cpus, memory=128 * MIB, interactive=False))


def test_what_the_processor_lacks_is_not_asked_for(kvm: Arm64Kvm, kernel: str) -> None:
    kvm.capabilities.update({Cap.ARM_SVE: 0, Cap.ARM_PTRAUTH_GENERIC: 0, Cap.ARM_NISV_TO_USER: 0})
    with build(MachineSpec(kernel, memory=128 * MIB, interactive=False)):
        assert kvm.features == {0: [uapi_arm64.KVM_ARM_VCPU_PSCI_0_2]}
        assert "KVM_ARM_VCPU_FINALIZE" not in kvm.calls and "KVM_ENABLE_CAP" not in kvm.calls


@pytest.mark.parametrize(
    ("limit", "size", "type"),
    [(0, 512 * MIB, 0), (36, 512 * MIB, 36), (44, 512 * MIB, 36), (44, 200 << 30, 38), (36, 63 << 30, 36)],
)
def test_guest_addresses_have_as_many_bits_as_are_needed(
    kvm: Arm64Kvm, limit: int, size: int, type: int
) -> None:
    kvm.capabilities[Cap.ARM_VM_IPA_SIZE] = limit
    with System("/dev/null") as system:
        assert vm_type(system, [(layout.RAM, size)]) == type


def test_more_memory_than_the_host_can_address(kvm: Arm64Kvm) -> None:
    kvm.capabilities[Cap.ARM_VM_IPA_SIZE] = 36
    with System("/dev/null") as system, pytest.raises(CapabilityMissing, match="37 bits"):
        vm_type(system, [(layout.RAM, 64 << 30)])


@pytest.mark.parametrize(
    ("offset", "size", "at"), [(0, 0x30000, 0), (0x80000, 0, 0x80000), (0x10000, 0x30000, 0x10000)]
)
def test_an_image_stands_text_offset_above_2_mib(
    kvm: Arm64Kvm, tmp_path: Path, offset: int, size: int, at: int
) -> None:
    path = tmp_path / "Image"
    path.write_bytes(image(offset, size))
    with build(MachineSpec(str(path), memory=64 * MIB, interactive=False)):
        assert kvm.registers[0][arm64.PC] == layout.RAM + at


def test_a_compressed_image_is_unpacked(kvm: Arm64Kvm, tmp_path: Path) -> None:
    path = tmp_path / "Image.gz"
    path.write_bytes(gzip.compress(image()))
    with build(MachineSpec(str(path), memory=64 * MIB, interactive=False)) as machine:
        assert machine.memory.read(layout.RAM, 0x10000) == image()


def test_a_vmlinux_is_moved_from_its_virtual_addresses(kvm: Arm64Kvm, tmp_path: Path) -> None:
    base = 0xFFFF_8000_8000_0000 + 0x1_0000
    path = tmp_path / "vmlinux"
    path.write_bytes(elf(base + 0x40, base, b"\x5a" * 0x2000))
    with build(MachineSpec(str(path), memory=64 * MIB, interactive=False)) as machine:
        assert kvm.registers[0][arm64.PC] == layout.RAM + 0x1_0040
        assert machine.memory.read(layout.RAM + 0x1_0000, 0x2000) == b"\x5a" * 0x2000


def test_an_elf_file_for_the_machine_stays_where_it_is_linked(kvm: Arm64Kvm, tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(elf(layout.RAM + 0x8_0000, layout.RAM + 0x8_0000, b"\x5a" * 64))
    with build(MachineSpec(str(path), memory=64 * MIB, interactive=False)) as machine:
        assert kvm.registers[0][arm64.PC] == layout.RAM + 0x8_0000
        assert machine.memory.read(layout.RAM + 0x8_0000, 64) == b"\x5a" * 64


def test_kernel_device_tree_and_initrd_stand_apart(kvm: Arm64Kvm, kernel: str) -> None:
    with build(MachineSpec(kernel, initrd=b"i" * 3 * MIB, memory=6 * MIB, interactive=False)) as machine:
        claims = sorted(machine.memory.claims, key=lambda claim: claim.start)
        assert {claim.name for claim in claims} == {"kernel", "device tree", "initrd"}
        assert all(low.end <= high.start for low, high in itertools.pairwise(claims))
        assert claims[-1].end <= layout.RAM + 6 * MIB


def test_what_finds_no_room_is_said_before_kvm_is_touched(kvm: Arm64Kvm, kernel: str) -> None:
    with pytest.raises(ImageError, match="no room for an initrd"):
        build(MachineSpec(kernel, initrd=b"i" * 7 * MIB, memory=6 * MIB, interactive=False))
    assert kvm.calls == []


def test_a_device_tree_of_the_user_s_own(kvm: Arm64Kvm, kernel: str, tmp_path: Path) -> None:
    root = devicetree.Node("", {"compatible": devicetree.strings("acme,board")})
    root.add("chosen", {"acme,mode": devicetree.cells(7), "bootargs": devicetree.strings("theirs")})
    root.add("memory", {"device_type": devicetree.strings("memory"), "reg": devicetree.wide(0, 1 << 40)})
    path, dump = tmp_path / "board.dtb", tmp_path / "dumped.dtb"
    path.write_bytes(devicetree.flatten_with(root, [(0x4100_0000, 0x1000)]))
    spec = MachineSpec(
        kernel,
        cmdline="ours",
        memory=64 * MIB,
        interactive=False,
        kaslr=False,
        dtb=str(path),
        dump_dtb=str(dump),
    )
    with build(spec) as machine:
        found = tree_of(machine)
        address = kvm.registers[0][arm64.X[0]]
        assert machine.memory.read(address, dump.stat().st_size) == dump.read_bytes()
    assert found.properties == root.properties
    (memory,) = [child for child in found.children if child.name.startswith("memory")]
    assert memory.properties["reg"] == struct.pack(">QI", layout.RAM, 64 * MIB)  # cells by default: 2 and 1
    chosen = node(found, "chosen").properties
    assert chosen["bootargs"] == b"ours\0" and chosen["acme,mode"] == devicetree.cells(7)
    assert "kaslr-seed" not in chosen
    assert devicetree.unflatten(dump.read_bytes())[1] == [(0x4100_0000, 0x1000)]


@pytest.mark.parametrize("count", [0, 5, 0xFFFF_FFFF])
def test_a_device_tree_whose_cells_do_not_suit(
    kvm: Arm64Kvm, kernel: str, tmp_path: Path, count: int
) -> None:
    path = tmp_path / "board.dtb"
    path.write_bytes(devicetree.flatten(devicetree.Node("", {"#address-cells": devicetree.cells(count)})))
    with pytest.raises(ImageError, match="do not suit the machine's memory"):
        build(MachineSpec(kernel, memory=64 * MIB, interactive=False, dtb=str(path)))


def test_a_device_tree_that_is_none(kvm: Arm64Kvm, kernel: str, tmp_path: Path) -> None:
    path = tmp_path / "board.dtb"
    path.write_bytes(b"no tree")
    with pytest.raises(ImageError, match=r"board\.dtb: not a device tree"):
        build(MachineSpec(kernel, memory=64 * MIB, interactive=False, dtb=str(path)))


def test_a_dump_that_cannot_be_written(kvm: Arm64Kvm, kernel: str, tmp_path: Path) -> None:
    with pytest.raises(PyvmmError, match="cannot write the device tree"):
        build(MachineSpec(kernel, memory=64 * MIB, interactive=False, dump_dtb=str(tmp_path)))


def test_protocols_of_the_pc_and_its_kernels_are_refused(kvm: Arm64Kvm, kernel: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pvh protocol is for x86_64"):
        build(MachineSpec(kernel, protocol="pvh", memory=64 * MIB, interactive=False))
    other = tmp_path / "vmlinux"
    other.write_bytes(elf(0, 0, b"x").replace(struct.pack("<HH", 2, 183), struct.pack("<HH", 2, 62), 1))
    with pytest.raises(LoaderError, match="and the machine is aarch64"):
        build(MachineSpec(str(other), memory=64 * MIB, interactive=False))


def test_a_guest_ends_with_a_status_of_its_own(kvm: Arm64Kvm, kernel: str) -> None:
    with build(MachineSpec(kernel, memory=64 * MIB, interactive=False)) as machine:
        with pytest.raises(GuestEnded) as caught:
            machine.bus.mmio_write(layout.GUEST_STATUS, 300, 4)
        assert (caught.value.end.outcome, caught.value.end.status) == (Outcome.EXIT, 255)


def test_the_virtual_counter_stands_still_in_a_pause(kvm: Arm64Kvm, kernel: str) -> None:
    with build(MachineSpec(kernel, memory=64 * MIB, interactive=False)) as machine:
        vcpus = [runner.vcpu for runner in machine.runners]
        kvm.registers[0][uapi_arm64.KVM_REG_ARM_TIMER_CNT] = 1000
        noted = aarch64.pause_clock(machine.vm, vcpus)
        kvm.registers[0][uapi_arm64.KVM_REG_ARM_TIMER_CNT] = 5000
        aarch64.resume_clock(machine.vm, vcpus, noted)
        assert kvm.registers[0][uapi_arm64.KVM_REG_ARM_TIMER_CNT] == 1000


def test_the_map_has_no_overlaps() -> None:
    ranges = sorted((start, start + size, name) for start, size, name in layout.MEMORY_MAP)
    for (_, end, low), (start, _, high) in itertools.pairwise(ranges):
        assert end <= start, f"{low} overlaps {high}"
    spis = [layout.UART_SPI, layout.RTC_SPI, layout.GPIO_SPI]
    spis += [layout.virtio_slot(index)[1] for index in range(layout.MOST_VIRTIO)]
    assert len(set(spis)) == len(spis) and max(spis) < layout.SPIS
    with pytest.raises(UsageError, match="more than 32 virtio"):
        layout.virtio_slot(layout.MOST_VIRTIO)


@pytest.mark.parametrize("size", [0, 1 * MIB, 64 * MIB + 1, 1 << 40])
def test_memory_that_makes_no_machine(size: int) -> None:
    with pytest.raises(UsageError, match="memory of"):
        layout.ram_ranges(size)


def test_the_arm_machine_imports_little() -> None:
    from test_start_up import FORBIDDEN

    script = "import sys, pyvmm.arch.aarch64; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, cwd=ROOT)
    modules = done.stdout.split()
    assert "pyvmm.arch.aarch64.fdt" in modules, done.stderr
    unneeded = ("pyvmm.arch.x86_64", "pyvmm.arch.aarch64.diagnose", "pyvmm.arch.aarch64.probe")
    assert [name for name in (*FORBIDDEN, *unneeded) if name in modules] == []


def test_advice() -> None:
    assert aarch64.advice("quiet console=ttyAMA0") == aarch64.advice("console=ttyS0,115200") == []
    (line,) = aarch64.advice("quiet acpi=force")
    assert line.startswith("acpi=force: ") and "device tree" in line


def test_coalesced_output_reaches_the_uart_and_counts_as_no_exit(kvm: Arm64Kvm, kernel: str) -> None:
    with build(MachineSpec(kernel, memory=64 * MIB, interactive=False)) as machine:
        sent: list[int] = []
        machine.serial._transmit = sent.append
        assert machine.coalescer is not None
        machine.coalescer._deliver(layout.UART, 4, ord("a"), False)
        machine.coalescer._deliver(layout.UART - 0x1000, 4, ord("b"), False)
        assert sent == [ord("a")]
        assert machine.exits() == {}


def test_refusals_are_said_in_words(kvm: Arm64Kvm, kernel: str) -> None:
    kvm.capabilities[Cap.ARM_SVE] = 1
    kvm.features[99] = []  # a vCPU that has other features
    with pytest.raises(KvmError, match="KVM_ARM_VCPU_INIT.*another vCPU has others"):
        build(MachineSpec(kernel, memory=64 * MIB, interactive=False))


def test_where_there_is_no_kvm_the_hint_is_arm64_s(monkeypatch: pytest.MonkeyPatch) -> None:
    host = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*host[:4], "aarch64")))
    monkeypatch.setattr("pyvmm.kvm.system._in_container", lambda: False)
    with pytest.raises(KvmMissing) as caught:
        System("/nowhere/kvm")
    assert "EL2" in caught.value.hint and "kvm_intel" not in caught.value.hint


def test_the_architecture_is_the_host_s(monkeypatch: pytest.MonkeyPatch) -> None:
    host = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*host[:4], "aarch64")))
    assert architectures.host() is aarch64
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*host[:4], "sparc")))
    with pytest.raises(HostError, match="does not run on sparc hosts"):
        architectures.host()


def test_both_architectures_offer_the_same_names() -> None:
    from pyvmm.arch import x86_64

    assert set(x86_64.__all__) - set(aarch64.__all__) == {"event_device"}, "where no power button is attached"
    assert set(aarch64.__all__) <= set(x86_64.__all__)
    assert all(hasattr(aarch64, name) for name in aarch64.__all__)
