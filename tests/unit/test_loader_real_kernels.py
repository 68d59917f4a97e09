"""Debian's own kernels, where they are at hand: what the loader says of them, against other readers.

They are looked for in the directory PYVMM_TEST_KERNELS names (bzImage files in it), else in pyvmm's cache,
where scripts/fetch-kernels puts them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loader import bzimage, elf, initrd, open_kernel
from loader.buffer import BufferMemory
from loader.configurator import linux

MIB = 1 << 20


def directories() -> list[Path]:
    if "PYVMM_TEST_KERNELS" in os.environ:
        root = Path(os.environ["PYVMM_TEST_KERNELS"])
        return [root, *root.glob("*/")]
    cache = os.environ.get("PYVMM_CACHE")
    root = (
        Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvmm"
    )
    return list(root.glob("kernels/*/"))


def kernels() -> list[Path]:
    files = [
        path for directory in directories() if directory.is_dir() for path in sorted(directory.iterdir())
    ]
    return [path for path in files if path.is_file() and path.name in ("bzImage", "vmlinuz")]


def parameters() -> list[object]:
    found = kernels()
    if found:
        return [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in found]
    reason = "no Debian kernels at hand: run scripts/fetch-kernels, or set PYVMM_TEST_KERNELS"
    return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]


real_kernel = pytest.mark.parametrize("path", parameters())


def extracted(path: Path, header: bzimage.BzImageHeader, folder: Path) -> Path:
    """The vmlinux inside a bzImage, taken out with the compressors' own programs."""
    with path.open("rb") as file:
        file.seek(header.payload_offset)
        payload = file.read(header.payload_length)
    programs = {b"\x02\x21": "lz4", b"\x28\xb5": "zstd", b"\xfd7": "xz", b"\x1f\x8b": "gzip", b"BZ": "bzip2"}
    program = programs.get(payload[:2])
    if program is None or shutil.which(program) is None:
        pytest.skip(f"no program here for a payload that starts with {payload[:4].hex()}")
    size = int.from_bytes(payload[-4:], "little")
    packed, unpacked = folder / "payload", folder / "vmlinux"
    packed.write_bytes(payload if program == "gzip" else payload[:-4])  # the others have their size appended
    with packed.open("rb") as source, unpacked.open("wb") as target:
        subprocess.run([program, "-d", "-c"], stdin=source, stdout=target, check=True)
    if program != "gzip":
        assert unpacked.stat().st_size == size
    return unpacked


def is_cloud_6_1(header: bzimage.BzImageHeader) -> bool:
    return header.version.startswith("6.1.") and "cloud-amd64" in header.version


@real_kernel
def test_bzimage(path):
    memory = BufferMemory([(0, 128 * MIB)])
    with open_kernel(path, machine="x86_64") as file:
        header = bzimage.read_header(file)
        result = bzimage.load(memory, file, bzimage.place(memory, header), header=header)
        start = os.pread(file.fileno(), 4096, header.setup_size)
        end = os.pread(file.fileno(), 4096, file.size - 4096)
    assert (header.protocol, header.xloadflags & 1, header.relocatable) == (0x20F, 1, True)
    assert memory.read(result.load_base, 4096) == start
    assert memory.read(result.kernel_end - 4096, 4096) == end
    assert result.entry_64 == result.load_base + 0x200
    assert result.load_base == header.pref_address == header.runtime_start(result.load_base)
    assert header.setup_type_max is not None
    assert header.setup_type_max & 0xFF >= 9
    if is_cloud_6_1(header):
        assert (header.setup_header.setup_sects, header.xloadflags) == (39, 0x7F)
        assert (result.kernel_load, header.init_size) == (0x1000000, 0x3378000)
        assert (
            memory.read(result.load_base + header.payload_offset - header.setup_size, 4)
            == b"\x02\x21\x4c\x18"
        )
    address = initrd.place(memory.ranges, 20 * MIB, result.reserved, result.initrd_addr_max)
    assert address == 108 * MIB
    params = linux.build(header, result, e820=[(0, 0x9FC00, 1), (MIB, 127 * MIB, 1)], cmdline_addr=0x20000)
    assert (params.hdr.header, params.sentinel) == (0x53726448, 0)


@real_kernel
def test_file_tells_the_same_version(path):
    if shutil.which("file") is None:
        pytest.skip("no file(1) here")
    told = subprocess.run(["file", "-bL", path], capture_output=True, text=True, check=True).stdout
    with open_kernel(path) as file:
        assert f"version {bzimage.read_header(file).version}" in told


@real_kernel
def test_vmlinux(path, tmp_path):
    elffile = pytest.importorskip("elftools.elf.elffile")
    with open_kernel(path) as file:
        header = bzimage.read_header(file)
    vmlinux = extracted(path, header, tmp_path)
    memory = BufferMemory([(0, 128 * MIB)], fill=0xA5)
    with open_kernel(vmlinux, machine="x86_64") as file:
        image = elf.read_image(file)
        result = elf.load(memory, file, image=image)
    with vmlinux.open("rb") as stream:
        oracle = elffile.ELFFile(stream)
        loads = [segment for segment in oracle.iter_segments() if segment["p_type"] == "PT_LOAD"]
        assert [(s.offset, s.paddr, s.file_size, s.memory_size) for s in image.segments] == [
            (s["p_offset"], s["p_paddr"], s["p_filesz"], s["p_memsz"]) for s in loads
        ]
        for segment in loads:
            expected = segment.data().ljust(segment["p_memsz"], b"\0")
            assert memory.slice(segment["p_paddr"], segment["p_memsz"]) == expected
        notes = [n for s in oracle.iter_segments() if s["p_type"] == "PT_NOTE" for n in s.iter_notes()]
        pvh = [n["n_descdata"] for n in notes if n["n_name"] == "Xen" and n["n_type"] in (18, "18")]
        assert result.kernel_load == oracle["e_entry"]
    assert [int.from_bytes(desc[:4], "little") for desc in pvh] == [result.pvh_boot_cap.entry]
    assert result.is_linux
    assert (result.load_base, result.entry_64) == (0x1000000, result.kernel_load)
    if is_cloud_6_1(header):
        assert result.kernel_load == 0x1000000
        assert result.pvh_boot_cap.entry == 0x1000850
        assert result.kernel_end == 0x3E00000
