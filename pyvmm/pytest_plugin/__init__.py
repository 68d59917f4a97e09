"""The pytest plugin: kernels booted by tests, their consoles in the failure reports.

    @pytest.mark.vm(cmdline="console=ttyS0 quiet", memory="256M", agent=True)
    def test_release(vm):
        assert vm.run("uname -r", check=True).text.startswith("6.")

    $ pytest --vmm-kernel arch/x86/boot/bzImage

Here are the hooks, options and fixtures alone: every pytest that runs where pyvmm is installed imports this module, so
it imports nothing that it can do without.  ``machines`` makes the machines, ``marker`` reads ``@pytest.mark.vm``,
``reports`` shows consoles and errors, ``results`` turns KTAP into subtests, ``archives`` makes initramfs.
"""

from __future__ import annotations

import os
import sys

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pyvmm.api.machine import Machine
    from pyvmm.pytest_plugin.archives import Initramfs
    from pyvmm.pytest_plugin.machines import Machines

#: Of a test that uses ``vmm``: its machines.
MACHINES: pytest.StashKey[Machines] = pytest.StashKey()

MARKER = (
    "vm(kernel=, cmdline=, memory=, cpus=, timeout=, devices=, agent=, allow_splat=[...], lab=, ...): the machine of"
    " the test, as pyvmm.Machine takes it; allow_splat are regular expressions for complaints of the kernel that are no"
    " failure, lab='auto' boots in the lab where this host has no real KVM"
)


# -- options and marker ----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all of which begin with ``--vmm``."""
    group = parser.getgroup("pyvmm", "kernels booted by pyvmm")
    group.addoption(
        "--vmm-kernel", action="append", default=[], metavar="FILE",
        help="a kernel for the fixtures kernel and vm; given several times, tests run with each",
    )  # fmt: skip
    group.addoption(
        "--vmm-lab", action="store_true",
        help="boot in pyvmm's lab, an emulated host, where this host has no real KVM",
    )  # fmt: skip
    group.addoption(
        "--vmm-log-dir",
        metavar="DIR",
        help="where consoles are logged (default: pytest's temporary directory)",
    )
    group.addoption(
        "--vmm-keep", action="store_true", help="keep the logs of passed tests too, not only of failed ones"
    )
    group.addoption(
        "--vmm-require-kvm",
        action="store_true",
        help="fail tests that would be skipped for lack of KVM or a kernel",
    )
    group.addoption(
        "--vmm-timeout", type=float, default=60.0, metavar="SECONDS",
        help="seconds after which a machine is stopped, and for which its console is waited for, unless the test says"
        " otherwise (default: 60)",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and refuse what no test could use."""
    config.addinivalue_line("markers", MARKER)
    for kernel in config.getoption("vmm_kernel"):
        path = _absolute(config, kernel)
        if os.path.isdir(path):
            raise pytest.UsageError(f"--vmm-kernel {kernel}: a directory; give the kernel image in it")
        if not os.path.isfile(path):
            raise pytest.UsageError(f"--vmm-kernel {kernel}: no such file")
    if not config.getoption("vmm_timeout") > 0:
        raise pytest.UsageError("--vmm-timeout: give a number of seconds above 0")


def pytest_unconfigure() -> None:
    """Stop the labs, if any have been started."""
    labs = sys.modules.get("pyvmm.api.labs")
    if labs is not None:
        labs.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Check the marker, and run a test once for each ``--vmm-kernel``, or with the kernel that its marker names."""
    marks = list(metafunc.definition.iter_markers("vm"))
    named = None
    if marks:
        from pyvmm.pytest_plugin.marker import settings

        named = settings(marks).get("kernel")
    # Only the plugin's own fixture: one of the user's by that name knows where its kernels are.
    definitions = metafunc.definition._fixtureinfo.name2fixturedefs.get("kernel")
    if not definitions or getattr(definitions[-1].func, "__module__", "") != __name__:
        return
    if any("kernel" in _names(mark) for mark in metafunc.definition.iter_markers("parametrize")):
        return
    if named is not None:
        hidden = getattr(pytest, "HIDDEN_PARAM", None)
        metafunc.parametrize("kernel", [os.fspath(named)], indirect=True, ids=hidden and [hidden])
    elif kernels := metafunc.config.getoption("vmm_kernel"):
        metafunc.parametrize("kernel", kernels, indirect=True, ids=kernels, scope="session")


def _names(mark: pytest.Mark) -> list[str]:
    """The arguments that a parametrize marker gives."""
    names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def _absolute(config: pytest.Config, path: str) -> str:
    """A path of the command line; tests may have changed the working directory since."""
    return os.path.join(config.invocation_params.dir, path)


# -- fixtures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> Path:
    """The kernel to test: each ``--vmm-kernel`` in turn, or the one that the test's marker names.

    Without either the test is skipped; with ``--vmm-require-kvm`` it fails."""
    from pathlib import Path

    chosen: str | None = getattr(request, "param", None)
    if chosen is None:
        from pyvmm.pytest_plugin.machines import only_kernel

        chosen = only_kernel(request.config)
    return Path(_absolute(request.config, chosen))


@pytest.fixture
def vmm(request: pytest.FixtureRequest) -> Generator[Machines]:
    """Makes machines: ``vmm(kernel, cmdline=...)`` is a started :class:`pyvmm.Machine`, closed when the test ends.

    What is not given comes from the test's marker ``vm``, and the kernel, if there is one alone, from ``--vmm-kernel``.
    ``vmm.ktap(vm)`` reports the test results on a machine's console as subtests."""
    from pyvmm.pytest_plugin.machines import Machines

    machines = Machines(request)
    request.node.stash[MACHINES] = machines
    yield machines
    machines.close()


@pytest.fixture
def vm(vmm: Machines, kernel: Path) -> Machine:
    """A started machine of the fixture ``kernel``, made as the test's marker ``vm`` says."""
    return vmm(kernel)


@pytest.fixture(scope="session")
def initramfs() -> Initramfs:
    """Makes archives for ``initrd=``: ``initramfs()`` has pyvmm's own init, which says that it was reached and powers
    off; ``initramfs("uname -a")`` runs a script with busybox, then powers off."""
    from pyvmm.pytest_plugin.archives import Initramfs

    return Initramfs()


# -- reports ---------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that would pass fails if its kernels complained."""
    result = yield
    machines = item.stash.get(MACHINES, None)
    if machines is not None:
        machines.check_splats()
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show pyvmm's errors as what they say, and the consoles of a failed test."""
    machines = item.stash.get(MACHINES, None)
    errors = sys.modules.get("pyvmm.errors")
    is_ours = (
        call.excinfo is not None and errors is not None and isinstance(call.excinfo.value, errors.PyvmmError)
    )
    if machines is None and not is_ours:
        return (yield)
    from pyvmm.pytest_plugin import reports

    if is_ours:
        told = reports.Told(item, call, has_section=machines is not None)
        report = told.mend((yield))
    else:
        report = yield
    if machines is not None:
        reports.add_consoles(report, machines, call)
        if report.when == "teardown":
            machines.tidy()
    return report
