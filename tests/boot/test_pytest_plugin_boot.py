"""The pytest plugin with a stock kernel, by two workers at once: each has its own lab, where one is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import ROOT
from lab_boot import X86_64, fetch, needs_lab

pytest_plugins = "pytester"
pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

TESTS = """\
import os, pytest

def children():
    tasks = os.listdir("/proc/self/task")
    return [pid for task in tasks for pid in open(f"/proc/self/task/{task}/children").read().split()]

@pytest.mark.vm(cmdline="console=ttyS0 quiet", memory="256M")
@pytest.mark.parametrize("number", range(2))
def test(vmm, kernel, initramfs, number):
    vm = vmm(kernel, initrd=initramfs())
    vm.console.expect("userspace reached, Linux 6.1")
    with open(f"{number}.pids", "w") as file:
        file.write(" ".join(children()))
    assert vm.wait().outcome == "shutdown"
    assert number == 0
"""


@pytest.mark.skipif(not X86_64.is_here, reason="the kernel is for x86_64")
def test_each_worker_has_its_lab(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_lab(X86_64)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(TESTS)
    done = pytester.runpytest_subprocess(
        "-n", "2", "--vmm-lab", "--vmm-kernel", str(fetch(X86_64.kernel)), "--vmm-timeout", "200"
    )
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*- console of bzImage -*",
            "pyvmm: userspace reached, *",
            "outcome: shutdown*",
            "log: *popen-gw?*.log",
        ]
    )
    pids = [set(Path(pytester.path, f"{number}.pids").read_text().split()) for number in range(2)]
    assert all(pids) and not pids[0] & pids[1], "each worker has processes of its own"
    assert [pid for pid in pids[0] | pids[1] if os.path.exists(f"/proc/{pid}")] == []
