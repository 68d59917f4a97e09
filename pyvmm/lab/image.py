"""The lab's base image: a Debian kernel, its modules for KVM, busybox, Python with pyelftools, and the agent.

Built once into the cache, in a directory named by a hash of the recipe (the sources of this package that
decide what is in it), and used until the recipe changes or a rebuild is asked for: a new kernel in
Debian's archive does not make tests slow or different.  The archive is not compressed: unpacking is what
an emulated processor would spend its time on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil

from pyvmm import cache, initramfs
from pyvmm.errors import HostError, UsageError
from pyvmm.lab import foreign, modules, packages, rootfs
from pyvmm.lab.platforms import platform
from pyvmm.modules import Module, given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

KERNEL, ARCHIVE, DESCRIPTION = "vmlinuz", "base.cpio", "base.json"
KEPT = 3
"""So many base images (of other checkouts, say) are kept; the least recently used go first."""

#: Depended on, but of no use in the lab.
UNWANTED = frozenset(
    ("dpkg", "debconf", "media-types", "mime-support", "mailcap", "perl", "perl-base", "readline-common", "tar",
     "install-info", "libtirpc-common", "tzdata", "netbase", "ca-certificates", "openssl")
)  # fmt: skip

_AGENT = "usr/lib/pyvmm-lab"
_OWN = (
    "protocol.py",
    "transfer.py",
    "agent/__init__.py",
    "agent/__main__.py",
    "agent/channel.py",
    "agent/job.py",
)

_INIT = """\
#!/usr/bin/busybox sh
export PATH=/usr/sbin:/usr/bin
mount() {{ /usr/bin/busybox mount -t "$1" "$1" "$2"; }}
mount proc /proc
mount sysfs /sys
mount devtmpfs /dev
/usr/bin/busybox mkdir -p /dev/pts /dev/shm
mount devpts /dev/pts
mount tmpfs /dev/shm
mount tmpfs /run
mount debugfs /sys/kernel/debug
mount tracefs /sys/kernel/tracing
/usr/bin/busybox --install -s
for module in {modules}; do
    insmod "/lib/modules/$module" || echo "lab: cannot load $module"
done
ln -s /proc/self/fd /dev/fd
ip link set lo up
hostname lab
echo -1000 > /proc/self/oom_score_adj
export PYTHONPATH=/{agent}
exec /usr/bin/python3 -S -B -m pyvmm.lab.agent
"""

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nkvm:x:36:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost lab\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    f"{_AGENT}/pyvmm/__init__.py": "",
    f"{_AGENT}/pyvmm/lab/__init__.py": "",
}
_DIRECTORIES = (
    "proc",
    "sys",
    "dev",
    "run",
    "root",
    "home",
    "mnt",
    "opt",
    "srv",
    "var/tmp",
    "usr/sbin",
    "usr/bin",
)


class Base:
    """A built base image: the paths of its ``kernel`` and ``archive``, its ``identity``, what it is made of."""

    __slots__ = ("archive", "description", "directory", "identity", "kernel")

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.kernel = os.path.join(directory, KERNEL)
        self.archive = os.path.join(directory, ARCHIVE)
        with open(os.path.join(directory, DESCRIPTION), "rb") as file:
            self.description: dict[str, Any] = json.load(file)
        self.identity: str = self.description["identity"]
        for path, size in ((self.kernel, "kernel_size"), (self.archive, "archive_size")):
            if os.stat(path).st_size != self.description[size]:
                raise ValueError(f"{path} has not the size it was made with")


def recipe(architecture: str) -> str:
    """A hash of everything in this package that decides what is in the base image of ``architecture``."""
    made_of = platform(architecture)
    digest = hashlib.sha256(repr((made_of.kernels, made_of.packages, made_of.modules)).encode())
    folder = os.path.dirname(os.path.abspath(__file__))
    for name in ("image.py", "modules.py", "packages.py", "rootfs.py", *_OWN):
        with open(os.path.join(folder, name), "rb") as file:
            digest.update(file.read())
    for folder in _elftools():
        with open(os.path.join(folder, "__init__.py"), "rb") as file:  # names its version
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _elftools() -> list[str]:
    """The directory of pyelftools, pyvmm's one dependency; empty where it is not installed."""
    spec = importlib.util.find_spec("elftools")
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def find(architecture: str) -> Base | None:
    """The base image in the cache, marked as used just now; None if there is no intact one of today's recipe."""
    directory = cache.path("lab", architecture, f"base-{recipe(architecture)}")
    try:
        os.utime(directory)
        return Base(directory)
    except (OSError, ValueError, KeyError):
        return None


def build(architecture: str, folder: str, report: Callable[[str], None]) -> Base:
    """Build the base image anew in ``folder``, the lab's cache directory, whose lock the caller holds.

    ``report`` is told what is being done.
    :raises HostError: something is missing or could not be fetched
    """
    made_of = platform(architecture)
    store = os.path.join(folder, "packages")
    os.makedirs(store, exist_ok=True)
    kernel: list[str] = []
    wanted: list[packages.Package] = []

    def fetch() -> list[str]:
        report("choosing packages")
        kernel[:] = modules.kernel_packages(made_of)
        wanted[:] = packages.candidates([*kernel, *packages.dependencies(made_of.packages, UNWANTED)])
        report(f"fetching {len(wanted)} Debian packages")
        return packages.fetch(wanted, store)

    debs = foreign.using(made_of.debian, fetch, report)
    with cache.workspace(folder) as work:
        report("unpacking")
        root, result = os.path.join(work, "root"), os.path.join(work, "base")
        os.mkdir(root)
        os.mkdir(result)
        for deb in debs[len(kernel) :]:
            rootfs.unpack(deb, root)
        installed = os.path.join(work, "modules")
        modules.unpack(debs[: len(kernel)], installed, os.path.join(result, KERNEL))
        for source in _elftools():
            shutil.copytree(
                source,
                os.path.join(root, rootfs.PYTHON_PACKAGES, "elftools"),
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        python = rootfs.add_python(root)
        entries = rootfs.entries(root) + _own_entries(_drivers(installed, made_of.modules))
        report("writing the image")
        with open(os.path.join(result, ARCHIVE), "wb", buffering=0) as file:
            initramfs.write_archive(file.fileno(), entries)
        _describe(architecture, result, wanted, python)
        final = os.path.join(folder, f"base-{recipe(architecture)}")
        cache.publish(result, final)
    _remove_packages(store, debs)
    cache.keep(folder, "base-", KEPT, final)
    return Base(final)


def _drivers(installed: str, wanted: Iterable[str]) -> list[Module]:
    """The modules ``wanted``, of those that were unpacked into ``installed``, in the order in which they are loaded."""
    try:
        return given(installed).load_order(wanted)
    except UsageError as error:  # not the user's: the kernel is one that we chose
        raise HostError(
            f"the kernel package will not do: {error.message}", "this is a bug in pyvmm: please report it"
        ) from None


def _own_entries(drivers: list[Module]) -> list[initramfs.Entry]:
    """What is in the image beside the packages: the agent, the modules, the few files of a minimal system."""
    folder = os.path.dirname(os.path.abspath(__file__))
    init = _INIT.format(modules=" ".join(f"{module.name}.ko" for module in drivers), agent=_AGENT)
    entries = [initramfs.CONSOLE, initramfs.file("init", init.encode(), 0o755)]
    entries += [initramfs.file(f"usr/lib/modules/{module.name}.ko", module.data()) for module in drivers]
    entries += [
        initramfs.host_file(f"{_AGENT}/pyvmm/lab/{name}", os.path.join(folder, name), 0o644) for name in _OWN
    ]
    entries += [initramfs.file(path, text.encode()) for path, text in _FILES.items()]
    entries += [initramfs.directory(path) for path in _DIRECTORIES]
    entries += [initramfs.directory("tmp", 0o1777)]
    entries += [initramfs.symlink(name, f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")]
    return entries


def _describe(architecture: str, result: str, wanted: list[packages.Package], python: str) -> None:
    versions = {package.name: package.version for package in wanted}
    identity = hashlib.sha256(json.dumps([recipe(architecture), versions]).encode()).hexdigest()[:16]
    description = {
        "identity": identity,
        "kernel": wanted[0].name,
        "python": python,
        "packages": versions,
        "kernel_size": os.stat(os.path.join(result, KERNEL)).st_size,
        "archive_size": os.stat(os.path.join(result, ARCHIVE)).st_size,
    }
    with open(os.path.join(result, DESCRIPTION), "w") as file:
        json.dump(description, file, indent=1)


def _remove_packages(store: str, current: Iterable[str]) -> None:
    """Remove packages that no longer are what a base image would be built from."""
    kept = set(current)
    for name in os.listdir(store):
        path = os.path.join(store, name)
        if path not in kept:
            os.unlink(path)
