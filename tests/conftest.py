"""What the tests share: where the kernels are, how to run pyvmm, and no skip that hides something CI could run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUESTS = ROOT / "kernels" / "build" / "x86_64"
BOOTS = ROOT / "tests" / "boot"


def cannot(reason: str) -> None:
    """Skip with ``reason``; in CI, where everything these tests need is installed, fail instead."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must be able to run this: {reason}")
    pytest.skip(reason)


class Finished:
    """A finished ``pyvmm`` process: exit code, standard output (bytes), standard error (text)."""

    def __init__(self, returncode: int, stdout: bytes, stderr: str) -> None:
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        output = self.stdout.decode(errors="replace")
        return f"exit code {self.returncode}\n--- stdout\n{output}\n--- stderr\n{self.stderr}"


def run_pyvmm(
    *arguments: object,
    input: bytes | None = None,
    timeout: float = 120,
    env: dict[str, str] | None = None,
) -> Finished:
    """Run ``pyvmm`` with these arguments, standard input empty unless given."""
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", *map(str, arguments)],
        input=input or b"", capture_output=True, timeout=timeout, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )  # fmt: skip
    return Finished(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


@pytest.fixture
def pyvmm():
    """:func:`run_pyvmm`."""
    return run_pyvmm


@pytest.fixture(scope="session")
def guests() -> Path:
    """The directory with the small test guests, built if they are missing or older than their sources."""
    done = subprocess.run([ROOT / "scripts" / "build-guests"], capture_output=True, text=True, check=False)
    if done.returncode:
        cannot(f"the test guests could not be built: {done.stderr.strip() or done.stdout.strip()}")
    return GUESTS


@pytest.fixture(scope="session")
def kvm() -> None:
    """Skips where /dev/kvm cannot be used."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        cannot("there is no usable /dev/kvm")


# --- how long the boots of each architecture took ------------------------------------------------------------
def boot_architecture(item: pytest.Item) -> str | None:
    """Whose kernels a test under tests/boot boots, by its fixture ``platform``; x86_64 without; None elsewhere."""
    if BOOTS not in item.path.parents:
        return None
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    platform = parameters.get("platform") or (getattr(item, "funcargs", None) or {}).get("platform")
    return getattr(platform, "arch", "x86_64")


def boot_durations(reports: Iterable[Any]) -> list[str]:
    """A line for each architecture: the tests that ran, and their seconds with what they set up and took down."""
    tests: dict[str, set[str]] = {}
    seconds: dict[str, float] = {}
    for report in reports:
        architecture = getattr(report, "boots_on", None)
        if architecture is not None:
            seconds[architecture] = seconds.get(architecture, 0.0) + report.duration
            if report.when == "call" and report.outcome != "skipped":
                tests.setdefault(architecture, set()).add(report.nodeid)
    return [
        f"boots on {architecture}: {len(tests[architecture])} tests, {seconds[architecture]:.0f} s"
        for architecture in sorted(tests)
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    report.boots_on = boot_architecture(
        item
    )  # goes with the report from where the test ran to where it is told
    return report


def pytest_terminal_summary(terminalreporter):
    reports = (report for category in terminalreporter.stats.values() for report in category)
    for line in sorted(boot_durations(reports), reverse=True):
        terminalreporter.write_line(line)
