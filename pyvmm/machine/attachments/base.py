"""What the user attaches to a machine: a kind, and values by key, as text of an option or as a table of a file.

``--disk FILE,ro,serial=abc`` and ``[[disk]]`` with ``path``, ``ro`` and ``serial`` are the same attachment.
A comma within a value is written twice.
"""

from __future__ import annotations

from pyvmm.errors import UsageError
from pyvmm.machine.spec import parse_size
from pyvmm.text import perhaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import ClassVar, Self

    from pyvmm.console import Console
    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.memory import GuestMemory

_TRUE = ("on", "true", "yes", "1")
_FALSE = ("off", "false", "no", "0")


def size(text: str) -> int:
    """The type of a key that is a number of bytes, written as 64K, 16M, 2G; a bare number is in bytes."""
    return parse_size(text, default_unit="")


class Key:
    """A key of an attachment: its ``type`` (str, int, bool or :func:`size`), and what values it takes.

    ``choices`` limits the values.  With ``many`` it may be given again, and its value is a tuple.  ``default`` is the
    value of a key that is not given (a tuple where ``many``; False for a bool; None otherwise, unless said here).
    ``bare`` is the value of a key that is given without one, as in ``--disk FILE,overlay`` (None: it needs one).
    ``path``: it names a place in the host's file system, which a machine file may name relative to its own.
    """

    __slots__ = ("bare", "choices", "default", "help", "many", "path", "required", "type")

    def __init__(
        self,
        type: Callable[[str], object],
        *,
        required: bool = False,
        default: object = None,
        choices: tuple[str, ...] = (),
        help: str = "",
        many: bool = False,
        bare: object = None,
        path: bool = False,
    ) -> None:
        self.bare = True if type is bool else bare
        self.type = type
        self.required = required
        self.path = path
        self.choices = choices
        self.help = help
        self.many = many
        if default is None:
            default = () if many else False if type is bool else None
        self.default = default

    def parse(self, what: str, text: str) -> object:
        """The value that ``text`` stands for; UsageError, about ``what``, if it is none."""
        if self.type is bool:
            word = text.lower()
            if word in _TRUE or word in _FALSE:
                return word in _TRUE
            raise UsageError(f"{what}={text}: neither on nor off", f"write {what} or {what}=off")
        if self.type is int:
            try:
                return int(text, 0)
            except ValueError:
                raise UsageError(f"{what}={text}: not a number", f"give {what} a whole number") from None
        try:
            return self.check(what, self.type(text))
        except UsageError as error:
            if error.message.startswith(what):
                raise
            raise UsageError(f"{what}={text}: {error.message}", error.hint) from None

    def check(self, what: str, value: object) -> object:
        """``value`` if this key takes it, in a file's types; UsageError otherwise."""
        if self.type is size and isinstance(value, str):
            return self.parse(what, value)
        kind = int if self.type is size else self.type
        if type(value) is not kind:
            words = {str: "text", int: "a whole number", bool: "true or false"}.get(kind, "what it takes")  # type: ignore[call-overload]
            raise UsageError(f"{what}: {value!r} is not {words}", f"correct {what}")
        if self.choices and value not in self.choices:
            raise UsageError(
                f"{what}={value}: unknown{perhaps(str(value), self.choices)}",
                f"choose one of {', '.join(self.choices)}",
            )
        return value


class Host:
    """What the machine offers to an attachment that makes its device.

    ``name`` is the device's ("disk0"); what has to be closed with the machine is appended to ``closers``;
    ``say(text)`` prints a line for the user.
    """

    __slots__ = ("closers", "console", "memory", "name", "say")

    def __init__(
        self,
        name: str,
        memory: GuestMemory,
        console: Console,
        closers: list[object],
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self.memory = memory
        self.console = console
        self.closers = closers
        self.say = say


class Attachment:
    """Base of all attachments; the values are attributes with the keys' names (a dash as an underscore).

    ``KIND`` is the kind, ``POSITIONAL`` the key that the first word of the option stands for where it has no '='
    (None: there is none), ``KEYS`` what it takes.  ``shared_memory``: guest RAM must be a memfd that another process
    can map.
    """

    KIND: ClassVar[str] = ""
    POSITIONAL: ClassVar[str | None] = None
    KEYS: ClassVar[dict[str, Key]] = {}
    shared_memory = False

    def __init__(self, **values: object) -> None:
        """Values by key; those left out get their defaults.  UsageError for what is missing, unknown or wrong."""
        given = {
            name.replace("_", "-") if name not in self.KEYS else name: value for name, value in values.items()
        }
        for name in given:
            self._key(name)
        for name, key in self.KEYS.items():
            if name not in given:
                if key.required:
                    raise UsageError(f"{self.KIND} without {name}", f"give {name}: {key.help}")
                value = key.default
            elif key.many:
                each = given[name]
                if not isinstance(each, (list, tuple)):
                    each = [each]
                value = tuple(key.check(name, item) for item in each)
            elif given[name] is None:
                value = key.default
            else:
                value = key.check(name, given[name])
            setattr(self, name.replace("-", "_"), value)

    @classmethod
    def _key(cls, name: str) -> Key:
        key = cls.KEYS.get(name)
        if key is None:
            raise UsageError(
                f"{cls.KIND} has no {name!r}{perhaps(name, cls.KEYS)}",
                f"it has {', '.join(cls.KEYS)}" if cls.KEYS else "it has no settings",
            )
        return key

    @classmethod
    def parse(cls, text: str) -> Self:
        """The attachment that an option's ``text`` describes.  UsageError."""
        values: dict[str, object] = {}
        parts = split(text) if text else []
        for index, part in enumerate(parts):
            name, equals, value = part.partition("=")
            if index == 0 and cls.POSITIONAL is not None and (not equals or name not in cls.KEYS):
                name, equals, value = cls.POSITIONAL, "=", part
            key = cls._key(name)
            if not equals and key.bare is None:
                raise UsageError(f"{name} has no value", f"write {name}=...")
            item = key.parse(name, value) if equals else key.bare
            if key.many:
                values[name] = (*values.get(name, ()), item)  # type: ignore[misc]
            elif name in values:
                raise UsageError(f"{name} is given twice", f"give {name} once")
            else:
                values[name] = item
        return cls(**values)

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> Self:
        """The attachment that a table of a machine file describes.  UsageError."""
        return cls(**table)

    def to_table(self) -> dict[str, object]:
        """The values that are not the defaults, as a machine file has them."""
        table: dict[str, object] = {}
        for name, key in self.KEYS.items():
            value = getattr(self, name.replace("-", "_"))
            if value != key.default:
                table[name] = list(value) if key.many else value
        return table

    def files(self) -> list[str]:
        """The files and directories of the host that it uses: what has to be carried where the machine is to run."""
        return []

    @property
    def for_owner(self) -> bool:
        """Whether it is joined to the control connection of whoever owns the machine (``boot --control -``)."""
        return False

    def program(self) -> str:
        """The separate program that serves the device where pyvmm does not; "" for none."""
        return ""

    def changed_files(self) -> list[str]:
        """Those of them that the guest may change: what has to be carried back."""
        return []

    def check(self) -> None:
        """What can be found wrong before anything is built: UsageError or HostError."""

    def create(self, host: Host) -> VirtioDevice:
        """Make the device."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.to_table()}>"


def split(text: str) -> list[str]:
    """``text`` cut at its single commas; a double comma stands for one within a part."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
