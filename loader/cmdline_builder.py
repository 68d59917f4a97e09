"""A kernel command line made step by step, each parameter checked as it comes.

Linux Documentation/admin-guide/kernel-parameters.rst, and lib/cmdline.c (next_arg) for what a quote does;
drivers/virtio/virtio_mmio.c for ``virtio_mmio.device``.  What follows `` -- `` the kernel hands to init.
"""

from __future__ import annotations

from loader import errors
from loader.enums import U64_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_INIT_SEPARATOR = " -- "
# Unicode's White_Space, which is not what str.strip() takes off: that has 0x1c to 0x1f as well.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(code) for code in range(0x2000, 0x200B)
)
_SUFFIXES = ((30, "G"), (20, "M"), (10, "K"))


class Cmdline:
    """A kernel command line of at most ``capacity`` bytes, its NUL included.

    ``boot_args`` are the kernel's parameters, ``init_args`` what it hands to init.  A method that raises
    leaves both as they were.  Two are equal if their text is, whatever their capacities.

    Other than in the crate: a quote without another to end it is refused, in a key and in a text too, since
    the kernel would take everything after it for part of the parameter; an empty text adds no space.
    """

    __slots__ = ("boot_args", "capacity", "init_args")
    __hash__ = None  # type: ignore[assignment]  # it changes

    def __init__(self, capacity: int) -> None:
        """An empty one.  Raises InvalidCapacity for a capacity without room for the NUL."""
        if capacity < 1:
            raise errors.InvalidCapacity(f"a command line of {capacity} bytes has no room for its NUL")
        self.capacity = capacity
        self.boot_args = ""
        self.init_args = ""

    @classmethod
    def new(cls, capacity: int) -> Cmdline:
        """An empty one, by the crate's name."""
        return cls(capacity)

    @classmethod
    def try_from(cls, text: str, capacity: int) -> Cmdline:
        """One of ``text``, divided at the first ``--`` that stands alone outside quotes, both sides trimmed.

        As for Linux, ``--`` may also come first or last (for the crate it then is a parameter, and what is
        inserted later ends up behind it).  Characters are checked, which the crate does not do.

        Raises InvalidCapacity if it does not fit, NullTerminator, InvalidAscii, InvalidQuote.
        """
        line = cls(capacity)
        if "\0" in text:
            raise errors.NullTerminator(
                f"the command line has a NUL at position {text.index(chr(0))}", "remove it"
            )
        boot, init = _divided(_text(text))
        try:
            line._set(boot, init)
        except errors.TooLarge as error:
            raise errors.InvalidCapacity(error.message, error.hint) from None
        return line

    def insert(self, key: str, value: str) -> None:
        """Add ``key=value``.

        Raises for the key InvalidAscii, HasSpace, HasEquals, InvalidQuote; for the value InvalidAscii,
        InvalidQuote, NoQuoteSpace (a value with spaces needs quotes around it); TooLarge.
        """
        self.insert_multiple(key, (value,))

    def insert_multiple(self, key: str, values: Iterable[str]) -> None:
        """Add ``key=value,value...``.  Raises what :meth:`insert` does, and MissingVal without a value."""
        _check_key(key)
        values = list(values)
        if not values:
            raise errors.MissingVal(f"no value for {key!a}", "insert_str takes parameters without one")
        for value in values:
            _check_value(key, value)
        self._add_boot_args(f"{key}={','.join(values)}")

    def insert_str(self, text: str) -> None:
        """Add parameters as they are, trimmed.  Raises InvalidAscii, InvalidQuote and TooLarge."""
        self._add_boot_args(_text(text))

    def insert_init_args(self, text: str) -> None:
        """Add arguments for init, trimmed.  Raises InvalidAscii, InvalidQuote and TooLarge."""
        self._set(self.boot_args, _joined(self.init_args, _text(text)))

    def add_virtio_mmio_device(self, size: int, baseaddr: int, irq: int, id: int | None = None) -> None:
        """Add ``virtio_mmio.device=`` for a device of ``size`` bytes at ``baseaddr``; ``id`` is its platform id.

        Raises MmioSize (no size, or a range that passes 64 bits), MmioInterrupt (0, which the kernel
        refuses, and the crate does not) and TooLarge.
        """
        if size < 1:
            raise errors.MmioSize(
                f"a virtio-mmio device of size {size} at {baseaddr:#x}", "give it 0x200 bytes"
            )
        if baseaddr < 0 or baseaddr + size - 1 > U64_MAX:
            raise errors.MmioSize(f"a virtio-mmio device of {size:#x} bytes at {baseaddr:#x} passes 64 bits")
        if irq < 1:
            raise errors.MmioInterrupt(
                f"a virtio-mmio device with interrupt {irq} at {baseaddr:#x}", "use 1 or more"
            )
        value = f"{_with_suffix(size)}@{baseaddr:#x}:{irq}"
        self.insert("virtio_mmio.device", value if id is None else f"{value}:{id}")

    def as_cstring(self) -> bytes:
        """The text, without its NUL.  Raises NoBootArgsInserted if there are only arguments for init."""
        if self.init_args and not self.boot_args:
            raise errors.NoBootArgsInserted(
                f"the command line has arguments for init ({self.init_args!a}) and none for the kernel",
                "insert one for the kernel",
            )
        return str(self).encode("ascii")

    def __bytes__(self) -> bytes:
        """The text with its NUL, as it goes into memory.  Raises NoBootArgsInserted."""
        return self.as_cstring() + b"\0"

    def __str__(self) -> str:
        return self.boot_args + (_INIT_SEPARATOR + self.init_args if self.init_args else "")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cmdline):
            return NotImplemented
        return str(self) == str(other)

    def __repr__(self) -> str:
        return f"<Cmdline {str(self)!r}, capacity {self.capacity}>"

    def _add_boot_args(self, text: str) -> None:
        self._set(_joined(self.boot_args, text), self.init_args)

    def _set(self, boot: str, init: str) -> None:
        size = len(boot) + (len(_INIT_SEPARATOR) + len(init) if init else 0) + 1
        if size > self.capacity:
            raise errors.TooLarge(
                f"the command line would have {size} bytes, NUL included, and its capacity is {self.capacity}",
                f"shorten it by {size - self.capacity}",
            )
        self.boot_args, self.init_args = boot, init


def _joined(old: str, new: str) -> str:
    return f"{old} {new}" if old and new else old or new


def _with_suffix(size: int) -> str:
    for shift, suffix in _SUFFIXES:
        if not size % (1 << shift):
            return f"{size >> shift}{suffix}"
    return str(size)


def _divided(text: str) -> tuple[str, str]:
    """The kernel's part and init's part of a trimmed text; the second is empty if there is none."""
    padded = f" {text} "
    at = padded.find(_INIT_SEPARATOR)
    while at >= 0 and padded.count('"', 0, at) % 2:
        at = padded.find(_INIT_SEPARATOR, at + 1)
    if at < 0:
        return text, ""
    return padded[:at].strip(" "), padded[at + len(_INIT_SEPARATOR) :].strip(" ")


def _text(text: str) -> str:
    """A text of parameters, trimmed and checked."""
    text = text.strip(_WHITE_SPACE)
    _check_ascii(text)
    _check_balance(text)
    return text


def _check_ascii(text: str) -> None:
    for position, character in enumerate(text):
        if not " " <= character <= "~":
            raise errors.InvalidAscii(
                f"{text!a} has {character!a} at position {position}, which is not printable ASCII"
            )


def _check_balance(text: str) -> None:
    if text.count('"') % 2:
        raise errors.InvalidQuote(
            f"{text!a} has a quote without another to end it (at position {text.rindex(chr(34))}),"
            " so the kernel would take all that follows for part of it",
            "close it or leave it out",
        )


def _check_key(key: str) -> None:
    _check_ascii(key)
    if " " in key:
        raise errors.HasSpace(f"the key {key!a} has a space at position {key.index(' ')}", "remove it")
    if "=" in key:
        raise errors.HasEquals(
            f"the key {key!a} has an equals sign at position {key.index('=')}", "remove it"
        )
    _check_balance(key)


def _check_value(key: str, value: str) -> None:
    _check_ascii(value)
    if '"' in value[1:-1]:
        raise errors.InvalidQuote(
            f"the value {value!a} of {key!a} has a quote inside it, at position {value.index(chr(34), 1)}",
            "quotes may stand around a value only",
        )
    if " " in value and not (len(value) > 1 and value[0] == value[-1] == '"'):
        raise errors.NoQuoteSpace(
            f"the value {value!a} of {key!a} has a space at position {value.index(' ')}", "put it in quotes"
        )
    _check_balance(value)
