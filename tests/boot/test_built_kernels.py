"""Kernels compressed in each way, booted as they unpack themselves and as the loader unpacks them.

scripts/build-kernels makes them; scripts/test --kernels runs it.  Nothing else does, CI neither: where they are not in
the cache these tests are skipped.  On a host with hardware KVM they boot here, elsewhere in one lab session.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, cannot
from lab_boot import X86_64, lab, only
from test_payload_boot import Cached, boot, with_cache

from loader.decompress import decompressor
from loader.detect import Format
from loader.payload_errors import CompressionUnavailable

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

platform = only(X86_64)

COMPRESSIONS = ("gzip", "bzip2", "lzma", "xz", "lzo", "lz4", "zstd")


@pytest.fixture(scope="module")
def built() -> Path:
    done = subprocess.run(
        [ROOT / "scripts" / "build-kernels", "--where"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("the kernels of each compression are not built: run scripts/test --kernels (not in CI)")
    return Path(done.stdout.strip())


@pytest.fixture(scope="module", params=COMPRESSIONS)
def cached(request, built, tmp_path_factory) -> Cached:
    """The kernel in one compression, and a cache with what the loader takes out of it."""
    try:
        decompressor(Format(request.param))
    except CompressionUnavailable as error:
        cannot(f"{error.message}: {error.hint}")
    return with_cache(built / f"bzImage.{request.param}", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("extract", [True, False], ids=["unpacked by the loader", "unpacks itself"])
def test_it_gives_its_first_message(boot, cached, extract):
    before = cached.links()
    code, console, _ = boot(
        "--cmdline", "console=ttyS0 earlyprintk=ttyS0", "--expect=-pyvmm-tiny", "--timeout", "60",
        *(() if extract else ("--no-extract",)),
    )  # fmt: skip
    assert code == 0, console
    assert "Linux version 6." in console
    assert ("Decompressing Linux" in console) == (not extract)
    assert (cached.links() > before) == extract, "whether the kernel came from the cache"
