"""One case to be run: a kernel on a machine, and what it has to do there.  Plain data that can be sent elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Seconds for a case that says nothing else.
DEFAULT_TIMEOUT = 120.0
#: Seconds beyond a case's own limit after which its process is given up; the second, where a lab has to start.
GRACE = 30.0
LAB_GRACE = 900.0
#: Bytes of address space that a case's processes may have besides twice the guest's RAM.
_ADDRESS_SPACE = 8 << 30


@dataclass(frozen=True)
class Limits:
    """What the process of a case may use; None: as much as this one may.

    ``wall`` and ``cpu`` are seconds (the latter of each single process), ``address_space`` bytes.
    """

    wall: float | None = None
    cpu: int | None = None
    address_space: int | None = None
    files: int | None = 4096


@dataclass
class CaseSpec:
    """A case, with everything it needs.

    The guest runs ``command`` by its agent; without one it boots until it ends by itself or, if there are ``expect``
    texts and no ``status``, until its console has shown all of them, in any order.  ``status`` is the exit status that
    the command, or else the guest itself, has to end with; None: 0, where it is not stopped at a text.  With ``ktap``
    the command's standard output, or else the console, holds test results, which all have to pass.
    """

    kernel: str  #: the kernel's name
    machine: str  #: the machine's
    case: str  #: the case's
    path: str  #: the kernel's file
    command: str | list[str] | None = None
    expect: list[str] = field(default_factory=list)
    ktap: bool = False
    status: int | None = None
    timeout: float = DEFAULT_TIMEOUT  #: seconds, for all of it
    cmdline: str = ""  #: added to the serial console; instead of it, if it names a console
    initrd: str | None = None
    memory: str | None = None  #: None: the default of pyvmm boot
    cpus: int = 1
    devices: list[str] = field(
        default_factory=list
    )  #: "disk=FILE,overlay", as pyvmm boot takes them after --
    options: list[str] = field(default_factory=list)  #: more options of pyvmm boot
    root: str | None = None  #: the guest's root, as of pyvmm run --root
    modules: str | None = None  #: where the kernel's modules are, as of pyvmm run --modules
    drivers: list[str] = field(default_factory=list)  #: modules that are loaded besides those needed
    rodirs: list[str] = field(
        default_factory=list
    )  #: directories that the guest sees, "HOST" or "HOST:GUEST"
    rwdirs: list[str] = field(default_factory=list)  #: and those that it can write to
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    allow_splat: list[str] = field(default_factory=list)  #: regular expressions
    lab: bool = False
    skip_reason: str = ""
    log_dir: str | None = None  #: where whole consoles are kept; None: they are not
    attempt: int = 1

    @property
    def id(self) -> str:
        """ "kernel/machine/case", unique in a run."""
        return f"{self.kernel}/{self.machine}/{self.case}"

    @property
    def limits(self) -> Limits:
        """What its process may use: enough for what was asked, and an end to what runs wild."""
        if self.lab:
            return Limits(wall=self.timeout + LAB_GRACE)
        from pyvmm.machine.spec import DEFAULT_MEMORY, parse_size

        memory = parse_size(self.memory) if self.memory else DEFAULT_MEMORY
        wall = self.timeout + GRACE
        return Limits(wall, int(wall * (self.cpus + 2)) + 1, 2 * memory + _ADDRESS_SPACE)
