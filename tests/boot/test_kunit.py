"""The kernel's own tests: KUnit in a kernel that is built with it, its results read out of the console.

The kernel is that of scripts/build-kernels; where it was not built (in CI too) this is skipped, and says so.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

from pathlib import Path

import pytest
from lab_boot import ATTEMPTS, no_lab_stays
from test_built_kernels import built

from pyvmm.splats import find

pytestmark = [pytest.mark.boot, pytest.mark.timeout(300)]


def results_of(vmm, initramfs, kernel: Path, suite: str):
    """The results of the suites whose names fit, and the machine; again if the emulator lost the guest."""
    cmdline = f"console=ttyS0 kunit.enable=1 kunit.filter_glob={suite}"
    for attempt in range(ATTEMPTS):
        vm = vmm(kernel, initrd=initramfs(), cmdline=cmdline, lab="auto", timeout=120)
        if vm.wait(200).ok or attempt == ATTEMPTS - 1:
            break
        vmm.discard(vm)
    assert vm.wait().ok, vm.console.tail()
    return vmm.ktap(vm), vm


def test_kunit(vmm, built, initramfs) -> None:
    """A suite that passes: each of its tests is counted, and the kernel goes on to its init."""
    results, _ = results_of(vmm, initramfs, built / "bzImage.gzip", "string-stream-test")
    assert [test.name for test in results.tests] == ["string-stream-test"]
    assert results.errors == []
    counts = results.counts()
    assert counts["pass"] == counts["total"] == len(results.tests[0].children) > 10


@pytest.mark.vm(allow_splat=["NULL pointer dereference"])
def test_a_test_that_crashes_on_purpose(vmm, built, initramfs) -> None:
    """KUnit's test of itself has a test dereference NULL: the oops between the results does not spoil them."""
    results, vm = results_of(vmm, initramfs, built / "bzImage.gzip", "kunit_fault")
    (suite,) = results.tests
    assert suite.name == "kunit_fault" and suite.status == "pass" and results.errors == [], str(results)
    assert len(find(vm.console.log)) == 1
