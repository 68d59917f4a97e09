"""A case made ready for another host: its files by content, and back to paths there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pyvmm.errors import UsageError
from pyvmm.machine.attachments import attachment
from pyvmm.testing import content
from pyvmm.testing.case import CaseSpec
from pyvmm.testing.machines import option_text

#: Bytes of a file that is sent to workers.
MOST_FILE = 1 << 30
#: What stands in a spec for a file: this, and the digest.
_MARK = "content:"


@dataclass
class Shipment:
    """A case whose files are marks, and the contents of these by their digests."""

    spec: CaseSpec
    contents: dict[str, bytes]


def pack(spec: CaseSpec, read: Callable[[str], bytes] | None = None) -> Shipment:
    """Make ``spec`` independent of this host's files; ``read`` gives a file's content (and may remember it).

    :raises UsageError: it needs what cannot be sent: a directory, a disk that the guest writes to, too large a file
    """
    from pyvmm.api.kernel import find_image

    packer = _Packer(read or read_file)
    kernel = find_image(spec.path)
    initrd = None if spec.initrd is None else packer.file(spec.initrd)
    if spec.command is not None:
        _check_directories(spec)
        if initrd is None:
            from pyvmm.api.guest import Guest

            guest = Guest(kernel, root=spec.root, modules=spec.modules, drivers=spec.drivers)
            initrd = packer.data(guest.initramfs())
    packed = replace(
        spec, path=packer.file(kernel), initrd=initrd, modules=None, drivers=[],
        devices=[packer.device(each) for each in spec.devices], options=packer.options(spec.options),
    )  # fmt: skip
    return Shipment(packed, packer.contents)


def unpack(spec: CaseSpec, paths: Mapping[str, str]) -> CaseSpec:
    """The spec with the paths of its contents, by digest, in the place of the marks."""

    def resolve(text: str) -> str:
        for digest, path in paths.items():
            text = text.replace(_MARK + digest, path)
        return text

    return replace(
        spec, path=resolve(spec.path), initrd=None if spec.initrd is None else resolve(spec.initrd),
        devices=[resolve(each) for each in spec.devices], options=[resolve(each) for each in spec.options],
    )  # fmt: skip


def read_file(path: str) -> bytes:
    """The content of a file that is to be sent.  UsageError."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MOST_FILE:
                raise UsageError(
                    f"{path} is too large to be sent to workers (more than {MOST_FILE >> 20} MiB)",
                    "run its cases here",
                )
            return file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be sent to workers: {error.strerror}", "check the name") from None


def _check_directories(spec: CaseSpec) -> None:
    directories = [*spec.rodirs, *spec.rwdirs]
    if spec.root not in (None, "/", "initramfs"):
        directories.append(spec.root)
    if directories:
        raise UsageError(
            f"{directories[0]} cannot be sent to workers: only the root / is there, the worker's own",
            "run such cases here, without --cluster",
        )


class _Packer:
    """Turns paths into marks, and remembers what is behind them."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self.contents: dict[str, bytes] = {}
        self._read = read

    def data(self, data: bytes) -> str:
        digest = content.digest_of(data)
        self.contents[digest] = data
        return _MARK + digest

    def file(self, path: str) -> str:
        return self.data(self._read(path))

    def device(self, text: str) -> str:
        kind, _, value = text.removeprefix("--").partition("=")
        made = attachment(kind).parse(value)
        if made.changed_files() or kind == "share":
            raise UsageError(
                f"{text}: what the guest may change cannot be sent to workers",
                "add ro or overlay, or run it here",
            )
        files = {path: self.file(path) for path in made.files()}
        if not files:
            return text
        table = {
            name: files.get(item, item) if isinstance(item, str) else item
            for name, item in made.to_table().items()
        }
        return option_text(attachment(kind).from_table(table))

    def options(self, options: list[str]) -> list[str]:
        """Options of pyvmm boot, a device tree among them sent too."""
        done = list(options)
        for index, option in enumerate(done[:-1]):
            if option == "--dtb":
                done[index + 1] = self.file(done[index + 1])
        return done
