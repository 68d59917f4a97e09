"""A machine looked at from outside: paused, its registers, its memory."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from pyvmm.control.protocol import MOST_READ
from pyvmm.errors import PyvmmError, UsageError

#: Bytes of guest memory in one request to write; as base64, it has to fit into a line.
_WRITE_PIECE = 32 * 1024
#: Seconds that a machine has to say how it ended, once it can no longer be paused.
_END_SECONDS = 10.0


class Inspection:
    """What :class:`pyvmm.Machine` offers of this; it provides the two methods that raise NotImplementedError."""

    def __init__(self) -> None:
        self._standing = threading.RLock()  # pausing, looking and going on are one step
        self._paused = False

    def _call(self, command: str, timeout: float | None = 60.0, **arguments: object) -> dict[str, Any]:
        """A request to the machine's process, and its result."""
        raise NotImplementedError

    def _has_ended(self, timeout: float) -> bool:
        """Whether the machine ends within ``timeout`` seconds."""
        raise NotImplementedError

    def pause(self) -> None:
        """Stop all vCPUs; the guest's clocks stand still.  No error if they are stopped already."""
        with self._standing:
            self._call("pause", timeout=None)
            self._paused = True

    def resume(self) -> None:
        """Let a paused guest go on."""
        with self._standing:
            self._call("resume")
            self._paused = False

    @contextlib.contextmanager
    def _standing_still(self) -> Iterator[None]:
        """The vCPUs do not run meanwhile: it is paused, has ended, or is paused for the moment."""
        with self._standing:
            stop = not self._paused and not self._has_ended(0)
            if stop:
                try:
                    self._call("pause", timeout=None)
                except UsageError:
                    if not self._has_ended(_END_SECONDS):
                        raise
                    stop = False
            try:
                yield
            finally:
                if stop:
                    with contextlib.suppress(PyvmmError):  # it has ended
                        self._call("resume")

    def regs(self, vcpu: int = 0) -> dict[str, int]:
        """The registers of a vCPU by name (``rip``, ``cr3``; ``pc``, ``ttbr0_el1``), all as of one moment.

        >>> with Machine(hello) as vm:
        ...     _ = vm.wait()
        ...     vm.regs()["cs"]
        16
        """
        with self._standing_still():
            found: dict[str, int] = self._call("regs", vcpu=vcpu)["regs"]
        return found

    def translate(self, address: int, vcpu: int = 0) -> int | None:
        """The guest physical address of a virtual one, by a vCPU's page tables; None where nothing is mapped."""
        with self._standing_still():
            physical: int | None = self._call("translate", address=address, vcpu=vcpu)["physical"]
        return physical

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of guest memory from the physical ``address`` on.  UsageError outside RAM.

        >>> with Machine(hello) as vm:
        ...     vm.write(0x80000, b"written")
        ...     vm.read(0x80000, 7)
        b'written'
        """
        data = bytearray()
        while len(data) < size:
            piece = min(MOST_READ, size - len(data))
            data += base64.b64decode(self._call("read", address=address + len(data), size=piece)["data"])
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` to guest memory from the physical ``address`` on.  UsageError outside RAM."""
        for at in range(0, len(data), _WRITE_PIECE):
            self._call("write", address=address + at, data=bytes(data[at : at + _WRITE_PIECE]))

    def status(self) -> dict[str, Any]:
        """What it is doing: state, uptime, vCPUs, devices."""
        return self._call("status")

    def exits(self) -> dict[str, Any]:
        """Exits to userspace so far: ``total`` and ``by_device``."""
        return self._call("exits")
