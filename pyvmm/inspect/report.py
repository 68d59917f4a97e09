"""What was found out about a file, as plain data: the same facts for the table, the map and ``--json``.

Numbers are integers (addresses and sizes in bytes, ends exclusive), text is printable; what is not known
is None or empty.  The names of the attributes are the keys of the JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

#: Version of the JSON: raised when a key changes its name or meaning, not when one is added.
SCHEMA = 1


@dataclass
class Field:
    """A header field: ``offset`` in the file; ``decoded`` is the value in words, ``bits`` those set in flags.

    ``present`` is False where the file's protocol is older than the field: then the value means nothing.
    """

    name: str
    offset: int
    size: int
    value: int | str
    meaning: str
    section: str
    decoded: str = ""
    bits: list[str] = field(default_factory=list)
    present: bool = True


@dataclass
class Payload:
    """The compressed kernel inside an image, or of a compressed file.

    ``unpacked_size`` is what the image says of itself; ``content`` what is inside, "" if it was not
    unpacked, and then ``problem`` says why.
    """

    offset: int
    length: int
    compression: str
    unpacked_size: int | None = None
    content: str = ""
    problem: str = ""


@dataclass
class EntryPoint:
    """Where a processor can enter: ``file_offset`` if it lies in the file, ``address`` if that is fixed or
    follows from the placement (physical, unless ``virtual``)."""

    name: str
    address: int | None
    file_offset: int | None = None
    virtual: bool = False
    section: str = ""


@dataclass
class Segment:
    """A program header; ``flags`` as R, W and X."""

    type: str
    flags: str
    file_offset: int
    virtual_address: int
    physical_address: int
    file_size: int
    memory_size: int
    alignment: int


@dataclass
class Note:
    """A note: its owner, type (number and name), and its value as text (numbers in hex)."""

    owner: str
    type: int
    name: str
    file_offset: int
    size: int
    value: str


@dataclass
class Range:
    """A range of guest memory: ``kind`` is kernel, runtime, initrd (where one may go), boot, device or hole."""

    start: int
    end: int
    kind: str
    name: str


@dataclass
class Placement:
    """Where the kernel would stand in pyvmm's machine of ``memory`` bytes.

    ``ram`` are (start, end) ranges.  ``relative``: pyvmm has no machine for the architecture, and addresses
    count from the start of RAM.  Where it does not fit, ``problem`` and ``hint`` say why.
    """

    machine: str
    memory: int
    relative: bool
    ram: list[tuple[int, int]]
    ranges: list[Range] = field(default_factory=list)
    fits: bool = True
    problem: str = ""
    hint: str = ""


@dataclass
class Report:
    """Everything found out about a file."""

    path: str
    size: int
    format: str = "unknown"
    machine: str = ""
    description: str = ""
    hint: str = ""
    is_kernel: bool = False
    version: str = ""
    version_source: str = ""
    protocol: str = ""
    relocatable: bool | None = None
    kaslr: str = ""
    fields: list[Field] = field(default_factory=list)
    payload: Payload | None = None
    entry_points: list[EntryPoint] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    placement: Placement | None = None
    content: Report | None = None  # what was found in the payload, as far as it was unpacked
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Note something wrong with the file, once; its path is cut off, for it stands at the top."""
        message = message.removeprefix(f"{self.path}: ")
        if message not in self.warnings:
            self.warnings.append(message)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {"schema": SCHEMA, **asdict(self)}


def printable(data: bytes) -> str:
    """Text from a file, safe to print: what is not printable ASCII becomes a question mark."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in data)


def magic_text(value: int, size: int) -> str:
    """A magic number as the bytes it is in a little-endian file, those that are no letters as escapes."""
    return repr(value.to_bytes(size, "little").rstrip(b"\0"))[2:-1]


def size_text(size: int) -> str:
    """``size`` bytes as people read them: exact where a unit divides it, else with one decimal."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift:
            whole = size % (1 << shift) == 0
            return f"{size >> shift} {unit}" if whole else f"{size / (1 << shift):.1f} {unit}"
    return f"{size} bytes" if size != 1 else "1 byte"
