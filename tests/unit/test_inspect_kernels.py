"""pyvmm inspect on Debian's own kernels, where they are at hand: golden values, and other readers' opinions."""

from __future__ import annotations

import pytest
from test_loader_real_kernels import extracted, kernels

from loader import bzimage, open_kernel
from pyvmm import inspect
from pyvmm.inspect.table import Style, render

MIB = 1 << 20

FOUND = [path for path in kernels() if path.suffix != ".json"]
real_kernel = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.parent.name) for path in FOUND]
    or [
        pytest.param(
            None, marks=pytest.mark.skip(reason="no Debian kernels: run scripts/fetch-kernels"), id="none"
        )
    ],
)

#: By release: other builds are not held to them.
GOLDEN = {
    "6.1.0-56-cloud-amd64": {
        "setup_sects": 39, "payload": (0x52CC, 0xD696CC, "lz4", 53243444), "init_size": 0x3378000,
        "xloadflags": 0x7F, "pvh": 0x1000850, "entry": 0x1000000, "end": 0x3E00000,
        "relocations": 123692 + 8457 + 70777,
        "build_id": "3b43fad5034874490492495d552c0af6a5fab235",
    },
    "6.12.117+deb12-cloud-amd64": {
        "setup_sects": 39, "payload": (0x52CC, 11409810, "zstd", 57575404), "init_size": 0x37DC000,
        "xloadflags": 0x7F, "pvh": 0x1000A30, "entry": 0x1000B53, "end": 0x4200000, "relocations": 237214,
        "build_id": "7f76f39faf07f34cfa9fadd801e131bfa8cb6dc3",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def reports() -> dict[object, inspect.Report]:
    return {}


def told_of(path, reports) -> inspect.Report:
    if path not in reports:
        reports[path] = inspect.inspect_path(path, 512 * MIB)
    return reports[path]


@real_kernel
def test_facts(path, reports):
    found = told_of(path, reports)
    with open_kernel(path) as file:
        header = bzimage.read_header(file)
    assert (found.format, found.machine, found.is_kernel) == ("bzImage", "x86_64", True)
    assert (found.version, found.protocol, found.relocatable) == (
        header.version,
        "Linux/x86 boot protocol 2.15",
        True,
    )
    assert found.warnings == []
    values = {field.name: field.value for field in found.fields}
    assert all(field.present for field in found.fields)
    assert values["setup_sects"] == header.setup_header.setup_sects
    assert values["kernel_info.setup_type_max"] == header.setup_type_max
    golden = GOLDEN.get(found.version.split()[0])
    if golden:
        assert values["setup_sects"] == golden["setup_sects"]
        assert values["init_size"] == golden["init_size"]
        assert values["xloadflags"] == golden["xloadflags"]


@real_kernel
def test_placement(path, reports):
    found = told_of(path, reports)
    assert found.placement is not None
    assert found.placement.fits
    ranges = {piece.kind: piece for piece in found.placement.ranges if piece.kind != "boot"}
    init_size = next(field.value for field in found.fields if field.name == "init_size")
    setup_size = 40 * 512
    assert (ranges["kernel"].start, ranges["kernel"].end) == (16 * MIB, 16 * MIB + found.size - setup_size)
    assert (ranges["runtime"].start, ranges["runtime"].end) == (16 * MIB, 16 * MIB + init_size)
    assert (ranges["initrd"].start, ranges["initrd"].end) == (16 * MIB + init_size, 512 * MIB)


@real_kernel
def test_payload(path, reports):
    found = told_of(path, reports)
    payload = found.payload
    assert payload is not None
    golden = GOLDEN.get(found.version.split()[0], {})
    expected = golden.get("payload", (None,) * 4)
    seen = (payload.offset, payload.length, payload.compression, payload.unpacked_size)
    assert all(want in (None, have) for want, have in zip(expected, seen, strict=True))
    if found.content is None:
        assert "is not here" in payload.problem  # the library for it
        pytest.skip(payload.problem)
    inner = found.content
    assert inner.description == "a Linux kernel (ELF vmlinux) for x86_64"
    assert inner.size == payload.unpacked_size
    assert inner.version.split()[0] == found.version.split()[0]
    assert "#1 SMP" in inner.version
    if golden:
        assert f"a relocation table of {golden['relocations']} entries" in found.kaslr
    if "build_id" in golden:
        notes = {(note.owner, note.name): note.value for note in inner.notes}
        assert notes["GNU", "BUILD_ID"] == golden["build_id"]
        assert notes["Xen", "GUEST_OS"] == "linux"
        assert notes["Linux", "BUILD_SALT"] == found.version.split()[0]
        assert [e.address for e in inner.entry_points] == [golden["entry"], golden["pvh"]]
        assert inner.placement is not None
        assert max(r.end for r in inner.placement.ranges if r.kind == "kernel") == golden["end"]


@real_kernel
def test_vmlinux_against_pyelftools(path, tmp_path):
    elffile = pytest.importorskip("elftools.elf.elffile")
    with open_kernel(path) as file:
        vmlinux = extracted(path, bzimage.read_header(file), tmp_path)
    found = inspect.inspect_path(vmlinux, 512 * MIB)
    with vmlinux.open("rb") as stream:
        oracle = elffile.ELFFile(stream)
        assert [
            (s.file_offset, s.virtual_address, s.physical_address, s.file_size, s.memory_size, s.alignment)
            for s in found.segments
        ] == [
            tuple(s[f"p_{key}"] for key in ("offset", "vaddr", "paddr", "filesz", "memsz", "align"))
            for s in oracle.iter_segments()
        ]
        notes = [n for s in oracle.iter_segments() if s["p_type"] == "PT_NOTE" for n in s.iter_notes()]
        assert [(note.owner, note.file_offset) for note in found.notes] == [
            (n["n_name"], n["n_offset"]) for n in notes
        ]
        build_id = next(
            n["n_desc"] for n in notes if (n["n_name"], n["n_type"]) == ("GNU", "NT_GNU_BUILD_ID")
        )
        values = {(field.name): field.value for field in found.fields}
        for name in ("e_entry", "e_phoff", "e_shoff", "e_phnum", "e_shnum", "e_shstrndx"):
            assert values[name] == oracle[name], name
    assert build_id in [note.value for note in found.notes if note.name == "BUILD_ID"]


@real_kernel
def test_text(path, reports):
    lines = render(told_of(path, reports), Style(unicode=True))
    assert max(map(len, lines)) <= 100
    assert any("kernel, as loaded; room to unpack and run" in line for line in lines)


@real_kernel
def test_truncated(path, tmp_path):
    half = tmp_path / "half"
    with path.open("rb") as stream:
        half.write_bytes(stream.read(4 * MIB))
    found = inspect.inspect_path(half, 512 * MIB)
    assert found.version
    assert "header announces" in found.warnings[0]
    assert found.payload is not None
    assert found.payload.problem
    if "is not here" not in found.payload.problem:
        assert found.content is not None  # the start of the vmlinux
        assert len(found.content.segments) == 5
