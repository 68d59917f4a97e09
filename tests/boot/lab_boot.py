"""What the tests that boot stock kernels share: the platforms, the kernels, where KVM is real, and how a boot ended.

A file whose tests are for both architectures takes the fixture :func:`platform` from here, one for a single
architecture says ``platform = only(X86_64)``; all other fixtures go by that one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from conftest import ROOT, cannot, run_pyvmm

from pyvmm.api import labs
from pyvmm.errors import HostError
from pyvmm.initramfs import verify_initramfs
from pyvmm.lab import Lab, requirements


class Platform:
    """What differs between the architectures' stock kernels: the names of the 6.1 ``kernel`` and of a ``newer`` one,
    the ``serial`` port, the ``quiet_exits`` to userspace of a quiet boot and power-off, a regular expression for the
    ``interrupt`` of a virtio device in /proc/interrupts, the ``device_exits`` that setting one up may take, and whether
    there is one for each of its interrupts (``exits_for_interrupts``); whether the lab's emulator ``loses_guests``.
    """

    __slots__ = (
        "arch", "device_exits", "exits_for_interrupts", "interrupt", "kernel", "loses_guests", "newer", "quiet_exits",
        "serial",
    )  # fmt: skip

    def __init__(
        self, arch: str, *, kernel: str, newer: str, serial: str, quiet_exits: int, interrupt: str,
        device_exits: int, exits_for_interrupts: bool, loses_guests: bool,
    ) -> None:  # fmt: skip
        self.arch = arch
        self.kernel = kernel
        self.newer = newer
        self.serial = serial
        self.quiet_exits = quiet_exits
        self.interrupt = interrupt
        self.device_exits = device_exits
        self.exits_for_interrupts = exits_for_interrupts
        self.loses_guests = loses_guests

    @property
    def quiet(self) -> str:
        """The command line of a kernel that says little."""
        return f"console={self.serial} quiet"

    @property
    def is_here(self) -> bool:
        """Whether this host is of that architecture."""
        return os.uname().machine == self.arch

    def compile(self, source: str, program: Path) -> bytes:
        """A C program for it, linked statically."""
        compiler = "gcc" if self.is_here else f"{self.arch}-linux-gnu-gcc"
        program.with_suffix(".c").write_text(source)
        command = [compiler, "-static", "-Os", "-s", "-o", program, program.with_suffix(".c")]
        try:
            built = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            cannot(f"{compiler} is not installed")
        assert built.returncode == 0, built.stderr
        return program.read_bytes()


X86_64 = Platform(
    "x86_64",
    kernel="debian-6.1-cloud",
    newer="debian-6.12-cloud",
    serial="ttyS0",
    quiet_exits=230,  # measured 208
    interrupt=r"IO-APIC +\d+-edge +virtio\d",
    device_exits=60,
    exits_for_interrupts=False,
    loses_guests=True,
)
AARCH64 = Platform(
    "aarch64",
    kernel="debian-6.1-cloud-arm64",
    newer="debian-6.12-cloud-arm64",
    serial="ttyAMA0",
    quiet_exits=180,  # measured 148, and 154 for 6.12
    interrupt=r"GICv3 +\d+ +Edge +virtio\d",
    device_exits=100,
    exits_for_interrupts=True,
    loses_guests=False,
)


@pytest.fixture(scope="module", params=[X86_64, AARCH64], ids=lambda each: each.arch)
def platform(request) -> Platform:
    """Each platform by turns."""
    return request.param


def only(one: Platform):
    """The fixture ``platform`` of a file that is for one of them."""

    @pytest.fixture(scope="module", name="platform")
    def fixture() -> Platform:
        return one

    return fixture


def fetch(name: str) -> Path:
    """The path of a stock kernel."""
    done = subprocess.run(
        [ROOT / "scripts" / "fetch-kernels", name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        cannot(f"the kernel {name} could not be fetched: {done.stderr.strip()}")
    return Path(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def kernel(platform) -> Path:
    """Debian's 6.1 cloud kernel."""
    return fetch(platform.kernel)


@pytest.fixture(scope="module")
def verify_initrd(platform, tmp_path_factory) -> Path:
    """The project's own init as a file, for boots that are not ``--verify``."""
    path = tmp_path_factory.mktemp("initrd") / "initrd.cpio"
    path.write_bytes(verify_initramfs(platform.arch))
    return path


def needs_lab(platform: Platform) -> bool:
    """Whether kernels for ``platform`` have to boot in the lab; skips the test where there is none either."""
    doctor = json.loads(run_pyvmm("doctor", "--json").stdout)
    if doctor["kvm"] == "hardware" and platform.is_here:
        return False
    if missing := ", ".join(name for name, present, _ in requirements(platform.arch) if not present):
        cannot(f"there is neither {platform.arch} hardware KVM nor what the lab needs: {missing}")
    return True


@pytest.fixture(scope="module")
def lab(platform) -> Iterator[Lab | None]:
    """A lab session, or None where this host is of that architecture and has hardware KVM."""
    if not needs_lab(platform):
        yield None
        return
    with Lab(platform.arch) as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def no_lab_stays() -> Iterator[None]:
    """The labs of a file's own machines (``vmm`` with ``lab="auto"``, :class:`pyvmm.Machine`) end with it, not with
    pytest: those of the next files need the memory."""
    yield
    labs.close()


class Boot:
    """How a boot ended: exit code, console (text), result file."""

    def __init__(self, code: int, console: str, error: str, result: dict) -> None:
        self.code = code
        self.console = console
        self.error = error
        self.result = result

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- console\n{self.console}\n--- standard error\n{self.error}\n{self.result}"


#: How often a boot is tried in the lab before its loss is the project's (see lost_by_the_emulator).
ATTEMPTS = 4


def lost_by_the_emulator(done: Boot, arguments: Sequence[object]) -> bool:
    """Whether this may be QEMU's mistake: now and then, once in some 300,000 exits, it enters the guest at the RIP of
    the lab's own kernel, in __svm_vcpu_run of kvm_amd.  That ends in a triple fault, a panic at an address where a
    guest without modules has no code, silence, or a lab that does not answer."""
    outcome = done.result.get("outcome")
    silent = outcome == "timeout" and not any("pyvmm_end=hang" in str(argument) for argument in arguments)
    elsewhere = outcome == "panic" and "0xffffffffc0" in done.console
    return silent or elsewhere or outcome == "triple-fault" or not done.result


class Host:
    """Where KVM is real, here or in the lab."""

    def __init__(self, platform: Platform, lab: Lab | None, folder: Path) -> None:
        self.platform = platform
        self.lab = lab
        self._folder = folder

    def boot(self, *arguments: object, **options: object) -> Boot:
        """``pyvmm boot`` with these arguments; for the options see :meth:`once`."""
        return self.run("-m", "pyvmm", "boot", *arguments, **options)

    def run(self, *command: object, **options: object) -> Boot:
        """Run this Python with ``command``, whose last arguments ``--result FILE`` are for ``pyvmm boot``; in the lab,
        again if the emulator lost the guest, and say so.  For the options see :meth:`once`."""
        for _ in range(ATTEMPTS):
            done = self.once(*command, **options)  # type: ignore[arg-type]
            if self.lab is None or not self.platform.loses_guests or not lost_by_the_emulator(done, command):
                break
            reason = (done.result.get("report") or ["no report"])[0]
            warnings.warn(f"booted again, the emulator lost the guest: {reason}", stacklevel=3)
        return done

    def once(
        self, *command: object, stdin: bytes = b"", carry: Sequence[object] = (), carry_out: Sequence[object] = (),
        env: Mapping[str, str] | None = None, own_network: bool = False, timeout: float = 240,
    ) -> Boot:  # fmt: skip
        """One try.  ``carry`` and ``carry_out``: files that go to the lab and come back, beside those in ``command``.
        ``own_network``: in a network namespace where this is no lab."""
        result, typed = self._folder / "result.json", self._folder / "stdin"
        result.unlink(missing_ok=True)
        typed.write_bytes(stdin)
        argv = [sys.executable, *map(str, command), "--result", str(result)]
        with (
            (self._folder / "out").open("wb") as out,
            (self._folder / "err").open("wb") as err,
            typed.open("rb") as source,
        ):
            if self.lab is None:
                code = subprocess.run(
                    [*(["unshare", "-n"] if own_network else []), *argv], stdin=source, stdout=out, stderr=err,
                    check=False, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}, timeout=timeout,
                ).returncode  # fmt: skip
            else:
                try:
                    code = self.lab.run(
                        argv, stdin=source.fileno(), stdout=out.fileno(), stderr=err.fileno(),
                        carry_in=[str(path) for path in carry], carry_out=[str(result), *map(str, carry_out)],
                        env=env, timeout=timeout,
                    )  # fmt: skip
                except HostError as error:  # the lab itself went; the next run starts another
                    err.write(error.message.encode())
                    code = -1
        return Boot(
            code,
            (self._folder / "out").read_text(errors="replace"),
            (self._folder / "err").read_text(errors="replace"),
            json.loads(result.read_text()) if result.exists() else {},
        )


@pytest.fixture
def host(platform, lab, tmp_path) -> Host:
    """Where KVM is real."""
    return Host(platform, lab, tmp_path)


@pytest.fixture
def boot(host):
    """Run ``pyvmm boot`` where KVM is real, here or in the lab."""
    return host.boot


def check_device_exits(platform: Platform, done: Boot, *names: str, more: int = 0) -> None:
    """Few exits to userspace for ``names``, all the virtio devices: those while they are set up, ``more``, and none for
    a request; one for an interrupt, where registers are not memory that the guest can read."""
    interrupts = [
        sum(map(int, counts.split()))
        for counts in re.findall(rf"^ *\d+: +([\d ]+?) +{platform.interrupt}", done.console, re.MULTILINE)
    ]
    assert len(interrupts) == len(names), done
    exits = done.result["exits"]["by_device"]
    for name, count in zip(names, interrupts, strict=True):
        allowed = platform.device_exits + more + (count if platform.exits_for_interrupts else 0)
        assert exits[name] <= allowed, (name, exits, interrupts)
