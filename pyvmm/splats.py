"""Splats: what a Linux kernel prints when it has found something wrong with itself, found on its console.

The texts are those of the kernel's own files, named beside each of them in ``_HEADINGS``.  They count at the beginning
of a line, after what the console puts there, or behind a time stamp within a line, where the kernel printed into a
program's output; nobody's "DEBUG:" and no quotation counts.  "Call Trace:" by itself is none: sysrq prints it too.

>>> find(b"[    1.234567] BUG: sleeping function called from invalid context at mm/slab.h:1\\n")[0].kind
'BUG'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyvmm.errors import UsageError

#: Of a line, so much is looked at (bytes); of a splat, so many lines are kept.
LONGEST_LINE = 4096
MOST_LINES = 200
#: Of those of one console that matter, and of those that are allowed, so many are kept each.
MOST_SPLATS = 50
#: A silence that ends a splat whose end has no mark: seconds between two time stamps.
SILENCE = 5.0
#: Bytes that are looked through at a time for a sign of a splat.
_PIECE = 1 << 16

#: (kind, what its first line looks like); the first that matches counts.
_HEADINGS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("panic", r"Kernel panic - not syncing"),  # kernel/panic.c
        ("KASAN", r"BUG: KASAN: "),  # mm/kasan/report.c
        ("KMSAN", r"BUG: KMSAN: "),  # mm/kmsan/report.c
        ("KCSAN", r"BUG: KCSAN: "),  # kernel/kcsan/report.c
        ("KFENCE", r"BUG: KFENCE: "),  # mm/kfence/report.c
        ("UBSAN", r"UBSAN: \S.* in "),  # lib/ubsan.c
        ("soft lockup", r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#\d"),  # kernel/watchdog.c
        (
            "hard lockup",
            r"(?:NMI )?(?:watchdog: )?(?:CPU\d+: )?Watchdog (?:CPU:\d+ )?detected [hH]ard LOCKUP",
        ),
        ("workqueue lockup", r"BUG: workqueue lockup - pool"),  # kernel/workqueue.c
        (
            "RCU stall",  # kernel/rcu/tree_stall.h, tree_exp.h, tasks.h
            r"(?:rcu: )?INFO: \w*rcu\w* (?:self-)?detected (?:expedited )?stalls?\b",
        ),
        ("RCU stall", r"(?:rcu: )?\w*rcu\w* kthread starved for \d+ jiffies"),
        (
            "hung task",
            r"INFO: task \S.{0,40}:\d+ (?:is )?blocked .{0,40}for more than \d+ seconds",
        ),  # hung_task.c
        (
            "lockdep",  # kernel/locking/lockdep.c, rtmutex; INFO and the brackets are those of older kernels
            r"(?:\[ )?(?:WARNING|INFO|BUG): (?:possible (?:circular|recursive|irq|deadlock|unsafe|SOFTIRQ|HARDIRQ)"
            r"|inconsistent lock state|suspicious RCU usage|bad (?:unlock balance|contention) detected"
            r"|held lock freed|lock held (?:when|at)|Nested lock was not taken|\S+-safe -> \S+-unsafe lock order"
            r"|trying to register non-static key|Invalid wait context|MAX_LOCK\w+ too low|MAX_STACK_TRACE\w+ too low"
            r"|looking up invalid subclass|circular locking deadlock)",
        ),
        ("lockdep", r"DEBUG_LOCKS_WARN_ON\("),
        ("refcount", r"refcount_t: (?:overflow|underflow|addition on 0|saturated|decrement hit 0|hit )"),
        # lib/bug.c: the older form, and the one of Linux 6.18
        ("WARNING", r"WARNING: (?:CPU: \d+ PID: \d+ |\S+:\d+ at |at \S+:\d+ )"),
        (
            "WARNING",
            r"WARNING: (?:kernel stack |stack recursion|can't (?:access|dereference) )",
        ),  # unwind_frame.c
        ("BUG", r"kernel BUG at \S+:\d+!"),  # lib/bug.c
        # arch/*/mm/fault.c, arch/*/kernel/traps.c
        ("Oops", r"BUG: (?:kernel NULL pointer dereference|unable to handle )"),
        ("Oops", r"Unable to handle kernel "),
        ("Oops", r"(?:Oops|Internal error)\b.*\[#\d+\]"),
        (
            "Oops",
            r"[a-zA-Z][^\[\]]{2,160}: [0-9a-f]{4,16} \[#\d+\]",
        ),  # "general protection fault: 0000 [#1] SMP"
        ("Oops", r"(?:traps: )?PANIC: double fault|Insufficient stack space to handle exception"),
        # kernel/sched/core.c, mm/page_alloc.c, mm/slub.c and many more
        ("BUG", r"BUG: \S|BUG [\w.:-]+ \(.{1,60}\): "),
        ("netdevice", r"unregister_netdevice: waiting for \S+ to become free"),  # net/core/dev.c
        ("kmemleak", r"kmemleak: \d+ new suspected memory leaks"),  # mm/kmemleak.c
        ("irq", r"irq \d+: nobody cared"),  # kernel/irq/spurious.c
    )
)
#: A heading of the kind on the left is only a line of a report of the kinds on the right.
_BELONGS = {"WARNING": {"refcount", "lockdep"}, "RCU stall": {"RCU stall"}}
_ONE_LINE = {"netdevice", "kmemleak"}
_RULED = {"KASAN", "KMSAN", "KCSAN", "KFENCE", "UBSAN"}  # a ruled line of = ends them
_MARKED = {"panic", "WARNING", "refcount", "Oops", "BUG", "UBSAN", ""}  # "---[ end ..." ends them, as a rule

#: No line that begins a splat is without one of these.
_SIGNS = (
    *(
        b"BUG",
        b"WARNING: ",
        b"cut here",
        b"Kernel panic",
        b" [#",
        b"INFO: ",
        b"Unable to handle kernel",
        b"UBSAN: ",
    ),
    *(
        b"refcount_t: ",
        b"detected ",
        b"kthread starved",
        b"DEBUG_LOCKS_WARN_ON",
        b"PANIC: ",
        b"Insufficient stack",
    ),
    *(b"unregister_netdevice", b"kmemleak: ", b"nobody cared"),
)

_STAMP = r"\[ *(\d{1,10}\.\d{6})\](?:\[ *[TC]\d{1,9}\])? ?"
_PREFIX = re.compile(r"(?:\x1b\[[0-9;]*m)*(?:<\d{1,4}>)?(?:" + _STAMP + r")?(?:\x1b\[[0-9;]*m)*")
_WITHIN = re.compile(r"\[(?=[ \d]{5,10}\.)" + _STAMP[2:])
_CUT = "------------[ cut here ]------------"
_END = "---[ end "
_RULE = re.compile(r"={20,}\s*$")
_TRACE = re.compile(r"\s*Call [Tt]race:")
#: Lines that go on with a report after its call trace began.
_TRACE_GOES_ON = re.compile(
    r"\s|$|</?[A-Z#]|[A-Z][A-Z0-9]{1,2}: |R\d\d:|Code: |x\d+ ?:|(?:pc|lr|sp|pstate) ?:|CPU: |NMI backtrace|Sending NMI"
    r"|Hardware name|Call [Tt]race|Modules linked|rcu: |Task dump|task:|Workqueue: |handlers:|Disabling IRQ"
)


@dataclass
class Splat:
    """One report of the kernel.  ``line`` and ``text`` are without time stamps; ``offset`` is that of the first
    line's first byte in what was fed."""

    kind: str  #: "WARNING", "BUG", "Oops", "KASAN", "RCU stall", "lockdep", "hung task", "soft lockup", "panic", ...
    line: str  #: the line that says what it is
    offset: int
    lines: list[str] = field(default_factory=list)
    allowed: bool = False  #: whether a pattern of the allow-list matches its text

    @property
    def text(self) -> str:
        """The whole report, at most :data:`MOST_LINES` lines."""
        return "\n".join(self.lines)

    def as_dict(self) -> dict[str, Any]:
        """kind, line, text, allowed and offset, as in :attr:`pyvmm.testing.result.CaseResult.splats`."""
        keys = ("kind", "line", "text", "allowed", "offset")
        return {key: getattr(self, key) for key in keys}


def find(text: bytes, allow: Sequence[str | re.Pattern[str]] = ()) -> list[Splat]:
    """All splats in ``text``, a console's log; those that ``allow`` matches too, marked so.  See SplatWatcher."""
    watcher = SplatWatcher(allow)
    return watcher.feed(text) + watcher.end()


def first(found: Iterable[Splat]) -> list[Splat]:
    """The first :data:`MOST_SPLATS` of ``found`` that are allowed, and as many that are not, in their order."""
    left = {True: MOST_SPLATS, False: MOST_SPLATS}
    kept = []
    for splat in found:
        if left[splat.allowed]:
            left[splat.allowed] -= 1
            kept.append(splat)
    return kept


class SplatWatcher:
    """Finds splats in a console's output while it comes, in pieces cut anywhere.

    ``allow``: regular expressions; a splat with a match of one of them anywhere in its text is marked ``allowed``.
    UsageError for one that is none.  Where nothing looks like a splat, a piece costs a few searches for bytes.
    """

    def __init__(self, allow: Iterable[str | re.Pattern[str]] = ()) -> None:
        self._allow = [_compiled(pattern) for pattern in allow]
        self._rest = b""  # the line that has not ended
        self._offset = 0  # of that line
        self._length = 0  # of it, of which ``_rest`` may be only the first part
        self._trace = self._died = False
        self._stamp: float | None = None
        self._foreign = 0
        #: The splat that is being printed, if one is; its text is not yet whole.
        self.current: Splat | None = None

    def feed(self, data: bytes) -> list[Splat]:
        """The splats that are whole now that ``data`` has come."""
        found: list[Splat] = []
        start = 0
        while start < len(data):
            last = data.rfind(b"\n", start, start + _PIECE)
            if last < 0:
                piece = data[start : start + _PIECE]
                self._rest += piece[: LONGEST_LINE - len(self._rest)]
                self._length += len(piece)
                start += _PIECE
                continue
            first = data.find(b"\n", start) + 1
            self._line_ends(data[start:first], found)
            piece = data[first : last + 1]
            if self.current or any(sign in piece for sign in _SIGNS):
                offset = self._offset
                for line in piece.split(b"\n")[:-1]:
                    self._take(line[:LONGEST_LINE], offset, found)
                    offset += len(line) + 1
            self._offset += len(piece)
            start = last + 1
        return found

    def end(self) -> list[Splat]:
        """The output has ended: what has begun is whole."""
        found: list[Splat] = []
        if self._rest:
            self._line_ends(b"", found)
        self._close(found)
        return found

    def _line_ends(self, data: bytes, found: list[Splat]) -> None:
        """``data`` is the end of the line that began before."""
        line = (self._rest + data.rstrip(b"\n"))[:LONGEST_LINE]
        if self.current or any(sign in line for sign in _SIGNS):
            self._take(line, self._offset, found)
        self._offset += self._length + len(data)
        self._rest, self._length = b"", 0

    def _take(self, raw: bytes, offset: int, found: list[Splat]) -> None:
        """One line."""
        line = raw.decode("utf-8", "replace").strip("\r").rstrip()
        mark = _PREFIX.match(line)
        assert mark is not None  # it matches nothing, too
        within = _WITHIN.search(line, mark.end()) if "[" in line[mark.end() :] else None
        mark = within or mark
        matter = line[mark.end() :]
        stamp = float(mark[1]) if mark[1] else None
        kind = _kind(matter) if any(sign in raw for sign in _SIGNS) else ""
        if self.current is not None and self._goes_on(kind, matter, stamp, found):
            return
        if kind or matter == _CUT:
            self._close(found)
            self.current = Splat(kind, matter if kind else "", offset, [matter])
            self._stamp, self._trace, self._foreign = stamp, False, 0
            self._died = "[#" in matter
            if kind in _ONE_LINE:
                self._close(found)

    def _goes_on(self, kind: str, matter: str, stamp: float | None, found: list[Splat]) -> bool:
        """Whether the line was one of the current splat's, or of a program's in between; closes it where it ends."""
        splat = self.current
        assert splat is not None
        begins = bool(kind) or matter == _CUT
        if stamp is not None and self._stamp is not None and not 0 <= stamp - self._stamp < SILENCE:
            self._close(found)
            return not begins
        if kind and not splat.kind:
            splat.kind, splat.line = kind, matter
        elif begins:
            if not self._belongs(kind, matter):
                return False
        elif stamp is None and self._stamp is not None:
            self._foreign += 1
            if self._foreign > MOST_LINES:
                self._close(found)
            return True
        elif self._trace and splat.kind not in _MARKED | _RULED and not _TRACE_GOES_ON.match(matter):
            self._close(found)
            return True
        splat.lines.append(matter)
        self._stamp = stamp
        self._trace = self._trace or bool(_TRACE.match(matter))
        self._died = self._died or "[#" in matter
        ruled = splat.kind in _RULED and bool(_RULE.match(matter))
        if ruled or len(splat.lines) >= MOST_LINES or matter.startswith(_END):
            self._close(found)
        return True

    def _belongs(self, kind: str, matter: str) -> bool:
        """Whether a line that could begin a splat of ``kind`` belongs to the current one."""
        assert self.current is not None
        if kind == "Oops":  # the line of die(), after the one that says why
            why = self.current.kind == "Oops" or self.current.line.startswith("kernel BUG at")
            return why and "[#" in matter and not self._died
        return self.current.kind in _BELONGS.get(kind, ())

    def _close(self, found: list[Splat]) -> None:
        splat, self.current = self.current, None
        if splat is None:
            return
        if not splat.kind:  # cut here, and nothing known behind it
            splat.kind = "WARNING"
            splat.line = splat.lines[1] if len(splat.lines) > 1 else splat.lines[0]
        splat.allowed = any(pattern.search(splat.text) for pattern in self._allow)
        found.append(splat)


def _kind(matter: str) -> str:
    return next((kind for kind, pattern in _HEADINGS if pattern.match(matter)), "")


def _compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    if isinstance(pattern, re.Pattern):
        return pattern
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"allowed splat {pattern!r}: no regular expression: {error}",
            "put a backslash before what is meant literally",
        ) from None
