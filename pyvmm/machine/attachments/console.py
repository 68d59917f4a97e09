"""``--console hvc`` and ``--console port=NAME,socket=PATH``: virtio consoles, and ports for channels of one's own.

``hvc`` is a terminal of the guest's (/dev/hvc0) that shows where the serial port shows, and gets what is typed as
soon as the guest's driver is there.  A port is /dev/virtio-ports/NAME in the guest, and here a Unix socket for one
client at a time, or a file that its output goes to.
"""

from __future__ import annotations

import os
import socket
import stat

from pyvmm.console import Console
from pyvmm.devices.virtio.console import ConsoleDevice, Port
from pyvmm.devices.virtio.console_files import FileEndpoint, SocketEndpoint
from pyvmm.devices.virtio.console_ports import CHUNK, Channel, Endpoint, gather
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments.base import Attachment, Host, Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of input that may wait for hvc0 before the loop reads no more.
INPUT_LIMIT = 4096
#: Linux makes a file name of it, and a uevent of that: what is longer than this, or has a slash in it, is trouble.
NAME_BYTES = 64


class Terminal(Channel):
    """The host's side of hvc0: output goes to ``console``, which hands on what is typed."""

    def __init__(self, console: Console) -> None:
        def wake() -> None:
            if console.wake_fd >= 0:
                os.eventfd_write(console.wake_fd, 1)

        super().__init__(on_open=lambda is_open: wake(), on_room=wake, limit=INPUT_LIMIT)
        self._console = console
        self._waits_for_room = False

    def take(self, views: list[memoryview]) -> int:
        """Output to the console, unless its reader is behind; :data:`CHUNK` bytes at a time."""
        console = self._console
        if console.full:
            if not self._waits_for_room:  # each kick of the guest's asks again
                self._waits_for_room = True
                console.when_room(self._has_room)
            return 0
        data = gather(views, CHUNK)
        console.put_bytes(data)
        return len(data)

    def _has_room(self) -> None:
        self._waits_for_room = False
        self.release()

    def receive(self, data: bytes) -> None:
        """Input for the guest."""
        self.send(data)


class ControlChannel(Channel):
    """A port for the owner of the machine, over the control connection."""

    def join(self, on_output: Callable[[bytes], None], on_open: Callable[[bool], None]) -> None:
        """From now on, before the machine runs, the guest's output and its opening and closing go there."""
        self._on_output = on_output
        self._on_open = on_open


class _Listener:
    """A listening Unix socket at ``path``; closing it removes the path, if it is still ours."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(self.socket.fileno(), 0o600)  # what bind(2) gives the path
            self.socket.bind(path)
            status = os.lstat(path)
            self._key = (status.st_dev, status.st_ino)
            self.socket.listen(8)
        except OSError as error:
            self.socket.close()
            reason = error.strerror or str(error)  # a path that is too long has no errno
            raise HostError(f"cannot listen on {path}: {reason}", "choose another place") from None

    def close(self) -> None:
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._key:
                os.unlink(self.path)
        except OSError:
            pass
        self.socket.close()


class ConsoleAttachment(Attachment):
    """hvc0, or a named port joined to a socket or a file."""

    KIND = "console"
    KEYS = {
        "hvc": Key(bool, help="a terminal for the guest, /dev/hvc0"),
        "port": Key(str, help="the name of a port, /dev/virtio-ports/NAME in the guest"),
        "socket": Key(str, path=True, help="join the port to a Unix socket that pyvmm listens on"),
        "file": Key(str, path=True, help="write the port's output to a file"),
        "control": Key(bool, help="join the port to the control connection, for boot --control -"),
    }

    hvc: bool
    port: str | None
    socket: str | None
    file: str | None
    control: bool

    @property
    def for_owner(self) -> bool:
        """Whether the port goes to the owner."""
        return self.control

    def changed_files(self) -> list[str]:
        """The file that the port's output goes to."""
        return [self.file] if self.file else []

    def check(self) -> None:
        """Whether what is asked for makes sense, and its place can be used."""
        if self.hvc == (self.port is not None):
            raise UsageError(
                "a console is either hvc or a port", "write --console hvc, or --console port=NAME,..."
            )
        if self.hvc:
            if self.socket or self.file or self.control:
                raise UsageError(
                    "hvc shows where the serial port shows", "give socket, file and control with a port=NAME"
                )
            return
        assert self.port is not None
        if (
            not self.port
            or "/" in self.port
            or len(self.port.encode()) > NAME_BYTES
            or not self.port.isprintable()
        ):
            raise UsageError(
                f"'{self.port}' cannot be the name of a port",
                f"give at most {NAME_BYTES} bytes without a slash, as org.example.agent",
            )
        if bool(self.socket) + bool(self.file) + self.control != 1:
            raise UsageError(
                f"port {self.port}: where is it to go?", "give one of socket=PATH, file=PATH and control"
            )
        if self.socket:
            check_socket(self.socket)

    def create(self, host: Host) -> ConsoleDevice:
        """Make the device; for a port, open its file or listen on its socket."""
        if self.hvc:
            return self._terminal(host)
        assert self.port is not None
        endpoint: Endpoint
        if self.control:
            endpoint = ControlChannel()
        elif self.socket:
            check_socket(self.socket)
            _remove_socket(self.socket)
            listener = _Listener(self.socket)
            host.closers.append(listener)
            endpoint = SocketEndpoint(listener.socket)
        else:
            assert self.file is not None
            endpoint = FileEndpoint(_open(self.file), self.file, host.say)
        return ConsoleDevice(host.name, [Port(endpoint, self.port)])

    def _terminal(self, host: Host) -> ConsoleDevice:
        if host.console.input is not None:
            raise UsageError("there can be only one hvc", "give --console hvc once")
        terminal = Terminal(host.console)
        host.console.input = terminal
        return ConsoleDevice(host.name, [Port(terminal, console=True)])


def check_socket(path: str) -> None:
    """UsageError if something stands at ``path`` that is no socket, HostError if somebody listens on it."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise UsageError(f"{path}: there is no directory {folder}", "make the directory first") from None
        return
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "choose another place") from None
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} is there and is no socket", "choose another place, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # left behind by somebody who is gone
        except FileNotFoundError:
            return
        except OSError:
            pass
    raise HostError(f"somebody listens on {path} already", "choose another place, or stop the other program")


def _remove_socket(path: str) -> None:
    """Make room where a socket was left behind; HostError if it is somebody else's."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"cannot replace {path}: {error.strerror}", "choose another place") from None


def _open(path: str) -> int:
    """The file that a port's output goes to, emptied; a pipe or terminal without waiting for its reader."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "choose a writable place") from None


ATTACHMENT = ConsoleAttachment
