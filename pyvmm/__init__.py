"""pyvmm: a small virtual machine monitor that boots real kernels under KVM.

Python sets up, the kernel moves the data.  The map of the code is in CONTRIBUTING.md; start with
``pyvmm/machine/build.py``, which reads as the table of contents of a boot.

From Python::

    import pyvmm

    with pyvmm.Machine("bzImage", cmdline="console=ttyS0", timeout=60) as vm:
        vm.console.expect("Run /init as init process", fail_on=pyvmm.PANICS)

The names below come from their modules when they are first used: ``import pyvmm`` itself costs nothing.
"""

__version__ = "0.1.0"

_API = {
    "Machine": "pyvmm.api.machine",
    "PANICS": "pyvmm.api.patterns",
    "Console": "pyvmm.api.console",
    "Match": "pyvmm.api.patterns",
    "Command": "pyvmm.api.command",
    "Completed": "pyvmm.api.command",
    "End": "pyvmm.api.end",
    "PyvmmError": "pyvmm.errors",
    "UsageError": "pyvmm.errors",
    "HostError": "pyvmm.errors",
    "KvmMissing": "pyvmm.errors",
    "KvmPermission": "pyvmm.errors",
    "CapabilityMissing": "pyvmm.errors",
    "ImageError": "pyvmm.errors",
    "GuestError": "pyvmm.errors",
    "GuestPanic": "pyvmm.errors",
    "TripleFault": "pyvmm.errors",
    "UnexpectedExit": "pyvmm.errors",
    "ExpectTimeout": "pyvmm.errors",
    "CommandFailed": "pyvmm.errors",
    "CommandTimeout": "pyvmm.errors",
}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.api.command import Command as Command
    from pyvmm.api.command import Completed as Completed
    from pyvmm.api.console import Console as Console
    from pyvmm.api.end import End as End
    from pyvmm.api.machine import Machine as Machine
    from pyvmm.api.patterns import PANICS as PANICS
    from pyvmm.api.patterns import Match as Match
    from pyvmm.errors import CapabilityMissing as CapabilityMissing
    from pyvmm.errors import CommandFailed as CommandFailed
    from pyvmm.errors import CommandTimeout as CommandTimeout
    from pyvmm.errors import ExpectTimeout as ExpectTimeout
    from pyvmm.errors import GuestError as GuestError
    from pyvmm.errors import GuestPanic as GuestPanic
    from pyvmm.errors import HostError as HostError
    from pyvmm.errors import ImageError as ImageError
    from pyvmm.errors import KvmMissing as KvmMissing
    from pyvmm.errors import KvmPermission as KvmPermission
    from pyvmm.errors import PyvmmError as PyvmmError
    from pyvmm.errors import TripleFault as TripleFault
    from pyvmm.errors import UnexpectedExit as UnexpectedExit
    from pyvmm.errors import UsageError as UsageError


def __getattr__(name: str) -> object:
    """A name of the Python API, from its module (PEP 562)."""
    module = _API.get(name)
    if module is None:
        raise AttributeError(f"module 'pyvmm' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
