"""What differs between the architectures of the lab: QEMU's options, Debian's packages, the modules.

Measured choices for x86_64 (QEMU 7.2, two cores): five-level paging (``la57``) makes every nested walk
longer, so it is off; without ``erms`` and ``fsrm`` kernels copy eight bytes in an emulated step of
``rep movs`` instead of one (dd to memory takes a third of the time); ``mitigations=off`` and
``init_on_alloc=0`` keep the lab's own kernel from doing work that protects nobody here.
"""

from __future__ import annotations

from pyvmm.errors import UsageError

PLAIN = ("busybox-static", "python3-minimal", "libpython3-stdlib")


class Platform:
    """How to emulate a host of one architecture that offers KVM."""

    __slots__ = (
        "architecture", "cmdline", "debian", "firmware", "kernels", "machine", "modules", "packages", "qemu",
        "qemu_package",
    )  # fmt: skip

    def __init__(
        self, *, architecture: str, debian: str, qemu: str, qemu_package: str, firmware: tuple[str, ...],
        machine: tuple[str, ...], cmdline: str, kernels: tuple[str, ...], packages: tuple[str, ...],
        modules: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.architecture = architecture
        self.debian = debian  # dpkg's name of it
        self.qemu = qemu  # the program
        self.qemu_package = qemu_package
        self.firmware = firmware  # packages that this QEMU needs to start a kernel
        self.machine = machine  # its options
        self.cmdline = cmdline
        self.kernels = kernels  # meta-packages: the first one that apt knows gives the kernel
        self.packages = packages
        self.modules = modules  # loaded in this order, after what they depend on; ``?`` marks the optional


PLATFORMS = {
    "x86_64": Platform(
        architecture="x86_64",
        debian="amd64",
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        firmware=("seabios",),
        machine=(
            "-accel", "tcg,thread=multi",
            "-cpu", "max,+svm,+npt,-la57,-erms,-fsrm,-xsave",
            "-machine", "q35,usb=off,vmport=off,sata=off,smbus=off,hpet=off,i8042=off,memory-backend=ram",
        ),
        cmdline=(
            "console=ttyS0 loglevel=4 panic=-1 reboot=t mitigations=off audit=0 init_on_alloc=0 nowatchdog "
            "nokaslr tsc=reliable random.trust_cpu=on rcupdate.rcu_cpu_stall_suppress=1"
        ),
        kernels=("linux-image-cloud-amd64", "linux-image-amd64", "linux-image-virtual", "linux-image-generic"),
        packages=PLAIN,
        modules=(
            "kvm_amd", "virtio_pci", "virtio_console", "virtio_blk",
            "?vhost_net", "?vhost_vsock", "?tun", "?loop", "?fuse", "?overlay",
        ),
    ),
    "aarch64": Platform(
        architecture="aarch64",
        debian="arm64",
        qemu="qemu-system-aarch64",
        qemu_package="qemu-system-arm",
        firmware=(),
        machine=(
            "-accel", "tcg,thread=multi",
            "-cpu", "max,pauth-impdef=on,sve=off,sme=off",
            "-machine", "virt,virtualization=on,gic-version=3,memory-backend=ram",
        ),
        cmdline=(
            "console=ttyAMA0 loglevel=4 panic=-1 mitigations=off audit=0 init_on_alloc=0 nowatchdog "
            "nokaslr random.trust_cpu=on rcupdate.rcu_cpu_stall_suppress=1"
        ),
        kernels=("linux-image-cloud-arm64", "linux-image-arm64", "linux-image-virtual", "linux-image-generic"),
        packages=PLAIN,
        modules=(
            "virtio_pci", "virtio_console", "virtio_blk",
            "?vhost_net", "?vhost_vsock", "?tun", "?loop", "?fuse", "?overlay",
        ),
    ),
}  # fmt: skip


def platform(architecture: str) -> Platform:
    """The platform for ``architecture``.

    :raises UsageError: there is no lab of that architecture
    """
    try:
        return PLATFORMS[architecture]
    except KeyError:
        known = ", ".join(PLATFORMS)
        raise UsageError(
            f"there is no lab for architecture '{architecture}'", f"there is one for {known}"
        ) from None
