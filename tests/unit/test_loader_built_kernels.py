"""Kernels that the kernel's own build compressed in each of its ways: what the loader takes out is what went in.

scripts/build-kernels makes them in some minutes.  Nothing does that by itself, CI neither: where they are not in the
cache these tests are skipped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, cannot, run_pyvmm

from loader import BufferMemory, bzimage, elf, open_kernel, payload, relocation
from loader.decompress import decompressor
from loader.detect import Format
from loader.payload_errors import CompressionUnavailable

MIB = 1 << 20
COMPRESSIONS = ("gzip", "bzip2", "lzma", "xz", "lzo", "lz4", "zstd")


@functools.cache
def folder() -> Path | None:
    done = subprocess.run(
        [ROOT / "scripts" / "build-kernels", "--where"], capture_output=True, text=True, check=False
    )
    return None if done.returncode else Path(done.stdout.strip())


@pytest.fixture(params=COMPRESSIONS)
def built(request) -> tuple[str, Path, Path]:
    """The compression, the bzImage, and what is compressed in it."""
    where = folder()
    if where is None:
        pytest.skip(
            "the kernels of each compression are not built: run scripts/build-kernels (minutes, not in CI)"
        )
    try:
        decompressor(Format(request.param))
    except CompressionUnavailable as error:
        cannot(f"{error.message}: {error.hint}")
    return request.param, where / f"bzImage.{request.param}", where / "vmlinux.payload"


def test_what_comes_out_is_what_went_in(built):
    compression, path, original = built
    with open_kernel(path, machine="x86_64") as file:
        found = payload.find(file)
        assert (found.compression.value, found.size) == (compression, original.stat().st_size)
        with payload.open_unpacked(file, found, machine="x86_64") as inner:
            with open(f"/proc/self/fd/{inner.fd}", "rb") as ours, original.open("rb") as theirs:
                assert (
                    hashlib.file_digest(ours, "sha256").digest()
                    == hashlib.file_digest(theirs, "sha256").digest()
                )


def test_it_can_be_loaded_and_moved(built):
    _, path, _ = built
    memory = BufferMemory([(0, 64 * MIB)], fill=0xA5)
    with open_kernel(path) as file, payload.open_unpacked(file) as inner:
        header = bzimage.read_header(file)
        image = elf.read_image(inner)
        table = relocation.read_table(inner, image)
        result = elf.load(memory, inner, image=image)
        assert "-pyvmm-tiny" in header.version
        assert (image.base, image.is_linux) == (header.pref_address, True)
        assert result.pvh_boot_cap.status == "present"
        assert table is not None
        assert image.end + 4 * len(table.words) == inner.size
        first = next(iter(table.sites(64))) - 0x8000_0000
        before = int.from_bytes(memory.read(first, 8), "little")
        relocation.kaslr(memory, inner, image, result, room=header.init_size, offset=0x0120_0000)
        assert int.from_bytes(memory.read(first, 8), "little") == before + 0x0120_0000
        # and the bzImage as it is
        whole = BufferMemory([(0, 64 * MIB)])
        loaded = bzimage.load(whole, file, bzimage.place(whole, header), header=header)
        assert whole.read(loaded.load_base, header.code_size) == path.read_bytes()[header.setup_size :]


def test_inspect_names_the_compression(built):
    compression, path, original = built
    done = run_pyvmm("inspect", "--json", path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["payload"]["compression"] == compression
    assert report["payload"]["unpacked_size"] == original.stat().st_size
    assert report["kaslr"].startswith("yes: ")
