"""The cache directory: things that cost time to make and can always be made again.

It is ``$PYVMM_CACHE``, else ``$XDG_CACHE_HOME/pyvmm``, else ``~/.cache/pyvmm`` (XDG Base Directory
Specification 0.8, "Environment variables": a relative ``$XDG_CACHE_HOME`` is ignored).  Several processes
may use it at once: whoever makes something holds an exclusive :func:`lock`, makes it in a
:func:`workspace` beside its place, and :func:`publish` renames it there whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKSPACE_PREFIX = "tmp-"


def directory() -> str:
    """The absolute path of the cache directory; it need not exist."""
    chosen = os.environ.get("PYVMM_CACHE")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "pyvmm")


def path(*parts: str) -> str:
    """The path of something in the cache; neither it nor its parents need exist."""
    return os.path.join(directory(), *parts)


def make(*parts: str) -> str:
    """Make a directory of the cache, and its parents, if missing; return its path.

    :raises HostError: it cannot be made or written
    """
    target = path(*parts)
    try:
        os.makedirs(target, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot make the cache directory {target}: {error.strerror}",
            "set PYVMM_CACHE to a directory that can be written",
        ) from None
    if not os.access(target, os.W_OK | os.X_OK):
        raise HostError(
            f"the cache directory {target} cannot be written",
            "set PYVMM_CACHE to a directory that can be written",
        )
    return target


@contextlib.contextmanager
def lock(*parts: str, waiting: Callable[[], None] | None = None) -> Iterator[str]:
    """Hold the cache directory ``parts`` for ourselves, among all processes; gives its path.

    ``waiting`` is called once if another process holds it.  The lock ends with the process, however it ends.
    """
    target = make(*parts)
    descriptor = os.open(os.path.join(target, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if waiting is not None:
                waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield target
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def workspace(locked: str) -> Iterator[str]:
    """A fresh directory inside ``locked`` (a path that :func:`lock` gave), removed afterwards.

    Under the lock nobody else has one there, so what a killed process left behind goes first.
    """
    import shutil  # late: it brings every compression library, and a plain boot only needs directory()

    for name in os.listdir(locked):
        if name.startswith(WORKSPACE_PREFIX):
            shutil.rmtree(os.path.join(locked, name), ignore_errors=True)
    fresh = os.path.join(locked, f"{WORKSPACE_PREFIX}{os.getpid()}")
    os.mkdir(fresh, 0o700)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def publish(made: str, final: str) -> None:
    """Rename ``made`` (a file, or a directory in a workspace) to ``final``, in place of what stood there."""
    if os.path.isdir(final) and not os.path.islink(final):
        import shutil

        old = f"{made}.old"
        os.rename(final, old)
        os.rename(made, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(made, final)


def keep(locked: str, prefix: str, count: int, current: str) -> None:
    """Keep ``current`` and the most recently used others, ``count`` in all, of what ``prefix`` names in ``locked``.

    Used means modified, or marked with ``os.utime``.
    """
    import shutil

    others = []
    for name in os.listdir(locked):
        candidate = os.path.join(locked, name)
        if name.startswith(prefix) and candidate != current:
            others.append((os.stat(candidate).st_mtime, candidate))
    others.sort(reverse=True)
    for _, candidate in others[count - 1 :]:
        shutil.rmtree(candidate, ignore_errors=True)
