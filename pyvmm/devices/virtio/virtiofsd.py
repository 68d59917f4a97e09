"""virtiofsd: finding it, and starting it with the rights that there are.

There are two programs of this name: QEMU's, in C, until version 7.2 (``docs/tools/virtiofsd.rst`` there), and its
successor in Rust (https://gitlab.com/virtio-fs/virtiofsd).  Both take a listening socket as an inherited descriptor.

QEMU's has to be root and to drop all groups, so for other users it runs in a user namespace in which they are root:
files that the guest's root makes are theirs, the guest's other users get ids of the range in /etc/subuid.  A user may
drop groups only where newgidmap(1) made the namespace.  The Rust one makes a namespace by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from pyvmm.devices.virtio.daemon import Daemon
from pyvmm.errors import HostError, UsageError

SANDBOXES = ("namespace", "chroot", "none")
#: Where distributions put it; it is no command for users, so it is seldom in PATH.
PLACES = (
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/libexec/qemu/virtiofsd",
)


def find() -> str:
    """The path of the program; HostError, naming the package, if there is none."""
    for path in (shutil.which("virtiofsd"), *PLACES):
        if path and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise HostError(
        "virtiofsd is not installed, which serves shared directories",
        "install it: apt install virtiofsd (Debian 13, Ubuntu 24.04), apt install qemu-system-common (Debian 12, "
        "Ubuntu 22.04), dnf install virtiofsd (Fedora)",
    )


def start(directory: str, *, read_only: bool = False, sandbox: str | None = None) -> Daemon:
    """A virtiofsd for ``directory``; ``sandbox`` is one of SANDBOXES, or None for the best there is.  HostError."""
    program = find()
    usage = _usage(program)
    root = os.geteuid() == 0
    directory = os.path.abspath(directory)
    return Daemon(
        "virtiofsd",
        lambda fd: command(program, usage, fd, directory, read_only, sandbox, root),
        ends_alone=True,
    )


def command(
    program: str, usage: str, fd: int, directory: str, read_only: bool, sandbox: str | None, root: bool
) -> list[str]:
    """The command line of the ``program`` whose help text is ``usage``.

    It serves ``directory`` to who connects to the listening socket ``fd``; ``root`` says whether we are.
    """
    rust = "--shared-dir" in usage
    sandbox = sandbox or ("chroot" if root_is_initial() else "namespace")
    if rust:
        if sandbox == "chroot" and not root:
            raise UsageError(
                "a virtiofsd that is not root cannot chroot", "use sandbox=namespace or sandbox=none"
            )
        serve = [program, f"--fd={fd}", f"--shared-dir={directory}", f"--sandbox={sandbox}"]
    else:
        if sandbox == "none":
            raise UsageError(
                f"{program} always has a sandbox",
                "use sandbox=namespace or sandbox=chroot, or install the newer virtiofsd",
            )
        escaped = directory.replace("\\", r"\\").replace(",", r"\,")
        serve = [program, "-f", f"--fd={fd}", "-o", f"source={escaped}", "-o", f"sandbox={sandbox}"]
        if not root:
            serve.append("--rlimit-nofile=0")  # leave it: a user may not raise it
    if read_only:
        if "--readonly" in usage:
            serve.append("--readonly")
        elif rust and not root:
            raise HostError(
                f"{program} is too old to share read-only for a user", "run as root, or update virtiofsd"
            )
        else:
            # A read-only view of the directory, in a mount namespace of its own: see read_only.py.
            helper = os.path.join(os.path.dirname(__file__), "read_only.py")
            serve = [sys.executable, "-I", "-S", helper, directory, *serve]
    if not rust and not root:
        serve = [*_user_namespace(), *serve]
    return serve


def root_is_initial() -> bool:
    """Whether we live in the initial ramfs, which no pivot_root(2) can put aside: no namespace sandbox then."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return any(
                line.split(" ")[4] == "/" and " - rootfs " in line for line in file
            )  # proc_pid_mountinfo(5): the fifth field is the mount point
    except OSError:
        return False


def _user_namespace() -> list[str]:
    """The beginning of a command that is to run as root of a user namespace (unshare(1))."""
    unshare = shutil.which("unshare")
    if unshare is None:
        raise HostError(
            "unshare is not installed, which virtiofsd needs to run without root", "apt install util-linux"
        )
    begin = [unshare, "--user", "--map-root-user"]
    if shutil.which("newuidmap") and shutil.which("newgidmap") and _has_subordinate_ids():
        begin.append("--map-auto")
    elif os.getgroups():  # they cannot be dropped
        raise HostError(
            "this virtiofsd needs newuidmap and a range of ids in /etc/subuid and /etc/subgid to run without root",
            "apt install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER; or be root",
        )
    return [*begin, "--"]


def _has_subordinate_ids() -> bool:
    """Whether /etc/subuid and /etc/subgid give this user a range (subuid(5))."""
    import pwd

    try:
        names = (pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid()))
        for path in ("/etc/subuid", "/etc/subgid"):
            with open(path, encoding="utf-8") as file:
                if not any(line.split(":")[0] in names for line in file):
                    return False
    except (OSError, KeyError):
        return False
    return True


def _usage(program: str) -> str:
    """What the program says of its options; nothing where it does not even do that, as QEMU's for most users."""
    try:
        done = subprocess.run(
            [program, "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"cannot run {program}: {error}") from None
    return done.stdout + done.stderr
