"""What the kernel complains of on a console (:mod:`pyvmm.splats`), while it comes: however long the console is, and
though it forgets its beginning."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Sequence

    from pyvmm.api.console import Console
    from pyvmm.splats import Splat, SplatWatcher


class Complaints:
    """Finds splats in what it is given, in order: by :meth:`watch` and :meth:`all_of` that is a console's output.

    ``allow``: regular expressions for splats that are no failure.  UsageError for one that is none.
    """

    __slots__ = ("_allow", "_found", "_watcher")

    def __init__(self, allow: Sequence[str | re.Pattern[str]] = ()) -> None:
        self._allow = allow
        self._found: list[Splat] = []
        # Where there is nothing to check, what watches is imported once there is something to look through.
        self._watcher: SplatWatcher | None = self._made() if allow else None

    def watch(self, console: Console) -> None:
        """Look through what ``console`` forgets, from now on until :meth:`all_of` it."""
        console.on_forget = self.feed

    def feed(self, printed: bytes) -> None:
        """Look through ``printed``, which follows what has been given before."""
        from pyvmm.splats import first

        if self._watcher is None:
            self._watcher = self._made()
        self._found = first([*self._found, *self._watcher.feed(printed)])

    def all_of(self, console: Console) -> list[Splat]:
        """The splats of a watched ``console`` that will print no more; see :meth:`end`."""
        console.on_forget = None
        self.feed(console.log)
        return self.end()

    def end(self) -> list[Splat]:
        """Nothing more comes: the splats, the first of those that are allowed and of those that are not."""
        from pyvmm.splats import first

        return first([*self._found, *(self._watcher.end() if self._watcher is not None else ())])

    def _made(self) -> SplatWatcher:
        from pyvmm.splats import SplatWatcher

        return SplatWatcher(self._allow)
