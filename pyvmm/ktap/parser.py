"""From a console's log to tests: :func:`parse`.

A log holds more than KTAP (Documentation/dev-tools/ktap.rst, "Unknown lines"): the kernel prints while a program's
tests run, and a program while KUnit's do.  Lines with printk's mark and lines without are two streams that each may
hold documents; what is no KTAP in either is a remark on the test that runs.
"""

from __future__ import annotations

from pyvmm.ktap.document import Budget, Document
from pyvmm.ktap.lines import Line, classify, split
from pyvmm.ktap.result import Ktap, Test

#: Levels of nesting that are read; deeper ones are taken for remarks.
DEEPEST = 32
#: Errors that are listed.
LISTED_ERRORS = 200
#: Lines of KTAP that are read, each of which costs some hundred bytes of memory; a log with more of them has failed.
MOST_LINES = 200_000

KNOWN_VERSIONS = ("KTAP version 1", "TAP version 12", "TAP version 13", "TAP version 14")


def parse(text: str | bytes) -> Ktap:
    """The tests in ``text``, the log of a console or the output of a program.

    Nothing is refused: what is wrong with the log stands in :attr:`Ktap.errors`, and tests that have to be there and
    are not are ``missing`` or ``crashed``.  Bytes are read as UTF-8, with U+FFFD for what is none.
    """
    parser = _Parser()
    for line in split(text.decode("utf-8", "replace") if isinstance(text, bytes) else text):
        parser.line(line)
    return parser.end()


class _Parser:
    """Two streams, the roots of both in the order in which they began, and the errors."""

    def __init__(self) -> None:
        self.roots: list[Document] = []
        self.errors: list[str] = []
        self.number = 0  # of the line
        self.budget = Budget()
        self._unlisted = 0
        self._taken = 0  # lines that are KTAP
        self.program = _Stream(self)
        self.kernel = _Stream(self)

    def note(self, error: str) -> None:
        if len(self.errors) < LISTED_ERRORS:
            self.errors.append(f"line {self.number}: {error}")
        else:
            self._unlisted += 1

    def line(self, text: str) -> None:
        self.number += 1
        if self._taken > MOST_LINES:
            return
        for line in classify(text):
            own, other = (self.kernel, self.program) if line.kernel else (self.program, self.kernel)
            if own.take(line):
                self._taken += 1
                continue
            if not own.remark(line) and line.text.strip():
                other.remark(line, foreign=True)

    def end(self) -> Ktap:
        for stream in (self.program, self.kernel):
            stream.close_root()
        tests: list[Test] = []
        bail_out = None
        for root in self.roots:
            tests += root.tests
            bail_out = root.bail_out if bail_out is None else bail_out
        if self._taken > MOST_LINES and bail_out is None:
            bail_out = f"more than {MOST_LINES} lines of results, which are not read"
        plans = [root.plan for root in self.roots]
        plan = None if None in plans or not plans else sum(plan for plan in plans if plan is not None)
        if self._unlisted:
            self.errors.append(f"and {self._unlisted} more errors")
        return Ktap(tests, plan, self.errors, bail_out)


class _Stream:
    """Documents within documents: ``stack`` from the root to the innermost that is open."""

    def __init__(self, parser: _Parser) -> None:
        self._parser = parser
        self.stack: list[Document] = []
        self._last: Test | None = None  # whose result was the last line, and which a YAML block may follow
        self._yaml: Test | None = None

    def take(self, line: Line) -> bool:
        """Take a line of KTAP; False if it is none, or none that makes sense here."""
        if line.kind in ("diagnostic", "other"):
            return False
        if line.kind == "version":
            taken = self._version(line)
        elif line.kind == "plan":
            taken = self._plan(line)
        elif line.kind == "subtest":
            taken = self._subtest(line)
        elif line.kind == "bail":
            taken = self._bail(line)
        else:
            taken = self._result(line)
        if taken:
            self._yaml = None
            if line.kind != "result":
                self._last = None
        return taken

    def remark(self, line: Line, foreign: bool = False) -> bool:
        """Keep ``line`` for the test that runs, if one does; ``foreign``: it is of the other stream."""
        if not self.stack or (len(self.stack) == 1 and self.stack[0].complete):
            return False
        if not foreign and self._in_yaml(line):
            return True
        last, self._last = self._last, None
        text = line.text.rstrip()
        document = self.stack[-1]
        if line.kind == "diagnostic" and not foreign:
            for index, each in enumerate(self.stack):
                if each.column == line.column and not any(
                    deeper.hashed for deeper in self.stack[index + 1 :]
                ):
                    document = each
            text = _without_hashes(text.lstrip(" "), document.column // 2 if document.hashed else 0)
        elif not text.strip():
            self._last = last
            return True
        document.remark(text)
        return True

    def close_root(self) -> None:
        """End all documents, as the log's end does, or another one that begins."""
        if not self.stack:
            return
        self._pop(self.stack[0].column)
        root = self.stack.pop()
        note = self._parser.note
        if not root.tests and not root.ended and root.plan is None:
            note("a document without a test")
        elif root.plan is None:
            note("no plan: whether tests are missing at the end cannot be seen")
        root.end(note, stopped=True)

    def _in_yaml(self, line: Line) -> bool:
        """Whether ``line`` is of the YAML block that may follow a result in TAP 13 and 14; it is of that test then."""
        matter = line.text.strip(" #")
        if self._yaml is not None:
            if matter == "...":
                self._yaml = None
            else:
                self._yaml.diagnostics.append(line.text.strip())
            return True
        if self._last is not None and matter == "---":
            self._yaml = self._last
            return True
        return False

    def _version(self, line: Line) -> bool:
        version = line.text[line.column :].strip()
        if version not in KNOWN_VERSIONS:
            self._parser.note(f"unknown version {version!r}")
        self._pop(line.column)
        top = self.stack[-1] if self.stack else None
        if top and top.column == line.column and top.untouched:
            top.announced = True
        elif top and top.column == line.column and len(self.stack) > 1:
            # The next program of the same test, or a suite after one that had no result.
            self.stack.pop()
            self.stack[-1].ended.append(top)
            self._open(line)
        elif top and top.column < line.column:
            return self._open(line)
        else:
            self.close_root()
            self._open(line)
        return True

    def _plan(self, line: Line) -> bool:
        document = self._at(line, opens=True)
        if document is None:
            return False
        if document.plan is not None and document.plan != line.number:
            self._parser.note(f"a second plan of {line.number} after one of {document.plan}")
            document.plan = max(document.plan, line.number or 0)
            return True
        document.plan = line.number
        if len(document.tests) > (line.number or 0):
            self._parser.note(f"more results than the plan of {document.plan} has")
        if not document.tests and len(self.stack) > 1:
            # Said of the suite, not of its first test.
            for text in document.take_pending():
                self.stack[-2].remark(text)
        return True

    def _subtest(self, line: Line) -> bool:
        if not self.stack or self.stack[-1].column < line.column:
            document = self._at(line, opens=True)
        else:
            self._pop(line.column)
            document = self.stack[-1] if self.stack and self.stack[-1].column == line.column else None
            if document and not document.untouched and len(self.stack) > 1:
                # KUnit before 6.0 prints no version line for a suite: this one comes after one without a result.
                self.stack.pop()
                self.stack[-1].ended.append(document)
                document = self._at(line, opens=True)
        if document and document.untouched and len(self.stack) > 1:
            document.name = line.name
            document.announced = True
        return document is not None

    def _bail(self, line: Line) -> bool:
        if not self.stack or not any(document.column == line.column for document in self.stack):
            return False
        self._pop(line.column)
        document = self.stack[-1]
        document.bail_out = line.name
        self._parser.note(f"bailed out: {line.name}".rstrip(": "))
        return True

    def _result(self, line: Line) -> bool:
        document = self._at(line, opens=line.number is not None)
        if document is None:
            return False
        self._last = document.result(line, self._parser.note)
        return True

    def _at(self, line: Line, opens: bool) -> Document | None:
        """The document at the column of ``line``, after those within it are ended; opened if there is none."""
        if any(document.column == line.column for document in self.stack):
            self._pop(line.column)
            return self.stack[-1]
        if not opens:
            return None
        if self.stack and self.stack[0].column > line.column:
            # What came so far was nested in a document whose beginning is lost.
            self._pop(self.stack[0].column)
            nested = self.stack.pop()
            self._parser.roots.remove(nested)
            self._open(line)
            self.stack[0].ended.append(nested)
        else:
            self._pop(line.column)
            if not self._open(line):
                return None
        if len(self.stack) == 1 and line.kind != "plan":
            self._parser.note("no version line")
        return self.stack[-1]

    def _open(self, line: Line) -> bool:
        if len(self.stack) >= DEEPEST:
            return False
        document = Document(line.column, line.hashed, line.kind in ("version", "plan"), self._parser.budget)
        if not self.stack:
            self._parser.roots.append(document)
        self.stack.append(document)
        return True

    def _pop(self, column: int) -> None:
        """End the documents that are nested deeper than ``column``, the root excepted."""
        while len(self.stack) > 1 and self.stack[-1].column > column:
            document = self.stack.pop()
            self.stack[-1].ended.append(document)


def _without_hashes(text: str, levels: int) -> str:
    """A diagnostic line without the "# " of its own, and those of the levels it is nested in."""
    for _ in range(levels + 1):
        if not text.startswith("#"):
            break
        text = text[2:] if text.startswith("# ") else text[1:]
    return text
