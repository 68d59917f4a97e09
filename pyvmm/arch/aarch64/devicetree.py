"""A flattened device tree, written: Devicetree Specification 0.4, chapter 5 ("Flattened Devicetree (DTB) Format").

    tree = Node("", {"#address-cells": cells(2), "compatible": strings("linux,dummy-virt")})
    tree.add("chosen", {"bootargs": strings("console=ttyAMA0")})
    blob = flatten(tree)

Numbers are big endian, in cells of 32 bits.
"""

from __future__ import annotations

import struct

from pyvmm.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAGIC = 0xD00DFEED
VERSION, LAST_COMPATIBLE_VERSION = 17, 16
BEGIN_NODE, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9

_HEADER = struct.Struct(">10I")


def cells(*values: int) -> bytes:
    """The value of a property made of 32-bit cells."""
    return struct.pack(f">{len(values)}I", *values)


def wide(*values: int) -> bytes:
    """The same of 64-bit numbers: addresses and sizes of two cells each."""
    return struct.pack(f">{len(values)}Q", *values)


def strings(*values: str) -> bytes:
    """The value of a property that is a string, or a list of strings."""
    return b"".join(value.encode() + b"\0" for value in values)


class Node:
    """A node: its ``name``, with the unit address, its ``properties`` (values as bytes) and its ``children``, in order.

    A property without a value is ``b""``.
    """

    __slots__ = ("children", "name", "properties")

    def __init__(self, name: str, properties: Mapping[str, bytes] | None = None) -> None:
        self.name = name
        self.properties: dict[str, bytes] = dict(properties or {})
        self.children: list[Node] = []

    def add(self, name: str, properties: Mapping[str, bytes] | None = None) -> Node:
        """A new child, which it returns."""
        child = Node(name, properties)
        self.children.append(child)
        return child

    def child(self, name: str) -> Node:
        """The child called ``name``, added if there is none."""
        for child in self.children:
            if child.name == name:
                return child
        return self.add(name)


def flatten(root: Node) -> bytes:
    """The blob, whose memory reservation block is empty."""
    return flatten_with(root, [])


def flatten_with(root: Node, reservations: list[tuple[int, int]]) -> bytes:
    """The blob with memory reservations: (address, size)."""
    names: dict[str, int] = {}
    text = bytearray()
    body = bytearray()

    def offset(name: str) -> int:
        if name not in names:
            names[name] = len(text)
            text.extend(name.encode() + b"\0")
        return names[name]

    def write(node: Node) -> None:
        body.extend(cells(BEGIN_NODE))
        body.extend(_padded(node.name.encode() + b"\0"))
        for name, value in node.properties.items():
            body.extend(cells(PROP, len(value), offset(name)))
            body.extend(_padded(value))
        for child in node.children:
            write(child)
        body.extend(cells(END_NODE))

    write(root)
    body.extend(cells(END))
    reserved = b"".join(wide(*pair) for pair in (*reservations, (0, 0)))
    structure_at = _HEADER.size + len(reserved)
    strings_at = structure_at + len(body)
    header = _HEADER.pack(
        MAGIC, strings_at + len(text), structure_at, strings_at, _HEADER.size,
        VERSION, LAST_COMPATIBLE_VERSION, 0, len(text), len(body),
    )  # fmt: skip
    return header + reserved + bytes(body) + bytes(text)


def _padded(data: bytes) -> bytes:
    """Zeroes added up to a multiple of four bytes."""
    return data + bytes(-len(data) % 4)


def unflatten(blob: bytes, name: str = "the device tree") -> tuple[Node, list[tuple[int, int]]]:
    """The root node of a blob, and its memory reservations.  ``name`` is the file's, for ImageError."""
    try:
        return _unflatten(blob)
    except (struct.error, ValueError, IndexError, RecursionError) as error:
        raise ImageError(
            f"{name}: not a device tree that can be read ({error})", "check it with dtc -I dtb -O dts"
        ) from None


def _unflatten(blob: bytes) -> tuple[Node, list[tuple[int, int]]]:
    magic, total, structure_at, strings_at, reserved_at, _, last, _, _, _ = _HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise ValueError(f"it starts with {magic:#010x}, not {MAGIC:#010x}")
    if total > len(blob):
        raise ValueError(f"its totalsize is {total:#x}, and it has {len(blob):#x} bytes")
    if last > VERSION:
        raise ValueError(f"it is of version {last}, and {VERSION} is the newest known")
    blob = blob[:total]
    reservations = []
    while True:
        pair = struct.unpack_from(">2Q", blob, reserved_at)
        reserved_at += 16
        if pair == (0, 0):
            break
        reservations.append((pair[0], pair[1]))
    return _nodes(blob, structure_at, strings_at), reservations


def _nodes(blob: bytes, start: int, strings_at: int) -> Node:
    stack: list[Node] = []
    root: Node | None = None
    for token, at in _tokens(blob, start):
        if token == BEGIN_NODE:
            name = blob[at : blob.index(b"\0", at)].decode()
            node = stack[-1].add(name) if stack else Node(name)
            if not stack:
                if root is not None:
                    raise ValueError("it has two roots")
                root = node
            stack.append(node)
        elif token == END_NODE:
            stack.pop()
        else:
            length, offset = struct.unpack_from(">2I", blob, at)
            if at + 8 + length > len(blob):
                raise ValueError(f"the property at {at:#x} ends outside")
            name_at = strings_at + offset
            name = blob[name_at : blob.index(b"\0", name_at)].decode()
            stack[-1].properties[name] = blob[at + 8 : at + 8 + length]
    if root is None or stack:
        raise ValueError("its nodes do not end")
    return root


def _tokens(blob: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Each token but NOP and END with the offset of what follows it."""
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == END:
            return
        if token == NOP:
            continue
        if token not in (BEGIN_NODE, END_NODE, PROP):
            raise ValueError(f"there is a token {token:#x} at {at - 4:#x}")
        yield token, at
        if token == BEGIN_NODE:
            at = blob.index(b"\0", at) + 1
        elif token == PROP:
            at += 8 + int.from_bytes(blob[at : at + 4], "big")
        at = at + 3 & -4
