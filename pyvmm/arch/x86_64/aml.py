"""ACPI Machine Language: the few constructs a virtual machine's DSDT needs, as pure functions to bytes.

Each function encodes one production of the grammar in ACPI 6.5 section 20.2 ("AML Grammar Definition") or
one resource descriptor of section 6.4 ("Resource Data Types for ACPI"), and is named as the ASL operator
that compiles to it (section 19.6), so that a table reads like its source::

    device("COM1",
           name("_HID", eisa_id("PNP0501")),
           name("_CRS", resource_template(io(0x3F8, 8), interrupt(4))))

The arguments that are bytes are themselves encoded AML.
"""

from __future__ import annotations

import struct

_NAME_START = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_NAME_CHARACTERS = _NAME_START + "0123456789"


def package_length(size: int) -> bytes:
    """PkgLength (20.2.4) for ``size`` bytes that follow it: it counts itself, in 1 to 4 bytes."""
    if size + 1 < 1 << 6:
        return bytes((size + 1,))
    for more in (1, 2, 3):  # the lead byte: how many more bytes in bits 6-7, the lowest 4 bits of the length
        total = size + 1 + more
        if total < 1 << (4 + 8 * more):
            return bytes((more << 6 | total & 0xF,)) + (total >> 4).to_bytes(more, "little")
    raise ValueError(f"an AML package of {size} bytes is over the 256 MiB that PkgLength can say")


def name_segment(segment: str) -> bytes:
    """NameSeg (20.2.2): one to four of A-Z, 0-9 and _, not starting with a digit; padded with _."""
    if not (
        1 <= len(segment) <= 4 and segment[0] in _NAME_START and all(c in _NAME_CHARACTERS for c in segment)
    ):
        raise ValueError(f"{segment!r} is no ACPI name: one to four of A-Z, 0-9, _, and no digit first")
    return segment.ljust(4, "_").encode("ascii")


def name_string(path: str) -> bytes:
    r"""NameString (20.2.2): ``COM1``, ``\_SB.COM1`` from the root, ``^X`` from the parent, or ``\`` alone."""
    segments = path.lstrip("\\^")
    prefix = path[: len(path) - len(segments)]
    if "\\" in prefix[1:] or (prefix.startswith("\\") and len(prefix) > 1):
        raise ValueError(f"{path!r} is no ACPI path: one \\ or some ^ at its start")
    parts = [name_segment(segment) for segment in segments.split(".")] if segments else []
    if len(parts) == 0:
        count = b"\x00"  # NullName
    elif len(parts) == 1:
        count = b""
    elif len(parts) == 2:
        count = b"\x2e"  # DualNamePrefix
    else:
        count = bytes((0x2F, len(parts)))  # MultiNamePrefix
    body = count + b"".join(parts)
    return prefix.encode("ascii") + body


def integer(value: int) -> bytes:
    """The shortest ComputationalData (20.2.3) for an unsigned integer of up to 64 bits."""
    if value < 0 or value >> 64:
        raise ValueError(f"{value} is no unsigned 64-bit integer")
    if value <= 1:
        return bytes((value,))  # ZeroOp, OneOp
    if value < 1 << 8:
        return struct.pack("<BB", 0x0A, value)
    if value < 1 << 16:
        return struct.pack("<BH", 0x0B, value)
    if value < 1 << 32:
        return struct.pack("<BI", 0x0C, value)
    return struct.pack("<BQ", 0x0E, value)


def string(text: str) -> bytes:
    """String (20.2.3): ASCII 1 to 127, closed by a zero byte."""
    data = text.encode("ascii")
    if b"\0" in data:
        raise ValueError(f"{text!r} has a zero byte, which ends an AML string")
    return b"\x0d" + data + b"\0"


def eisa_id(identifier: str) -> bytes:
    """EISAID (19.6.36): ``PNP0501`` packed into 32 bits: three letters of 5 bits, four hexadecimal digits."""
    letters, digits = identifier[:3], identifier[3:]
    if len(identifier) != 7 or not all("A" <= c <= "Z" for c in letters) or digits.strip("0123456789ABCDEF"):
        raise ValueError(f"{identifier!r} is no EISA id: three capital letters and four hexadecimal digits")
    packed = 0
    for letter in letters:
        packed = packed << 5 | ord(letter) - 0x40
    big_endian = packed << 16 | int(digits, 16)
    return integer(int.from_bytes(big_endian.to_bytes(4, "big"), "little"))


def buffer(data: bytes) -> bytes:
    """DefBuffer (20.2.5.4) holding ``data``."""
    body = integer(len(data)) + data
    return b"\x11" + package_length(len(body)) + body


def package(*elements: bytes) -> bytes:
    """DefPackage (20.2.5.4) of up to 255 elements."""
    body = bytes((len(elements),)) + b"".join(elements)
    return b"\x12" + package_length(len(body)) + body


def name(path: str, value: bytes) -> bytes:
    """DefName (20.2.5.1): the object ``value`` by the name ``path``."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """DefScope (20.2.5.1): ``terms`` inside the existing scope ``path``."""
    body = name_string(path) + b"".join(terms)
    return b"\x10" + package_length(len(body)) + body


def device(path: str, *terms: bytes) -> bytes:
    """DefDevice (20.2.5.2)."""
    body = name_string(path) + b"".join(terms)
    return b"\x5b\x82" + package_length(len(body)) + body


def method(path: str, argument_count: int, *terms: bytes, serialized: bool = False) -> bytes:
    """DefMethod (20.2.5.2) taking up to 7 arguments."""
    if not 0 <= argument_count <= 7:
        raise ValueError(f"a method takes 0 to 7 arguments, not {argument_count}")
    body = name_string(path) + bytes((argument_count | serialized << 3,)) + b"".join(terms)
    return b"\x14" + package_length(len(body)) + body


def arg(number: int) -> bytes:
    """ArgObj (20.2.6.1): the method's argument ``number``, from 0 to 6."""
    if not 0 <= number <= 6:
        raise ValueError(f"a method's arguments are numbered 0 to 6, not {number}")
    return bytes((0x68 + number,))


def equal(left: bytes, right: bytes) -> bytes:
    """DefLEqual (20.2.5.4): whether two numbers, strings or buffers are equal."""
    return b"\x93" + left + right


def if_(predicate: bytes, *terms: bytes) -> bytes:
    """DefIfElse (20.2.5.3) without an Else: ``terms``, if ``predicate`` is not zero."""
    body = predicate + b"".join(terms)
    return b"\xa0" + package_length(len(body)) + body


def notify(path: str, value: int) -> bytes:
    """DefNotify (20.2.5.3): tell the driver of the device ``path`` that event ``value`` has happened."""
    return b"\x86" + name_string(path) + integer(value)


def return_(value: bytes) -> bytes:
    """DefReturn (20.2.5.3)."""
    return b"\xa4" + value


# Resource descriptors, for the insides of a ResourceTemplate.


def resource_template(*descriptors: bytes) -> bytes:
    """ResourceTemplate (19.6.119): a buffer of descriptors and an end tag (6.4.2.9) without a checksum."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(base: int, length: int, *, alignment: int = 1) -> bytes:
    """IO (6.4.2.5): the ports ``base`` to ``base + length - 1``, all 16 address bits decoded."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, alignment, length)


def irq(line: int, *, level: bool = False, active_low: bool = False, shared: bool = False) -> bytes:
    """IRQ (6.4.2.1): one of the 16 ISA interrupt lines; edge, active high and exclusive unless told."""
    if not 0 <= line <= 15:
        raise ValueError(f"an IRQ descriptor names a line from 0 to 15, not {line}: use interrupt()")
    flags = (not level) << 0 | active_low << 3 | shared << 4
    return struct.pack("<BHB", 0x23, 1 << line, flags)


def interrupt(gsi: int, *, level: bool = False, active_low: bool = False, shared: bool = False) -> bytes:
    """Interrupt (6.4.3.6, the extended descriptor): any global system interrupt, as a consumer of it."""
    flags = 1 << 0 | (not level) << 1 | active_low << 2 | shared << 3
    return struct.pack("<BHBBI", 0x89, 6, flags, 1, gsi)


def memory32_fixed(base: int, size: int, *, writable: bool = True) -> bytes:
    """Memory32Fixed (6.4.3.4): ``size`` bytes at a fixed address below 4 GiB."""
    return struct.pack("<BHBII", 0x86, 9, writable, base, size)
