"""Which lab a kernel boots in: that of the architecture it was built for, however it is packed."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import pyvmm.cli.lab  # noqa: F401  bound to the real things before a test has any replaced
from pyvmm.cli import boot
from pyvmm.errors import UsageError
from pyvmm.lab import architecture_for, choice
from pyvmm.lab.platforms import PLATFORMS


def image(magic: bytes) -> bytes:
    """The header of an Image (Linux arch/arm64/booting.rst, arch/riscv/boot-image-header.rst)."""
    return bytes(0x38) + magic + bytes(8192 - 0x3C)


def elf(machine: int, wide: bool = True) -> bytes:
    head = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    return head + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(4096)


@pytest.mark.parametrize(
    ("content", "architecture"),
    [
        (image(b"ARM\x64"), "aarch64"),
        (gzip.compress(image(b"ARM\x64")), "aarch64"),
        (elf(183), "aarch64"),
        (elf(62), "x86_64"),
        (elf(3, wide=False), "x86_64"),
        (b"no kernel at all\n", choice.default_architecture()),
        (gzip.compress(b"no kernel at all\n"), choice.default_architecture()),
        (b"", choice.default_architecture()),
    ],
)
def test_the_lab_is_that_of_the_kernel(tmp_path: Path, content: bytes, architecture: str) -> None:
    (tmp_path / "kernel").write_bytes(content)
    assert architecture_for(str(tmp_path / "kernel")) == architecture


def test_a_kernel_that_no_lab_is_for(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(image(b"RSC\x05"))
    with pytest.raises(UsageError, match="no lab for architecture 'riscv64'") as error:
        architecture_for(str(tmp_path / "kernel"))
    assert "x86_64" in error.value.hint and "aarch64" in error.value.hint


@pytest.mark.parametrize(
    ("machine", "lab"), [("x86_64", "x86_64"), ("aarch64", "aarch64"), ("s390x", "x86_64")]
)
def test_the_default_is_this_hosts_own(monkeypatch: pytest.MonkeyPatch, machine: str, lab: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    assert choice.default_architecture() == lab


def test_boot_starts_the_lab_of_its_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what goes in and comes out, and in the lab the console's default name there."""
    (tmp_path / "kernel").write_bytes(image(b"ARM\x64"))
    (tmp_path / "tree.dtb").write_bytes(b"tree")
    machine = tmp_path / "machine.toml"
    machine.write_text('kernel = "kernel"\ndtb = "tree.dtb"\ndump-dtb = "out.dtb"\n')
    seen = {}

    def run(lab, command, *, carry_in, carry_out, timeout, env) -> int:
        seen.update(lab=lab, carry_in=carry_in, carry_out=carry_out)
        seen["file"] = Path(command[command.index("--machine") + 1]).read_text()
        return 9

    monkeypatch.setattr("pyvmm.lab.Lab", lambda arch, report: SimpleNamespace(arch=arch, timed_out=False))
    monkeypatch.setattr("pyvmm.lab.foreground.run_in_foreground", run)
    assert boot.main(["--machine", str(machine), "--lab"]) == 9
    assert seen["lab"].arch == "aarch64"
    assert seen["carry_in"] == [str(tmp_path / "kernel"), str(tmp_path / "tree.dtb")]
    assert seen["carry_out"] == [str(tmp_path / "out.dtb")]
    assert "cmdline" not in seen["file"], seen["file"]
    boot.main(["--machine", str(machine), "--lab", "--cmdline", "console=hvc0"])
    assert 'cmdline = "console=hvc0"' in seen["file"]


def test_every_lab_has_what_the_code_takes_for_granted() -> None:
    for name, platform in PLATFORMS.items():
        assert platform.architecture == name
        assert "memory-backend=ram" in platform.machine[-1], "saved states need the memory by that name"
        assert platform.qemu == f"qemu-system-{name}"
        assert {"virtio_pci", "virtio_console", "virtio_blk"} <= set(platform.modules)
