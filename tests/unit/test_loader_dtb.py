"""Device tree blobs: what may be loaded, and where."""

from __future__ import annotations

import os

import pytest
from loader_images import MIB, as_file
from loader_structures import dtb

from loader import errors
from loader.boot_params import BootParams
from loader.buffer import BufferMemory
from loader.configurator import fdt
from loader.dtb import load_dtb

FORMS = pytest.mark.parametrize("form", [bytes, as_file])


def memory(size: int = 4 * MIB) -> BufferMemory:
    return BufferMemory([(0, size)], fill=0xFF)


@FORMS
def test_load(form):
    ram, blob = memory(), dtb(0x100)
    assert load_dtb(ram, 0x1008, form(blob)) == 0x1108
    assert ram.read(0x1007, 0x102) == b"\xff" + blob + b"\xff"


@FORMS
def test_what_follows_the_tree_is_loaded_too(form):
    assert load_dtb(memory(), 0, form(dtb(0x100, total=40))) == 0x100


@FORMS
def test_too_big(form):
    """Exactly 2 MiB is fine."""
    assert load_dtb(memory(), 0, form(dtb(2 * MIB))) == 2 * MIB
    with pytest.raises(errors.DtbTooBig, match="has 0x200001 bytes, and a kernel maps 0x200000"):
        load_dtb(memory(), 0, form(dtb(2 * MIB + 1)))


def test_a_sparse_file_is_not_read():
    with as_file(dtb(64), size=1 << 40) as file, pytest.raises(errors.DtbTooBig):
        load_dtb(memory(), 0, file)


@FORMS
@pytest.mark.parametrize(
    ("blob", "shown"), [(dtb(64, magic=b"\xed\xfe\x0d\xd0"), "ed fe 0d d0"), (b"\xd0\x0d", "d0 0d")]
)
def test_magic(form, blob, shown):
    """The crate does not look at it."""
    with pytest.raises(errors.InvalidDtbMagic, match=f"starts with {shown}, not d0 0d fe ed"):
        load_dtb(memory(), 0, form(blob))


def test_nothing_at_all():
    with pytest.raises(errors.InvalidDtbMagic, match="starts with nothing"):
        load_dtb(memory(), 0, b"")


@FORMS
@pytest.mark.parametrize("total", [0, 39, 0x101, 2**32 - 1])
def test_totalsize(form, total):
    with pytest.raises(errors.InvalidDtbSize, match=f"totalsize is {total:#x} .at 0x4., and it has 0x100 "):
        load_dtb(memory(), 0, form(dtb(0x100, total=total)))


@FORMS
@pytest.mark.parametrize("addr", [1, 4, 0x1007])
def test_alignment(form, addr):
    """The crate does not look at it."""
    with pytest.raises(errors.MisalignedDtb, match=f"placed at {addr:#x}, off an 8-byte boundary"):
        load_dtb(memory(), addr, form(dtb(0x100)))


@FORMS
def test_outside_ram(form):
    assert load_dtb(memory(0x1000), 0xF00, form(dtb(0x100))) == 0x1000
    with pytest.raises(errors.DtbOutsideRam, match="0x100 bytes at 0xf08 do not lie in RAM") as caught:
        load_dtb(memory(0x1000), 0xF08, form(dtb(0x100)))
    assert isinstance(caught.value, errors.ReadDtbImage)


def test_read_error(monkeypatch):
    def pread(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(errors.ReadDtbImage, match="reading at 0x0: Input/output error"):
        load_dtb(memory(), 0, as_file(dtb(0x100)))


def test_file_cut_while_it_is_loaded():
    with as_file(dtb(0x100)) as file:
        os.ftruncate(file.fd, 0x80)
        with pytest.raises(errors.ReadDtbImage, match="ends at 0x80, and had 0x100 bytes"):
            load_dtb(memory(), 0, file)


@pytest.mark.parametrize(
    ("blob", "addr", "error"),
    [
        (bytes(64), 0, errors.InvalidDtbMagic),
        (dtb(64), 4, errors.MisalignedDtb),
        (dtb(64, total=65), 0, errors.InvalidDtbSize),
        (dtb(2 * MIB + 1), 0, errors.DtbTooBig),
    ],
)
def test_the_configurator_checks_the_same(blob, addr, error):
    with pytest.raises(error):
        fdt.write_bootparams(memory(), BootParams(blob, addr))


def test_the_configurator_without_ram():
    with pytest.raises(errors.FDTPastRamEnd):
        fdt.write_bootparams(BufferMemory([]), BootParams(dtb(64), 0))
