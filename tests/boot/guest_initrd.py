"""An initrd for tests of devices: busybox, modules of a stock Debian kernel, and a shell script that init runs.

``initrd(["virtio_mmio", "virtio_rng"], "dd if=/dev/hwrng ...")``.  The modules come out of the kernel's own package and
are loaded, with those they depend on, before the script starts; the guest powers off after it.  What the script
prints goes to the console.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from pyvmm import cache, initramfs
from pyvmm.lab import foreign, kernels, packages
from pyvmm.lab.kernel_modules import fetched_modules

#: /proc, /sys, /dev, /dev/pts, /dev/shm, /run, /tmp and /mnt are there.  A module that does not load is said.  The
#: exit status of the script is printed as "script: exit N", after the interrupts of virtio devices.
INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for module in $(cat /modules/order); do
    insmod /modules/$module.ko || echo "init: $module was not loaded"
done
sh /script
status=$?
grep virtio /proc/interrupts
echo "script: exit $status"
sync
poweroff -f
"""


def _quiet(_text: str) -> None:
    pass


def busybox(architecture: str = "amd64") -> bytes:
    """Debian's static busybox for the architecture of that name, kept in the cache."""
    with cache.lock("modules") as locked:
        (deb,) = foreign.using(
            architecture,
            lambda: packages.fetch(packages.candidates(["busybox-static"]), locked),
            _quiet,
        )
        for member, contents in packages.members(deb):
            if contents is not None and os.path.basename(member.name) == "busybox":
                return contents.read()
    raise AssertionError("busybox-static holds no busybox")


def initrd(
    wanted: Iterable[str],
    script: str,
    kernel: str = "debian-6.1-cloud",
    files: dict[str, bytes] | None = None,
) -> bytes:
    """The initrd: ``wanted`` modules (as lsmod names them; "?name": if the package has it) loaded in order,
    then ``script`` by sh.  ``files`` are put there too, executable, by their paths."""
    tree = fetched_modules(kernels.fetch(kernel))
    assert tree is not None
    order = tree.load_order(wanted)
    entries = [
        initramfs.CONSOLE,
        initramfs.file("bin/busybox", busybox(kernels.STOCK[kernel].architecture), 0o755),
        initramfs.file("init", INIT.encode(), 0o755),
        initramfs.file("script", script.encode(), 0o755),
        initramfs.file("modules/order", "".join(f"{module.name}\n" for module in order).encode()),
    ]
    entries += [initramfs.file(f"modules/{module.name}.ko", module.data()) for module in order]
    entries += [initramfs.file(path, data, 0o755) for path, data in (files or {}).items()]
    return initramfs.archive(entries)
