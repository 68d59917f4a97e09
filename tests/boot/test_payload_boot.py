"""Stock kernels booted from the kernel cache, beside the same bzImage unpacking itself.

On a host with hardware KVM they boot here, elsewhere in one lab session, with the cache carried in.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from lab_boot import X86_64, fetch, lab, only

from loader import bzimage, open_kernel

pytestmark = pytest.mark.boot

platform = only(X86_64)


class Cached:
    """A bzImage, and a cache directory that holds the kernel in it."""

    def __init__(self, kernel: Path, cache: Path) -> None:
        self.kernel = kernel
        self.cache = cache
        self.index = cache / "vmlinux" / "index"

    def links(self) -> int:
        return len(list(self.index.iterdir())) if self.index.exists() else 0


def with_cache(kernel: Path, cache: Path) -> Cached:
    """``kernel`` unpacked here into ``cache``; its link left out, since the lab has other files."""
    from pyvmm import kernel_cache

    with pytest.MonkeyPatch.context() as patch, open_kernel(kernel) as file:
        patch.setenv("PYVMM_CACHE", str(cache))
        found = kernel_cache.vmlinux(file, bzimage.read_header(file))
        assert found is not None
        found.close()
    for link in (cache / "vmlinux" / "index").iterdir():
        link.unlink()
    return Cached(kernel, cache)


@pytest.fixture(scope="module", params=["debian-6.1-cloud", "debian-6.12-cloud"])
def cached(request, tmp_path_factory) -> Cached:
    """Debian's kernel (LZ4 or zstd)."""
    kernel = fetch(request.param)
    pytest.importorskip("lz4.block")
    pytest.importorskip("backports.zstd")
    return with_cache(kernel, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def boot(lab, cached, tmp_path):
    """Run ``pyvmm boot`` with the cache, where KVM is real."""
    if lab is not None:
        lab.run(["true"], carry_in=[str(cached.kernel), str(cached.cache)], stdin=None)
        time.sleep(3)  # a file that has only just been written is not known by its times yet

    def run(*arguments: str) -> tuple[int, str, dict]:
        result, out = tmp_path / "result.json", tmp_path / "out"
        command = ["boot", str(cached.kernel), *arguments, "--no-input", "--result", str(result)]
        env = {"PYVMM_CACHE": str(cached.cache)}
        with out.open("wb") as stream:
            if lab is None:
                code = subprocess.run(
                    [sys.executable, "-m", "pyvmm", *command], stdin=subprocess.DEVNULL, stdout=stream, timeout=200,
                    env={**os.environ, "PYTHONPATH": str(ROOT), **env}, check=False,
                ).returncode  # fmt: skip
            else:  # through a shell, or the bzImage that is named would be carried in anew and so be another file
                code = lab.run(
                    ["sh", "-c", shlex.join(["pyvmm", *command])], stdin=None, stdout=stream.fileno(), env=env,
                    timeout=200, carry_out=[str(result), str(cached.index)],
                )  # fmt: skip
        return code, out.read_text(errors="replace"), json.loads(result.read_text())

    return run


def test_vmlinux_from_the_cache_reaches_userspace(boot, cached):
    code, console, result = boot("--verify", "--cmdline", X86_64.quiet, "--timeout", "150")
    assert code == 0, console
    assert "userspace reached" in console
    assert cached.links(), "it was not booted from the cache"
    assert result["exits"]["total"] <= X86_64.quiet_exits, result["exits"]


def test_first_message_comes_sooner(boot, cached):
    """The guest's own time to its first message: what is left when it need not unpack itself.

    The best of three, in turns, as other things run on the host.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3):
        for extract in (True, False):
            arguments = () if extract else ("--no-extract",)
            code, console, result = boot(
                "--cmdline", "console=ttyS0", "--expect", "Linux version", "--timeout", "100", *arguments
            )
            assert code == 0, console
            times[extract].append(result["elapsed_s"] - result["first_run_s"])
    assert min(times[True]) < 0.75 * min(times[False]), times
