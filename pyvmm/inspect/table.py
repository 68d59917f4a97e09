"""A report as lines of text, at most 100 columns wide: facts, header fields, segments, notes, map."""

from __future__ import annotations

import textwrap
from collections import Counter

from pyvmm.inspect import memory_map
from pyvmm.inspect.report import Field, Placement, Report, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH = 100
_LEAD_MAX = 62
_TIE = "\x00"  # a space that no line is broken at


class Style:
    """How to write: box drawing characters or ASCII, headings in bold or not."""

    __slots__ = ("bold", "unicode")

    def __init__(self, *, unicode: bool = False, bold: bool = False) -> None:
        self.unicode = unicode
        self.bold = bold

    def heading(self, text: str) -> str:
        """A line that begins a part of the report."""
        return f"\033[1m{text}\033[0m" if self.bold else text


def render(report: Report, style: Style) -> list[str]:
    """All of ``report``."""
    lines = [style.heading(line) for line in textwrap.wrap(f"{report.path}: {report.description}", WIDTH)]
    lines += _facts(report)
    lines += [line for warning in report.warnings for line in _wrapped(f"warning: {warning}", 2)]
    if report.hint:
        lines += _wrapped(f"hint: {report.hint}", 2)
    lines += _body(report, style)
    inner = report.content
    if inner is not None:
        lines += ["", style.heading("In the payload:"), *_wrapped(inner.description, 2)]
        lines += _facts(inner, outer=report)
        lines += [line for warning in inner.warnings for line in _wrapped(f"warning: {warning}", 2)]
        lines += _body(inner, style)
    placement = report.placement or (inner.placement if inner else None)
    if placement is not None:
        lines += _placement(placement, style)
    return lines


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def _facts(report: Report, outer: Report | None = None) -> list[str]:
    """The single facts, a line each; of the content of ``outer``, those that it has not told already."""
    relocatable = {True: "yes", False: "no", None: ""}[report.relocatable]
    facts = [
        ("size", f"{size_text(report.size)} ({report.size} bytes)" if report.size >= 1024 else ""),
        ("format", "" if outer else report.format),
        ("machine", report.machine),
        ("version", f"{report.version} (from {report.version_source})" if report.version else ""),
        ("protocol", report.protocol),
        ("relocatable", relocatable),
        ("KASLR", report.kaslr),
        *_payload(report),
    ]
    told = (outer.machine, outer.kaslr) if outer else ()
    lines = []
    for name, value in facts:
        if value and value not in told:
            lead = f"  {name:<12} "
            lines += textwrap.wrap(value, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))
    return lines


def _payload(report: Report) -> list[tuple[str, str]]:
    payload = report.payload
    if payload is None:
        return []
    unpacked = "" if payload.unpacked_size is None else f", {size_text(payload.unpacked_size)} unpacked"
    name = "of no known compression" if payload.compression == "unknown" else payload.compression
    span = f"{name}, {size_text(payload.length)} at {payload.offset:#x}{unpacked}"
    return [("payload", span), ("", payload.content), ("", payload.problem)]


def _body(report: Report, style: Style) -> list[str]:
    lines: list[str] = []
    if report.fields:
        lines += ["", style.heading("Header fields"), *_fields(report.fields)]
    if report.entry_points:
        lines += ["", style.heading("Entry points"), *_entry_points(report)]
    if report.segments:
        lines += ["", style.heading("Segments (program headers)"), *_segments(report)]
    if report.notes:
        lines += ["", style.heading("Notes"), *_notes(report)]
    return lines


def _fields(fields: Sequence[Field]) -> list[str]:
    """Offset, name, value and meaning of each field, and below where that is documented: most in one section,
    the others by number."""
    counts = Counter(field.section for field in fields)
    sections = [section for section, _ in counts.most_common()]
    name_width = max(len(field.name) for field in fields)
    values = [_value(field) for field in fields]
    value_width = min(max(map(len, values)), 18)
    lines = []
    for field, value in zip(fields, values, strict=True):
        words = " | ".join(field.bits) if field.bits else field.decoded
        number = sections.index(field.section)
        text = f"{field.meaning}{f'{_TIE}[{number}]' if number else ''}{f': {words}' if words else ''}"
        lead = f"  {field.offset:#06x} {field.name:<{name_width}} {value:>{value_width}}  "
        if len(lead) > _LEAD_MAX:  # a long value gets a line of its own
            lines.append(lead.rstrip())
            lead = " " * (name_width + value_width + 12)
        lines += textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))
    for number, section in enumerate(sections):
        lines += _wrapped(f"[{number}] {section}" if number else f"documented in {section}", 2)
    return [line.replace(_TIE, " ") for line in lines]


def _value(field: Field) -> str:
    if not field.present:
        return "-"
    if isinstance(field.value, str):
        return field.value
    return f"{field.value:#x}"


def _entry_points(report: Report) -> list[str]:
    lines = []
    for entry in report.entry_points:
        parts = []
        if entry.address is not None:
            parts.append(f"{'virtual ' if entry.virtual else ''}{entry.address:#x}")
        if entry.file_offset is not None:
            parts.append(f"{entry.file_offset:#x} in the file")
        text = ", ".join(parts) + (f" ({entry.section})" if entry.section else "")
        lead = f"  {entry.name:<22} "
        lines += textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))
    return lines


def _columns(rows: Sequence[Sequence[str]], left: Callable[[int], bool]) -> list[str]:
    """Rows in columns as wide as they need, the first row being the heading."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if left(n) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + " ".join(cells).rstrip())
    return lines


def _segments(report: Report) -> list[str]:
    """A line each.  Where all virtual addresses are the physical ones, or too wide, the table stays narrow."""
    rows = [["type", "flags", "in file", "virtual", "physical", "file size", "memory size", "align"]]
    for segment in report.segments:
        numbers = (
            segment.file_offset,
            segment.virtual_address,
            segment.physical_address,
            segment.file_size,
            segment.memory_size,
            segment.alignment,
        )
        rows.append([segment.type, segment.flags, *(f"{number:#x}" for number in numbers)])
    lines = _columns(rows, lambda column: column < 2)
    if all(len(line) <= WIDTH for line in lines):
        return lines
    narrow = []  # damaged files have numbers of any size: two lines each
    for row in rows:
        narrow.append(f"  {row[0]:<14} {row[1]:<5} {row[2]:>20} {row[3]:>20} {row[4]:>20}".rstrip())
        narrow.append(f"  {'':<20} {row[5]:>20} {row[6]:>20} {row[7]:>20}".rstrip())
    return narrow


def _notes(report: Report) -> list[str]:
    lines = []
    for note in report.notes:
        lead = f"  {note.owner[:16]:<6} {note.name:<19} "
        lines += textwrap.wrap(
            note.value or "(empty)", WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead)
        )
    return lines


def _placement(placement: Placement, style: Style) -> list[str]:
    size = size_text(placement.memory)
    if placement.relative:
        text = f"In a machine with {size} (pyvmm has none for {placement.machine} yet; from the start of RAM)"
    else:
        text = f"In pyvmm's {placement.machine} machine with {size} of memory"
    lines = ["", *(style.heading(line) for line in textwrap.wrap(text, WIDTH))]
    if not placement.fits:
        lines += _wrapped(f"does not fit: {placement.problem}", 2)
        lines += _wrapped(f"hint: {placement.hint}", 2) if placement.hint else []
    for found in placement.ranges:
        if found.kind in ("kernel", "runtime", "initrd"):
            extent = f"{found.start:#x}..{found.end:#x}"
            lines.append(f"  {extent:<28} {size_text(found.end - found.start):>10}  {found.name}")
    lines += ["", *memory_map.draw(placement, unicode=style.unicode, width=WIDTH)]
    return [*lines, f"  {memory_map.legend(placement, unicode=style.unicode)}".rstrip()]
