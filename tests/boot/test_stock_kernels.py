"""Stock Debian kernels of each architecture, to userspace and to every kind of end.

Where this host has no hardware KVM of that architecture they boot in a lab session that all its tests here share.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import pytest
from lab_boot import boot, fetch, host, kernel, lab, platform, verify_initrd

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]


def check_quiet_boot(platform, done, release: str) -> None:
    """It came to userspace and powered off, in few exits, and nobody had to guess at an address."""
    assert done.code == 0, done
    assert f"pyvmm: userspace reached, Linux {release}" in done.console
    assert done.result["outcome"] == "shutdown"
    exits = done.result["exits"]
    assert exits["total"] <= platform.quiet_exits, exits
    assert exits["unhandled"] == {}, "an address that nobody thought of"


def test_quiet_boot_to_userspace_in_few_exits(boot, platform, kernel):
    done = boot(kernel, "--verify", "--cmdline", platform.quiet, "--timeout", "100")
    check_quiet_boot(platform, done, "6.1.")


def test_newer_kernel(boot, platform):
    """Debian's 6.12 cloud kernel."""
    done = boot(fetch(platform.newer), "--verify", "--cmdline", platform.quiet, "--timeout", "100")
    check_quiet_boot(platform, done, "6.12.")


@pytest.mark.parametrize(
    ("how", "code", "outcome"),
    [("reboot", 0, "reset"), ("panic", 120, "panic"), ("hang", 124, "timeout")],
)
def test_ends(boot, platform, kernel, verify_initrd, how, code, outcome):
    timeout = "25" if how == "hang" else "100"
    cmdline = f"{platform.quiet} pyvmm_end={how}"
    done = boot(kernel, "--initrd", verify_initrd, "--cmdline", cmdline, "--timeout", timeout)
    assert (done.code, done.result["outcome"]) == (code, outcome), done
    assert "userspace reached" in done.console
    if how == "panic":
        assert "Attempted to kill init" in done.error


def test_status_of_the_guest(boot, platform, kernel, verify_initrd):
    cmdline = f"{platform.quiet} pyvmm_status=42"
    done = boot(kernel, "--initrd", verify_initrd, "--cmdline", cmdline, "--timeout", "100")
    assert (done.code, done.result["guest_status"]) == (42, 42), done


def test_input_reaches_userspace(boot, platform, kernel, verify_initrd):
    lines = [f"input line {number:03}" for number in range(60)]
    done = boot(
        kernel, "--initrd", verify_initrd, "--cmdline", f"{platform.quiet} pyvmm_echo=1", "--timeout", "100",
        stdin="\n".join([*lines, "quit", ""]).encode(),
    )  # fmt: skip
    assert done.code == 0, done
    for line in lines:
        assert f"echo: {line}" in done.console, line


@pytest.mark.parametrize(
    ("arguments", "said"), [(("--memory", "16M"), "memory"), (("--cmdline", "x" * 2048), "2047")]
)
def test_bad_input_is_one_line_and_a_hint(boot, kernel, arguments, said):
    done = boot(kernel, "--verify", *arguments)
    assert done.code == 125, done
    assert said in done.error and "hint: " in done.error, done
    assert "Traceback" not in done.error
