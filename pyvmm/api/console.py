"""The guest's console as a program sees it: wait for texts, in order, and type.

What is waited for is looked for from where the last match ended.  A thread of the machine's puts everything here as
it comes, whether somebody waits or not.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence

from pyvmm.api.patterns import PANICS, Match, Pattern, compiled, first, shown
from pyvmm.errors import ExpectTimeout, GuestError, GuestPanic, UsageError

#: Bytes of console kept in memory; the first of what is more are forgotten (a log file has them all).
MOST_KEPT = 32 << 20
#: Bytes of a log file that are read at once.
MOST_READ = 256 << 20
#: Bytes before the end of what has been looked through that are looked through again when more comes: a match of a
#: pattern that is longer than this may be missed when it comes in pieces.
OVERLAP = 64 << 10
#: Seconds for the rest of a line that ``fail_on`` matched so far as it has come: it says what happened.
_LINE_SECONDS = 0.5
#: Seconds between two looks at a guest's unread input, and bytes of it that may be waiting.
_INPUT_PAUSE = 0.02
_INPUT_PIECE = 4096


class Console:
    """What the guest prints and is given to read; any thread may use it, but two that wait share what they find.

    ``type_`` sends bytes and returns how many the guest has not read; ``failure`` makes the error for a machine that
    has ended, or ended badly; ``timeout`` (seconds, None: for ever) holds where an expect() gives none.
    """

    def __init__(
        self, type_: Callable[[bytes], int], failure: Callable[[str], GuestError], log: str | None
    ) -> None:
        self.timeout: float | None = 60.0
        self.forgotten = 0  # bytes at the start that are not kept any more
        #: Is given what is not kept any more, in the machine's thread.
        self.on_forget: Callable[[bytes], object] | None = None
        self._type = type_
        self._failure = failure
        self._log_path = log
        self._log = None
        if log is not None:
            try:
                self._log = open(log, "wb", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise UsageError(
                    f"cannot write the log {log}: {error.strerror}", "choose a writable place"
                ) from None
        self._data = bytearray()
        self._at = 0  # where the last match ended, in _data
        self._ended = False
        self._changed = threading.Condition()

    # -- what the machine does ------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """The guest printed ``data``."""
        if self._log is not None:
            try:
                self._log.write(data)
            except OSError:  # a full disk takes the log, not the machine
                self._log = None
        forgotten = b""
        with self._changed:
            self._data += data
            if len(self._data) > MOST_KEPT:
                gone = len(self._data) - MOST_KEPT // 2
                forgotten = bytes(self._data[:gone])
                del self._data[:gone]
                self.forgotten += gone
                self._at = max(0, self._at - gone)
            self._changed.notify_all()
        if forgotten and self.on_forget is not None:  # it may take its time, and nobody else waits for it
            self.on_forget(forgotten)

    def end(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Close the log."""
        log, self._log = self._log, None
        if log is not None:
            log.close()

    # -- reading --------------------------------------------------------------------------------------------

    @property
    def log(self) -> bytes:
        """Everything printed so far (the last 16 MiB or more of it)."""
        with self._changed:
            return bytes(self._data)

    def whole(self) -> bytes:
        """Everything printed so far, from the log file what is not in memory any more.

        :raises UsageError: there is no log file, or it cannot be read, or is longer than :data:`MOST_READ`
        """
        if not self.forgotten:
            return self.log
        try:
            if self._log_path is None:
                raise OSError("there is no log file")
            total = self.total
            if total > MOST_READ:
                raise OSError(f"it has {total} bytes, and {MOST_READ} are the most")
            with open(self._log_path, "rb") as file:
                data = file.read(MOST_READ)
            if len(data) < total:  # the disk was full
                raise OSError(f"{self._log_path} has not all of it")
            return data
        except OSError as error:
            raise UsageError(
                f"the whole console cannot be read: {error.strerror or error}",
                "have the guest print less, or give the machine a log",
            ) from None

    @property
    def text(self) -> str:
        """The same as text, undecodable bytes replaced."""
        return self.log.decode("utf-8", "replace")

    @property
    def total(self) -> int:
        """Bytes printed so far."""
        return self.forgotten + len(self._data)

    def tail(self, count: int = 4096) -> str:
        """The last ``count`` bytes as text."""
        with self._changed:
            return bytes(self._data[-count:]).decode("utf-8", "replace")

    def expect(
        self,
        patterns: Pattern | Sequence[Pattern],
        timeout: float | None = -1,
        *,
        fail_on: Pattern | Sequence[Pattern] = (),
    ) -> Match:
        """Wait until one of ``patterns`` matches; that which matches first in what was printed counts.

        Patterns are regular expressions over bytes (text is encoded as UTF-8, ``^`` and ``$`` are those of the whole
        unless ``(?m)`` says otherwise).  ``timeout`` in seconds, None: for ever; by default :attr:`timeout`.

        :raises ExpectTimeout: none came in time
        :raises GuestPanic: one of ``fail_on`` came first, and is that of a kernel; another is a GuestError
        :raises UnexpectedExit: the machine ended first (or GuestPanic, TripleFault, as it ended)
        """
        wanted = compiled(patterns)
        if not wanted:
            raise UsageError("nothing is expected", "give a pattern")
        return self._expect(wanted, compiled(fail_on), timeout, [pattern.pattern for pattern in wanted])

    def expect_exact(
        self,
        texts: str | bytes | Sequence[str | bytes],
        timeout: float | None = -1,
        *,
        fail_on: Pattern | Sequence[Pattern] = (),
    ) -> Match:
        """As :meth:`expect`, for texts that are taken as they stand."""
        texts = [texts] if isinstance(texts, str | bytes) else list(texts)
        literal = [re.compile(re.escape(text.encode() if isinstance(text, str) else text)) for text in texts]
        if not literal or any(not pattern.pattern for pattern in literal):
            raise UsageError("an empty text cannot be expected", "give some text")
        return self._expect(literal, compiled(fail_on), timeout, texts)

    def _expect(
        self,
        wanted: list[re.Pattern[bytes]],
        bad: list[re.Pattern[bytes]],
        timeout: float | None,
        given: Sequence[str | bytes],
    ) -> Match:
        """Wait for one of ``wanted``, which messages call as they were ``given``."""
        limit = self.timeout if timeout is not None and timeout < 0 else timeout
        deadline = None if limit is None else time.monotonic() + limit
        with self._changed:
            start = self.forgotten + self._at
            rest: float | None = None  # until when the rest of what must not come may come
            looked = start  # up to where it has been looked through, counted from the console's first byte
            while True:
                seen = self.forgotten + len(self._data)
                begin = max(start, looked - OVERLAP, self.forgotten) - self.forgotten
                found = first([*wanted, *bad], self._data, begin)
                looked = seen
                if found is not None:
                    index, match = found
                    cut = index >= len(wanted) and begin + match.end() == seen - self.forgotten
                    if cut and not self._ended:
                        now = time.monotonic()
                        rest = now + _LINE_SECONDS if rest is None else rest
                        if now < rest:
                            self._changed.wait(rest - now)
                            continue
                    return self._found(index, match, begin, len(wanted))
                if self._ended:
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            ended = self._ended
        what = " or ".join(map(shown, given))
        if ended:
            raise self._failure(f"the console never showed {what}")
        raise ExpectTimeout(
            f"the console did not show {what} within {limit:g} s",
            "give a longer timeout, or look at the console's last lines",
            console_tail=self.tail(), log=self._log_path,
        )  # fmt: skip

    def _found(self, index: int, match: re.Match[bytes], begin: int, good: int) -> Match:
        """Note where the match ended, which was looked for from ``begin`` on; an error if it is not a ``good`` one."""
        before = bytes(self._data[self._at : begin + match.start()])
        self._at = begin + match.end()
        if index < good:
            return Match(index, match, before)
        said = match[0].decode("utf-8", "replace").strip()
        kind = GuestPanic if any(re.match(each, match[0]) for each in PANICS) else GuestError
        raise kind(
            f"the console showed what it must not: {said}", "the lines before it say what led there",
            console_tail=bytes(self._data[-4096:]).decode("utf-8", "replace"), log=self._log_path,
        )  # fmt: skip

    # -- typing ---------------------------------------------------------------------------------------------

    def send(self, data: str | bytes) -> None:
        """Type ``data``; returns when the guest has read nearly all of it.  UsageError if the machine has ended."""
        rest = memoryview(data.encode() if isinstance(data, str) else data)
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        while rest:
            piece, rest = bytes(rest[:_INPUT_PIECE]), rest[_INPUT_PIECE:]
            pending = self._type(piece)
            while pending > _INPUT_PIECE:
                if deadline is not None and time.monotonic() > deadline:
                    raise ExpectTimeout(
                        f"the guest does not read what is typed: {pending} bytes are waiting",
                        "type when something in the guest reads the console",
                        console_tail=self.tail(), log=self._log_path,
                    )  # fmt: skip
                time.sleep(_INPUT_PAUSE)
                pending = self._type(b"")

    def sendline(self, line: str | bytes = b"") -> None:
        """Type a line and Enter."""
        self.send((line.encode() if isinstance(line, str) else line) + b"\n")
