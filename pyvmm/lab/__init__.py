"""The lab: an emulated host that offers a real /dev/kvm, on any Linux host with QEMU and apt.

    with Lab() as lab:
        status = lab.run(["pyvmm", "boot", "bzImage", "--verify"])

QEMU's TCG emulates a processor with AMD SVM and nested paging, or an Arm one with EL2; a Debian kernel in it has its
own KVM.  Files have the same paths in the lab as here, and what a command does there is gone afterwards,
except what was asked to be carried out.  The first lab ever builds its base image (:mod:`.image`) and saves
a started lab's state (:mod:`.state`); later ones start from that in a fraction of a second.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.lab.choice import architecture_for
    from pyvmm.lab.qemu import LabError
    from pyvmm.lab.session import CommandNotStarted, Lab

__all__ = ["CommandNotStarted", "Lab", "LabError", "architecture_for", "is_available", "requirements"]

#: Whoever only wants to know which lab a kernel belongs to should not have to wait for all of it.
_WHERE = {
    "CommandNotStarted": "pyvmm.lab.session",
    "Lab": "pyvmm.lab.session",
    "LabError": "pyvmm.lab.qemu",
    "architecture_for": "pyvmm.lab.choice",
}


def __getattr__(name: str) -> object:
    """The package's names, from their modules when they are first used (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'pyvmm.lab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def requirements(arch: str | None = None) -> list[tuple[str, bool, str]]:
    """What the lab of this architecture (or the default one) needs on this host: (name, present, hint) for each thing.

    Once its base image is built, only QEMU is needed.

    :raises UsageError: there is no lab of that architecture
    """
    import shutil

    from pyvmm.lab import image, newer, packages
    from pyvmm.lab.choice import default_architecture
    from pyvmm.lab.platforms import platform

    wanted = platform(arch or default_architecture())
    hint = f"install it: apt-get install {wanted.qemu_package}"
    needs = [(wanted.qemu, bool(shutil.which(wanted.qemu) or newer.fetched(wanted)), hint)]
    if image.find(wanted.architecture) is None:
        needs += packages.tools()
    return needs


def is_available(arch: str | None = None) -> bool:
    """Whether a lab can be expected to start here."""
    return all(present for _, present, _ in requirements(arch))
