"""The machines of a test: made as its marker and the options say, watched for splats, closed and tidied up."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pyvmm.api.complaints import Complaints
from pyvmm.api.machine import Machine
from pyvmm.errors import KvmMissing, KvmPermission, PyvmmError
from pyvmm.pytest_plugin.marker import CALL_KEYWORDS, KEYWORDS, check, listed, settings
from pyvmm.text import printable_lines

if TYPE_CHECKING:
    from pyvmm.ktap import Ktap
    from pyvmm.splats import Splat

#: Characters of a log's name, and lines of a splat that a report shows.
_LONGEST_NAME = 150
_SPLAT_LINES = 30


def cannot(config: pytest.Config, reason: str) -> NoReturn:
    """Skip the test, or fail it with ``--vmm-require-kvm``."""
    if config.getoption("vmm_require_kvm"):
        pytest.fail(f"--vmm-require-kvm: {reason}", pytrace=False)
    pytest.skip(reason)


def only_kernel(config: pytest.Config) -> str:
    """The kernel where a test has not been given one: that of the command line, if there is one."""
    kernels: list[str] = config.getoption("vmm_kernel")
    if not kernels:
        cannot(config, "there is no kernel to boot: give one with --vmm-kernel")
    if len(kernels) > 1:
        pytest.fail(
            f"which of the {len(kernels)} kernels of --vmm-kernel is meant?\n"
            "hint: take the fixture kernel, as def test(vmm, kernel): vmm(kernel), and the test runs with each",
            pytrace=False,
        )
    return kernels[0]


class Booted:
    """A machine, the kernel's file name, whether it is in the lab, its log, the splats that are allowed on it, and how
    many of the others have been told of."""

    __slots__ = ("allow", "in_lab", "log", "name", "told", "vm")

    def __init__(self, vm: Machine, in_lab: bool, allow: Sequence[str | re.Pattern[str]]) -> None:
        self.vm = vm
        self.in_lab = in_lab
        self.name = os.path.basename(vm.kernel)
        self.log = vm.log
        self.allow = allow
        self.told = 0

    def splats(self) -> list[Splat]:
        """The first of those that are not allowed, of what the console has shown."""
        console, complaints = self.vm.console, Complaints(self.allow)
        for piece in _pieces(self.log) if console.forgotten and self.log is not None else [console.log]:
            complaints.feed(piece)
        return [splat for splat in complaints.end() if not splat.allowed]


def _pieces(log: str) -> Iterator[bytes]:
    """A log, which has what is not in memory any more."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        while data := file.read(1 << 20):
            yield data


class Machines:
    """The fixture ``vmm``: call it for a started machine."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._config = request.config
        self._settings = settings(request.node.iter_markers("vm"))
        self._logs: list[str] = []
        self.booted: list[Booted] = []
        #: Whether the test failed, by what has been reported so far; whether its consoles have been shown.
        self.failed = False
        self.shown = False
        #: While results are reported as subtests: the consoles are for the test that has them.
        self.quiet = False

    def __call__(self, kernel: str | os.PathLike[str] | None = None, **arguments: Any) -> Machine:
        """A started machine, closed when the test ends.

        ``kernel``: by default that of the marker, the fixture ``kernel``, or the only ``--vmm-kernel``.  ``arguments``:
        those of :class:`pyvmm.Machine`, and ``allow_splat``; ``lab`` may be "auto", as with ``--vmm-lab``.

        :raises PyvmmError: as of :meth:`pyvmm.Machine.start`; without any KVM the test is skipped
        """
        __tracebackhide__ = True
        check(arguments, "vmm()", (*KEYWORDS, *CALL_KEYWORDS))
        timeout = self._config.getoption("vmm_timeout")
        given = {"timeout": timeout, "expect_timeout": timeout, **self._settings, **arguments}
        named = given.pop("kernel", None)
        path = os.fspath(kernel or named or self._request.getfixturevalue("kernel"))
        allow = [*listed(self._settings.get("allow_splat", ())), *listed(arguments.get("allow_splat", ()))]
        given.pop("allow_splat", None)
        given["lab"] = self._in_lab(path, given.get("lab"))
        if given.get("log") is None:
            given["log"] = self._log()
        vm = Machine(path, **given)
        try:
            vm.start()
        except BaseException as error:
            self._remove(given["log"])
            if isinstance(error, KvmMissing | KvmPermission):
                cannot(self._config, f"{error.message} (--vmm-lab boots without)")
            raise
        self.booted.append(Booted(vm, given["lab"], allow))
        return vm

    def ktap(self, results: Machine | str | bytes) -> Ktap:
        """Report the test results (KTAP) in what a machine's console has shown, or in a text, as subtests.

        The test fails if one of them did, or if there are none; it is skipped if all of them were."""
        __tracebackhide__ = True
        from pyvmm.ktap import parse
        from pyvmm.pytest_plugin.results import report

        found = results.ktap() if isinstance(results, Machine) else parse(results)
        self.quiet = True
        try:
            report(found, self._request)
        finally:
            self.quiet = False
        return found

    def discard(self, vm: Machine) -> None:
        """Close a machine, remove its log, and judge the test without it: another one does its work."""
        vm.close()
        self.booted = [each for each in self.booted if each.vm is not vm]
        if vm.log is not None:
            self._remove(vm.log)

    # -- the end of a test ---------------------------------------------------------------------------------

    def check_splats(self) -> None:
        """Fail the test if one of its kernels has complained, and that has not been told yet."""
        __tracebackhide__ = True
        texts = []
        for each in self.booted:
            splats = each.splats()
            new = splats[each.told :]
            each.told = len(splats)
            for splat in new:
                lines = splat.text.splitlines()
                shown = lines[:_SPLAT_LINES] + ["..."] * (len(lines) > _SPLAT_LINES)
                texts.append(
                    f"{each.name} printed a splat ({splat.kind}):\n" + "\n".join(f"    {s}" for s in shown)
                )
        if texts:
            hint = (
                "hint: what is no failure is allowed with @pytest.mark.vm(allow_splat=['regular expression'])"
            )
            pytest.fail(printable_lines("\n".join([*texts, hint])), pytrace=False)

    def close(self) -> None:
        """End the machines; then a test that has passed fails by splats that came after it."""
        __tracebackhide__ = True
        errors = []
        for each in reversed(self.booted):
            try:
                each.vm.close()
            except (PyvmmError, OSError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
        if not self.failed:
            self.check_splats()

    def tidy(self) -> None:
        """Remove the logs of a test that has passed, unless they are to be kept."""
        if self.failed or self._config.getoption("vmm_keep"):
            return
        for log in list(self._logs):
            self._remove(log)

    # -- logs ----------------------------------------------------------------------------------------------

    def _log(self) -> str:
        """A path for the next console."""
        folder = os.path.dirname(self._log_name())
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            pytest.fail(f"cannot make the directory for logs {folder}: {error.strerror}", pytrace=False)
        number = len(self._logs) + 1
        self._logs.append(f"{self._log_name()}{f'-{number}' if number > 1 else ''}.log")
        return self._logs[-1]

    def _remove(self, log: str) -> None:
        """Remove a log, if it is one of ours."""
        if log in self._logs:
            with contextlib.suppress(OSError):
                os.unlink(log)

    def _log_name(self) -> str:
        """The beginning of the paths of all this test's logs."""
        node: str = self._request.node.nodeid
        folder = self._config.getoption("vmm_log_dir")
        if folder is None:
            folder = os.path.join(self._request.getfixturevalue("tmp_path_factory").getbasetemp(), "consoles")
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", node.replace("::", "--")).strip("_")
        if len(name) > _LONGEST_NAME or not re.fullmatch(r"[\w./:\[\]-]+", node, re.ASCII):
            name = f"{name[:_LONGEST_NAME]}-{zlib.crc32(node.encode()):08x}"  # two tests may be named alike by now
        return os.path.join(self._config.invocation_params.dir, folder, name)

    # -- where it runs -------------------------------------------------------------------------------------

    def _in_lab(self, kernel: str, wanted: object) -> bool:
        """Whether this kernel boots in the lab."""
        if wanted is None and self._config.getoption("vmm_lab"):
            wanted = "auto"
        if wanted != "auto":
            return bool(wanted)
        from pyvmm.lab import architecture_for

        architecture = architecture_for(kernel)
        if architecture == os.uname().machine and kvm_kind() == "hardware":
            return False
        if missing := _missing_for_lab(architecture):
            cannot(
                self._config,
                f"there is neither {architecture} hardware KVM nor what the lab needs: {missing}",
            )
        return True


@functools.cache
def kvm_kind() -> str | None:
    """ "hardware" or "software", as ``pyvmm doctor`` finds this host's KVM; None without one.  Probed once."""
    from pyvmm import arch
    from pyvmm.kvm import System

    try:
        with System() as system:
            kind: str = arch.host().probe(system).kind
            return kind
    except PyvmmError:
        return None


@functools.cache
def _missing_for_lab(architecture: str) -> str:
    """What the lab needs and this host has not; "" if it has all."""
    from pyvmm.lab import requirements

    return ", ".join(name for name, present, _ in requirements(architecture) if not present)
