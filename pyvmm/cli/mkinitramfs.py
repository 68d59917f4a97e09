"""``pyvmm mkinitramfs``: an initramfs of busybox, given files and kernel modules, the same for the same files."""

from __future__ import annotations

import os
import stat
import sys

from pyvmm import output_file
from pyvmm.cli.arguments import Parser
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pyvmm.initramfs_files import Contents
    from pyvmm.modules import Module

COMPRESSIONS = ("none", "gzip", "zstd")


def parser() -> Parser:
    """The command line of ``pyvmm mkinitramfs``."""
    parser = Parser(
        "pyvmm mkinitramfs",
        "Make an initramfs. Programs bring the shared libraries and interpreters they name, modules those they depend "
        "on. The same files give the same bytes, whatever their times and owners.",
    )
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="FILE", help="the initramfs; - is standard output")
    add("-k", "--kernel", metavar="FILE", help="the kernel whose modules are meant, or its build tree")
    add(
        "--modules",
        metavar="DIR",
        help="where the modules are: /lib/modules/VERSION, a build tree, a kernel's .deb",
    )
    add(
        "--module", action="append", default=[], metavar="NAME",
        help="this module, and what it depends on; loaded in order",
    )  # fmt: skip
    add(
        "--busybox", nargs="?", const="", metavar="PATH",
        help="busybox (default: this host's) with its applets, and an init that gives a shell",
    )  # fmt: skip
    add(
        "--file",
        action="append",
        default=[],
        metavar="HOST[:GUEST]",
        help="a file; GUEST/ is a directory for it",
    )
    add("--dir", action="append", default=[], metavar="HOST:GUEST", help="all that is in a directory")
    add(
        "--init",
        metavar="FILE",
        help="this program or script as /init; modules are in /modules, listed in its order",
    )
    add("--agent", action="store_true", help="pyvmm's agent as /init, for commands from the host")
    add("--compress", choices=COMPRESSIONS, default="none", help="(default: none, which boots the quickest)")
    add("--no-libs", action="store_true", help="leave out the libraries and interpreters of programs")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm mkinitramfs`` with these arguments; returns the exit code."""
    options = parser().parse_args(list(arguments))
    if options.init is not None and options.agent:
        raise UsageError("--init and --agent both give /init", "take one of them")
    _check_output(options)
    contents = _contents(options)
    entries = contents.complete()
    if not entries:
        raise UsageError(
            "there is nothing to put into the initramfs", "give --busybox, --file, --init or --agent"
        )
    if "/init" not in contents:
        from pyvmm.cli import say

        say(
            "pyvmm: note: there is no /init in it: by itself it starts nothing (--init, --busybox and --agent give one)"
        )
    from pyvmm.initramfs import archive

    data = _compressed(archive(entries), options.compress)
    if options.output == "-":
        sys.stdout.flush()
        output_file.write_all(1, data)
    else:
        output_file.write("-o", options.output, data)
    return 0


def _contents(options: argparse.Namespace) -> Contents:
    from pyvmm import busybox
    from pyvmm.initramfs import CONSOLE, file
    from pyvmm.initramfs_files import Contents

    contents = Contents(libraries=not options.no_libs)
    for text in options.dir:
        contents.add_directory(*_host_and_guest("--dir", text))
    shell = options.busybox is not None
    if shell:
        busybox.add_layout(contents)
    if options.init is not None:
        contents.add_file(options.init, "init", mode=0o755)
    for text in options.file:
        contents.add_file(*_host_and_guest("--file", text))
    modules = _modules(options)
    if options.agent:
        from pyvmm.agent import agent_entries

        loaded = [(module.name, module.data()) for module in modules]
        for entry in agent_entries(_architecture(options), modules=loaded):
            contents.add(entry, weak=entry.path in (CONSOLE.path, "root"))
    elif modules:
        for module in modules:
            contents.add(file(f"{busybox.MODULES}/{module.name}.ko", module.data()))
        contents.add(file(busybox.ORDER, "".join(f"{module.name}.ko\n" for module in modules).encode()))
    if shell:
        busybox.add_busybox(contents, busybox.find_busybox(options.busybox))
        if "/init" not in contents:
            busybox.add_shell_init(contents)
    if "/init" in contents:
        contents.add(CONSOLE, weak=True)
    return contents


def _host_and_guest(option: str, text: str) -> tuple[str, str]:
    """The two sides of HOST:GUEST; without GUEST, which a directory needs, the same path."""
    host, _, guest = text.rpartition(":")
    if not host or os.path.exists(text):
        host, guest = text, ""
    if not guest:
        if option == "--dir":
            raise UsageError(
                f"--dir {text}: it is not said where in the guest", f"write --dir {host}:/ or {host}:/path"
            )
        guest = os.path.normpath(host)
        if guest.startswith(".."):
            raise UsageError(
                f"--file {text}: it is not said where in the guest", f"write --file {host}:/path"
            )
    if ".." in guest.split("/"):
        raise UsageError(f"{option} {text}: '..' in the place in the guest", "write it without")
    if option == "--file" and guest.endswith("/"):
        guest += os.path.basename(host)
    return host, guest


def _kernel(options: argparse.Namespace) -> str | None:
    if options.kernel is None:
        return None
    from pyvmm.api.kernel import find_image

    return find_image(options.kernel)


def _architecture(options: argparse.Namespace) -> str:
    from pyvmm.lab.choice import architecture_for, default_architecture

    kernel = _kernel(options)
    return default_architecture() if kernel is None else architecture_for(kernel)


def _modules(options: argparse.Namespace) -> list[Module]:
    """The modules, in the order in which they are loaded."""
    drivers: tuple[str, ...] = ()
    kernel = _kernel(options)
    if options.agent and (kernel is not None or options.modules is not None):
        from pyvmm.api.root import AGENT_DRIVERS

        drivers = AGENT_DRIVERS
    if not drivers and not options.module:
        return []
    if kernel is None and options.modules is None:
        raise UsageError(
            f"--module {options.module[0]}: it is not said of which kernel",
            "give --kernel FILE, or --modules DIR",
        )
    from pyvmm.lab.kernel_modules import load_order

    return load_order(kernel, options.modules, drivers, options.module)


def _compressed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        import struct
        import zlib

        # No name and no time; made on an unknown system (RFC 1952).
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        head = b"\x1f\x8b\x08" + bytes(5) + b"\x02\xff"
        body = packer.compress(data) + packer.flush()
        return head + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    if how == "zstd":
        from loader.decompress import library
        from loader.errors import LoaderError

        name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        try:
            zstd = library(name, "backports.zstd")
        except LoaderError as error:
            raise UsageError(
                "--compress zstd: this Python has no zstd", f"{error.hint}, or take gzip"
            ) from None
        packed: bytes = zstd.compress(data, level=12)
        return packed
    return data


def _check_output(options: argparse.Namespace) -> None:
    """UsageError for an output that cannot be written, or should not."""
    path = options.output
    if path != "-":
        output_file.check("-o", path)
    if sys.stdout.isatty() if path == "-" else _is_terminal(path):
        raise UsageError("an initramfs is not written to a terminal", "give a file: -o FILE, or a pipe")
    if path == "-":
        return
    folder = os.path.dirname(os.path.realpath(path))
    for text in options.dir:
        host = os.path.realpath(_host_and_guest("--dir", text)[0])
        if os.path.commonpath([host, folder]) == host:
            raise UsageError(
                f"-o {path} lies in --dir {host}, and would be part of itself", "write it somewhere else"
            )


def _is_terminal(path: str) -> bool:
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            return False
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:  # which writing to it tells
        return False
    try:
        return os.isatty(fd)
    finally:
        os.close(fd)
