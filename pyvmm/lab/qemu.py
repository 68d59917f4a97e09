"""The emulator: one QEMU process, its console log, its control channel (QMP), and its certain end.

QEMU gets its channels as inherited socket pairs, and its console and the mailbox as unlinked memory files, so
nothing of it is ever left in the file system.  It runs in a process group of its own, is killed with this
object, and by the kernel (PR_SET_PDEATHSIG) should the thread that started it end in whatever way.
QMP is QEMU's documented JSON protocol, docs/interop/qmp-spec.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time

from pyvmm.errors import HostError
from pyvmm.lab.platforms import Platform
from pyvmm.lab.protocol import MAILBOX_SIZE, PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class LabError(HostError):
    """The lab could not be started, or ended when it should not; ``console`` is the end of its console log."""

    console = ""


def find(platform: Platform) -> str:
    """The path of the platform's QEMU.

    :raises HostError: it is not installed
    """
    path = shutil.which(platform.qemu)
    if path is None:
        raise HostError(
            f"the lab needs {platform.qemu}, which is not in PATH",
            f"install it: apt-get install {platform.qemu_package} (or this system's package of QEMU)",
        )
    return path


def identity(path: str) -> str:
    """What changes when another QEMU is installed at ``path``: cheaper than asking for its version."""
    real = os.path.realpath(path)
    status = os.stat(real)
    return f"{real} {status.st_size} {status.st_mtime_ns}"


def _die_with_parent() -> Callable[[], None]:
    """A function for the child to run between fork and exec."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def between_fork_and_exec() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return between_fork_and_exec


class Qemu:
    """A running QEMU.  ``channel`` is our end of the agent's port, ``mailbox`` the disk between us and it.

    :raises LabError: it could not be started
    """

    def __init__(self, program: str, options: Sequence[str]) -> None:
        self.channel, channel = socket.socketpair()
        control, qmp = socket.socketpair()
        self._console = os.memfd_create("pyvmm-lab-console", os.MFD_CLOEXEC)
        self._complaints = os.memfd_create("pyvmm-lab-errors", os.MFD_CLOEXEC)
        self.mailbox = os.memfd_create("pyvmm-lab-mailbox", os.MFD_CLOEXEC)
        os.truncate(self.mailbox, MAILBOX_SIZE)
        self._qmp = _Qmp(control, self)
        try:
            with channel, qmp:
                self._process = subprocess.Popen(
                    [
                        program, "-name", "pyvmm-lab", "-nodefaults", "-no-user-config", "-display", "none",
                        "-no-reboot", *options,
                        "-chardev", f"file,id=console,path=/proc/self/fd/{self._console}",
                        "-serial", "chardev:console",
                        "-chardev", f"socket,id=control,fd={qmp.fileno()}", "-mon", "chardev=control,mode=control",
                        "-device", "virtio-serial-pci,max_ports=2",
                        "-chardev", f"socket,id=agent,fd={channel.fileno()}",
                        "-device", f"virtserialport,chardev=agent,name={PORT}",
                        "-blockdev", f"file,node-name=mailbox,filename=/proc/self/fd/{self.mailbox},locking=off",
                        "-device", "virtio-blk-pci,drive=mailbox",
                    ],
                    stdin=subprocess.DEVNULL, stdout=self._complaints, stderr=self._complaints,
                    pass_fds=[channel.fileno(), qmp.fileno(), self._console, self.mailbox],
                    process_group=0, preexec_fn=_die_with_parent(),
                )  # fmt: skip
        except OSError as error:
            self._close_descriptors()
            raise LabError(f"cannot start {program}: {error.strerror}") from None
        self.pid = self._process.pid

    def execute(self, command: str, timeout: float = 60, **arguments: Any) -> Any:
        """Run a QMP command; returns its result.

        :raises LabError: QEMU refused, ended, or did not answer within ``timeout`` seconds
        """
        return self._qmp.execute(command, timeout, arguments)

    def pass_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a duplicate of ``descriptor``, which its commands then know as ``name``.

        :raises LabError: as :meth:`execute`
        """
        self._qmp.execute("getfd", 60, {"fdname": name}, descriptor)

    @property
    def ended(self) -> bool:
        """Whether QEMU has ended by itself."""
        return self._process.poll() is not None

    def console_tail(self, lines: int = 15) -> str:
        """The last lines of the lab's console, and what QEMU complained about."""
        tail = []
        for descriptor in (self._console, self._complaints):
            size = os.fstat(descriptor).st_size
            text = os.pread(descriptor, 65536, max(0, size - 65536)).decode(errors="replace")
            tail += [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
        return "\n".join(tail)

    def failure(self, what: str, hint: str = "") -> LabError:
        """A LabError that says ``what`` went wrong and how the lab's console ended."""
        tail = self.console_tail()
        last = tail.rpartition("\n")[2]
        error = LabError(f"{what}: {last}" if last else what, hint)
        if tail:
            error.console = tail
            error.add_note(f"lab console:\n{tail}")
        return error

    def stop(self) -> None:
        """End QEMU at once, whatever state it is in; harmless when it has ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._close_descriptors()

    def wait(self, timeout: float) -> bool:
        """Wait for QEMU to end by itself; returns whether it did."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _close_descriptors(self) -> None:
        self.channel.close()
        self._qmp.close()
        for name in ("_console", "_complaints", "mailbox"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


class _Qmp:
    """One QMP session: commands in order, events ignored."""

    def __init__(self, connection: socket.socket, owner: Qemu) -> None:
        self._connection = connection
        self._owner = owner
        self._buffer = b""
        self._negotiated = False

    def close(self) -> None:
        self._connection.close()

    def execute(
        self, command: str, timeout: float, arguments: dict[str, Any], descriptor: int | None = None
    ) -> Any:
        deadline = time.monotonic() + timeout
        if not self._negotiated:
            self._read(deadline)  # the greeting
            self._negotiated = True
            self.execute("qmp_capabilities", timeout, {})
        request = {"execute": command, "arguments": arguments}
        descriptors = [] if descriptor is None else [descriptor]
        with contextlib.suppress(OSError):  # a QEMU that has ended is noticed by reading
            socket.send_fds(self._connection, [json.dumps(request).encode()], descriptors)
        while True:
            reply = self._read(deadline)
            if "error" in reply:
                raise LabError(f"QEMU refused {command}: {reply['error'].get('desc', reply['error'])}")
            if "return" in reply:
                return reply["return"]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._connection], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise LabError("QEMU does not answer its monitor")
            try:
                data = self._connection.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise self._owner.failure("QEMU ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply
