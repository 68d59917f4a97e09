"""The device tree's binary format: written and read back, and checked by dtc, which others wrote."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess

import pytest

from pyvmm.arch.aarch64 import fdt, layout
from pyvmm.arch.aarch64.devicetree import Node, cells, flatten, flatten_with, strings, unflatten, wide
from pyvmm.arch.aarch64.gic import Gic
from pyvmm.errors import ImageError


def sample() -> Node:
    root = Node("", {"#address-cells": cells(2), "empty": b"", "odd": b"abcde"})
    child = root.add("bus@1000", {"reg": wide(0x1000, 0x20), "names": strings("one", "two")})
    child.add("leaf", {"#address-cells": cells(1)})
    root.add("chosen")
    return root


def dtc(*arguments: str, data: bytes | str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("dtc") is None:
        if "CI" in os.environ:
            pytest.fail("dtc is not installed")
        pytest.skip("dtc is not installed (device-tree-compiler)")
    source = data.encode() if isinstance(data, str) else data
    return subprocess.run(["dtc", *arguments], input=source, capture_output=True)


def same(left: Node, right: Node) -> bool:
    return (
        left.name == right.name
        and left.properties == right.properties
        and len(left.children) == len(right.children)
        and all(same(*pair) for pair in zip(left.children, right.children, strict=True))
    )


def test_what_is_written_is_read_back() -> None:
    blob = flatten_with(sample(), [(0x8000_0000, 0x1000)])
    root, reservations = unflatten(blob)
    assert same(root, sample())
    assert reservations == [(0x8000_0000, 0x1000)]
    assert flatten_with(root, reservations) == blob


def test_the_header_is_that_of_the_specification() -> None:
    blob = flatten(sample())
    header = struct.unpack_from(">10I", blob)
    assert header[0] == 0xD00DFEED and header[1] == len(blob)
    assert header[5:7] == (17, 16)
    assert header[2] % 4 == 0 and header[4] % 8 == 0
    assert header[2] + header[9] == header[3] and header[3] + header[8] == len(blob)
    assert blob.count(b"#address-cells\0") == 1, "a name is written once"


def test_dtc_reads_what_is_written() -> None:
    done = dtc("-I", "dtb", "-O", "dts", "-f", data=flatten(sample()))
    text = done.stdout.decode()
    assert done.returncode == 0
    for line in ("bus@1000 {", 'names = "one\\0two";', "reg = <0x00 0x1000 0x00 0x20>;", "empty;", "leaf {"):
        assert line in text


def test_what_dtc_writes_is_read() -> None:
    source = '/dts-v1/; /memreserve/ 0x1000 0x2000; / { a = <1 2>; n@1 { s = "x", "y"; m { }; }; };'
    root, reservations = unflatten(dtc("-I", "dts", "-O", "dtb", data=source).stdout)
    assert root.properties == {"a": cells(1, 2)}
    assert root.children[0].name == "n@1" and root.children[0].properties == {"s": strings("x", "y")}
    assert [child.name for child in root.children[0].children] == ["m"]
    assert reservations == [(0x1000, 0x2000)]


@pytest.mark.parametrize("cut", [0, 3, 39, 40, 60, 100])
def test_a_cut_blob_is_an_error_and_no_traceback(cut: int) -> None:
    with pytest.raises(ImageError, match=r"board\.dtb: not a device tree"):
        unflatten(flatten(sample())[:cut], "board.dtb")


def test_no_damage_to_a_byte_is_more_than_an_error() -> None:
    blob = flatten(sample())
    for at in range(len(blob)):
        for value in (0, 0x7F, 0xFF):
            damaged = blob[:at] + bytes([value]) + blob[at + 1 :]
            try:
                unflatten(damaged)
            except ImageError:
                pass


def test_nodes_nested_without_end_are_an_error() -> None:
    body = struct.pack(">2I", 1, 0) * 50_000
    head = struct.pack(">10I", 0xD00DFEED, 56 + len(body), 56, 56, 40, 17, 16, 0, 0, len(body))
    with pytest.raises(ImageError):
        unflatten(head + bytes(16) + body)


@pytest.mark.parametrize("serial", ["ttyAMA0", "ttyS0"])
@pytest.mark.parametrize(
    ("gic", "vcpus"), [(Gic(3, its=True), 123), (Gic(3, its=False), 1), (Gic(2, its=False), 8)]
)
def test_dtc_finds_nothing_wrong_with_the_machine_s_tree(gic: Gic, vcpus: int, serial: str) -> None:
    root = fdt.build(
        ram=layout.ram_ranges(512 << 20),
        mpidrs=[1 << 31 | index & 0xF | index >> 4 << 8 for index in range(vcpus)],
        gic=gic,
        virtio=layout.MOST_VIRTIO,
        chosen=fdt.Chosen(f"console={serial}", (layout.RAM + 0x10_0000, 0x1000), bytes(32), bytes(8)),
    )
    blob = flatten(root)
    assert len(blob) < 64 << 10
    assert (b"ns16550a\0" in blob) == (serial == "ttyS0") == (b"arm,pl011\0" not in blob)
    done = dtc("-I", "dtb", "-O", "dtb", "-o", os.devnull, data=blob)
    assert done.returncode == 0
    assert done.stderr.decode() == ""
