"""Where control sockets stand, and who may use them: the user who runs the machine, nobody else.

A machine with a name and no path of its own has its socket in ``$XDG_RUNTIME_DIR/pyvmm`` (XDG Base Directory
Specification 0.8), or where that is not set in ``/run/user/UID/pyvmm`` or ``/tmp/pyvmm-UID``: a directory with mode
0700 that belongs to the user.  The socket has mode 0600 from its first moment on, and both sides ask the kernel who the
other is (unix(7), SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterator

from pyvmm.errors import HostError, UsageError
from pyvmm.text import printable

SUFFIX = ".sock"
#: Bytes of a socket's path (unix(7): sun_path has 108, the last of which is zero).
MOST_PATH = 107
BACKLOG = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
#: Seconds to wait for somebody else who is putting a socket into the same directory.
_PATIENCE = 2.0


def runtime_directory(*, make: bool = False) -> str:
    """The directory of the named machines' sockets.  HostError if it is there and not the user's alone."""
    uid = os.geteuid()
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base):
        path = os.path.join(base, "pyvmm")
    elif os.path.isdir(f"/run/user/{uid}") and os.stat(f"/run/user/{uid}").st_uid == uid:
        path = f"/run/user/{uid}/pyvmm"
    else:
        path = f"/tmp/pyvmm-{uid}"
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
        status = os.lstat(path)
    except FileNotFoundError:
        if make:
            raise HostError(
                f"cannot make {path}: there is no {os.path.dirname(path)}", "set XDG_RUNTIME_DIR"
            ) from None
        return path
    except OSError as error:
        raise HostError(f"cannot use {path}: {error.strerror}", "set XDG_RUNTIME_DIR") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
        raise HostError(
            f"{path} is not a directory that only you may use", "remove it, or set XDG_RUNTIME_DIR to another"
        )
    return path


def check_name(name: str) -> str:
    """``name`` if a machine may be called that; UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{printable(name)}' is no name for a machine", "use up to 64 letters, digits, '.', '_' and '-'"
        )
    return name


def path_of(name: str, *, make: bool = False) -> str:
    """The path of the socket of the machine with that name."""
    return os.path.join(runtime_directory(make=make), check_name(name) + SUFFIX)


def peer(connection: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end, when it connected or listened: (pid, uid)."""
    pid, uid, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid


def is_dead(path: str) -> bool:
    """Whether nobody listens at the socket ``path``; a socket that cannot be reached is not known to be dead."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def remove_dead(path: str) -> bool:
    """Remove the socket of a machine that is gone; whether it was one."""
    with _locked(os.path.dirname(path) or "."):
        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode) or not is_dead(path):
                return False
            os.unlink(path)
        except OSError:
            return False
    return True


class Listener:
    """A socket at ``path`` that listens, non-blocking; takes the place of one whose machine is gone.  UsageError."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        if len(os.fsencode(self.path)) > MOST_PATH:
            raise UsageError(
                f"the path of the control socket has {len(os.fsencode(self.path))} bytes: {printable(self.path)}",
                f"sockets can have {MOST_PATH}: choose a shorter path",
            )
        if "\0" in self.path:
            raise UsageError("the path of the control socket has a zero byte in it", "choose another path")
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            self._bind()
        except OSError as error:
            self.socket.close()
            raise UsageError(
                f"cannot make the control socket {printable(self.path)}: {error.strerror}",
                "choose a place in a directory that can be written",
            ) from None
        except BaseException:
            self.socket.close()
            raise

    def _bind(self) -> None:
        with _locked(os.path.dirname(self.path)):
            self._make_room()
            # bind() makes the socket with mode 0600: there is no moment with wider rights.
            former = os.umask(0o177)
            try:
                self.socket.bind(self.path)
            finally:
                os.umask(former)
            self._file = _identity(self.path)
            self.socket.listen(BACKLOG)

    def _make_room(self) -> None:
        """Remove a socket at which nobody listens; UsageError for anything else that is there."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        shown = printable(self.path)
        if not stat.S_ISSOCK(mode):
            raise UsageError(
                f"{shown} is there and is no socket", "remove it yourself, or choose another path"
            )
        if not is_dead(self.path):
            raise UsageError(
                f"a running machine has its control socket at {shown}",
                "choose another name or path, or stop that machine: pyvmm ctl",
            )
        os.unlink(self.path)

    def close(self) -> None:
        """Stop listening and remove the socket, if it is still ours.  Idempotent."""
        if self.socket.fileno() < 0:
            return
        with _locked(os.path.dirname(self.path)):
            with contextlib.suppress(OSError):
                if _identity(self.path) == self._file:
                    os.unlink(self.path)
            self.socket.close()


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep others who put sockets there, or remove them, away for a moment.

    Whoever may read the directory could hold its lock for ever, so that after a while this goes on without.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK or time.monotonic() > deadline:
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)
