"""Registers as data: a class lists the fields, and access, decoding and text come for free.

    class CR0(Register):
        PE = Bit(0)
        PG = Bit(31)

``CR0.PE | CR0.PG`` is the value with both bits set (on the class, a field is its mask), ``CR0(value).PG``
is the field's value (on an instance, it is decoded), and ``str(CR0(0x80000011))`` is
``CR0 = 0x80000011 [PG ET PE]``.  A register is an int, so it goes wherever a number goes.

The idiom is that of hardware bring-up tools: the class reads like the table in the manual.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import overload


class Bits:
    """A field of a register: bits ``high`` down to ``low``, both inclusive, as manuals write them.

    ``names`` gives words for the values of a field that has more than one bit.
    """

    __slots__ = ("low", "mask", "name", "names")

    def __init__(self, high: int, low: int, names: dict[int, str] | None = None) -> None:
        self.low = low
        self.mask = (2 << high) - (1 << low)
        self.name = ""
        self.names = names or {}

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        @overload
        def __get__(self, register: None, owner: type) -> int: ...
        @overload
        def __get__(self, register: int, owner: type) -> int: ...

    def __get__(self, register: int | None, owner: type) -> int:
        if register is None:
            return self.mask
        return (register & self.mask) >> self.low

    def describe(self, register: int) -> str:
        """This field of ``register`` in words: the name of a set bit, ``NAME=value``, nothing for zero."""
        value = (register & self.mask) >> self.low
        if value in self.names:
            return f"{self.name}={self.names[value]}"
        if value == 0:
            return ""
        if self.mask >> self.low == 1:
            return self.name
        return f"{self.name}={value:#x}" if value > 9 else f"{self.name}={value}"


class Bit(Bits):
    """A field of one bit."""

    __slots__ = ()

    def __init__(self, bit: int) -> None:
        super().__init__(bit, bit)


class Register(int):
    """Base of all registers; subclasses list their fields as :class:`Bit` and :class:`Bits`.

    ``WIDTH`` is the width in bits, for the text of unnamed bits only.
    """

    WIDTH = 64

    @classmethod
    def fields(cls) -> list[Bits]:
        """The fields, highest first."""
        found = [field for klass in cls.__mro__ for field in vars(klass).values() if isinstance(field, Bits)]
        return sorted(found, key=lambda field: -field.low)

    def decode(self) -> str:
        """The set fields by name, highest first, and what is set outside any field as a number."""
        words = []
        rest = int(self)
        for field in self.fields():
            rest &= ~field.mask
            text = field.describe(self)
            if text:
                words.append(text)
        if rest:
            words.append(f"+{rest:#x}")
        return " ".join(words)

    def __str__(self) -> str:
        return f"{type(self).__name__} = {int(self):#x} [{self.decode()}]"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def __format__(self, spec: str) -> str:
        """With a format (``:#x``) the number, without one the text."""
        return int(self).__format__(spec) if spec else str(self)
