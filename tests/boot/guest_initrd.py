"""An initrd for tests of devices: busybox, modules of a stock Debian kernel, and a shell script that init runs.

``initrd(["virtio_mmio", "virtio_rng"], "dd if=/dev/hwrng ...")``.  The modules come out of the kernel's own package and
are loaded, with those they depend on, before the script starts; the guest powers off after it.  What the script
prints goes to the console.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from pyvmm import cache, initramfs
from pyvmm.lab import foreign, kernels, modules, packages

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


def package_modules(kernel: str) -> dict[str, str | None]:
    """The path of each module of the stock ``kernel`` by name, None for one that is built in; unpacked in the cache.

    HostError if its package cannot be had.
    """
    image = kernels.fetch(kernel)
    architecture = kernels.STOCK[kernel].architecture
    with open(f"{image}.json", "rb") as file:
        about = json.load(file)
    name = f"{about['package']}-{about['version'].replace(':', '_')}"
    with cache.lock("modules") as locked:
        final = os.path.join(locked, name)
        index = os.path.join(final, "index.json")
        if not os.path.exists(index):
            with cache.workspace(locked) as work:
                debs = foreign.using(architecture, lambda: _kernel_packages(about["package"], work), _quiet)
                made = os.path.join(work, "made")
                os.mkdir(made)
                unpacked = modules.unpack(debs, os.path.join(work, "kernel"), os.path.join(made, "modules"))
                relative = {key: path and os.path.relpath(path, made) for key, path in unpacked.items()}
                with open(os.path.join(made, "index.json"), "w") as file:
                    json.dump(relative, file)
                cache.publish(made, final)
        with open(index) as file:
            found: dict[str, str | None] = json.load(file)
    return {key: path and os.path.join(final, path) for key, path in found.items()}


def _kernel_packages(package: str, folder: str) -> list[str]:
    """The package of a kernel, and those of its modules, fetched into ``folder``."""
    more = packages.direct_dependencies(package) or []
    wanted = [package, *(each for each in more if each.startswith("linux-modules-"))]
    return packages.fetch(packages.candidates(wanted), folder)


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
    order = modules.load_order(package_modules(kernel), wanted)
    entries = [
        initramfs.CONSOLE,
        initramfs.file("bin/busybox", busybox(kernels.STOCK[kernel].architecture), 0o755),
        initramfs.file("init", INIT.encode(), 0o755),
        initramfs.file("script", script.encode(), 0o755),
        initramfs.file("modules/order", "".join(f"{name}\n" for name in order).encode()),
    ]
    entries += [initramfs.file(f"modules/{name}.ko", data) for name, data in order.items()]
    entries += [initramfs.file(path, data, 0o755) for path, data in (files or {}).items()]
    return initramfs.archive(entries)
