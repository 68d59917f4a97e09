"""``pyvmm boot KERNEL``: build the machine, run it with its console here, and say how it ended."""

from __future__ import annotations

import os

from pyvmm.arch import DEFAULT_CMDLINE, host_name
from pyvmm.cli import say
from pyvmm.cli.arguments import Parser
from pyvmm.errors import UsageError
from pyvmm.machine.attachments import KINDS, attachment
from pyvmm.machine.spec import DEFAULT_MEMORY, PROTOCOLS, MachineSpec, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from pyvmm.control.server import Control
    from pyvmm.machine.machine import Machine

#: What the project's own /init prints; ``--verify`` needs to see it.
USERSPACE_REACHED = "pyvmm: userspace reached"


#: Seconds beyond --timeout after which a boot in the lab is given up: start-up and clean-up are slow there.
LAB_GRACE = 60.0


#: (option, metavar, help) of the options about machine files.
MACHINE_FILES = (
    (
        "--machine",
        "FILE.toml",
        "take what is not said here from a file with the same names; attachments add up",
    ),
    ("--dump-machine", "", "print the machine as such a file, and leave it at that"),
    ("--machine-schema", "", "print the JSON schema of such files"),
)

#: The same of those about the device tree.
DEVICE_TREES = (
    ("--dtb", "FILE", "give the guest this device tree instead of the machine's own (aarch64)"),
    ("--dump-dtb", "FILE", "write the guest's device tree to FILE (aarch64)"),
)


def parser(arguments: Sequence[str] | None = None) -> Parser:
    """The command line of ``pyvmm boot``; of the devices' options only those that ``arguments`` use, if they are given
    and do not ask for help, as each option that argparse has to know costs time."""
    parser = Parser(
        "pyvmm boot",
        "Boot a kernel image under KVM with its serial console on this terminal. Ctrl-A x leaves, "
        "Ctrl-A s presses the power button, Ctrl-A c prints a status line, Ctrl-A Ctrl-A sends Ctrl-A.",
    )
    add = parser.add_argument
    add("kernel", nargs="?",
        help="a bzImage, arm64 Image, ELF vmlinux, or any ELF file with a PVH note; told apart by content")  # fmt: skip
    add(
        "--cmdline",
        default=DEFAULT_CMDLINE,
        metavar="TEXT",
        help=f"kernel command line (default: {DEFAULT_CMDLINE})",
    )
    add("--initrd", metavar="FILE", help="initial RAM disk")
    add(
        "--memory",
        default=f"{DEFAULT_MEMORY >> 20}M",
        metavar="SIZE",
        help="guest RAM, as 512M or 1G (default: %(default)s)",
    )
    add("--cpus", default="1", metavar="N", help="vCPUs (default: 1)")
    add("--protocol", default="auto", choices=PROTOCOLS, help="boot protocol (default: what suits the image)")
    add("--timeout", metavar="SECONDS", help="stop after that long, with exit code 124")
    add("--expect", action="append", default=[], metavar="TEXT",
        help="stop with exit code 0 once the console has shown TEXT (given again: all of them); "
        "121 if the guest ends before")  # fmt: skip
    add(
        "--verify",
        action="store_true",
        help="boot with pyvmm's own init; exit code 0 only if userspace was reached",
    )
    add("--console-log", metavar="FILE", help="write the console to FILE too")
    add("--result", metavar="FILE", help="write the outcome, times and exit counts to FILE as JSON")
    add("--name", metavar="NAME", help="let pyvmm ps list the machine, and pyvmm ctl NAME steer it")
    add("--control", metavar="SOCKET", help="make the control socket there")
    add("--no-input", action="store_true", help="leave standard input alone")
    add("--huge-pages", action="store_true", help="advise the host to back guest RAM with huge pages")
    add(
        "--poison",
        metavar="BYTE",
        help="fill guest RAM with BYTE first, so that reliance on zeroes shows (slow)",
    )
    add("--kaslr", action="store_true", default=None, help="give a vmlinux a random virtual address")
    add(
        "--no-kaslr",
        dest="kaslr",
        action="store_false",
        help="leave the kernel in a bzImage where it was linked",
    )
    add("--map", action="store_true",
        help="map kernel and initrd into the guest instead of copying; they must not change meanwhile")  # fmt: skip
    add("--no-extract", action="store_true", help="let the guest unpack a bzImage itself, as on bare metal")
    add("--no-coalesce", action="store_true", help="let every port write leave the kernel on its own")
    parser.set_defaults(attachments=None, machine=None, dump_machine=False, machine_schema=False)
    parser.set_defaults(dtb=None, dump_dtb=None)
    parser.others = tuple(option for option, *_ in (*MACHINE_FILES, *DEVICE_TREES)) + tuple(
        kind[1] for kind in KINDS
    )
    words = None if arguments is None else {word.partition("=")[0] for word in arguments}
    for option, metavar, help in (*MACHINE_FILES, *DEVICE_TREES):
        if words is None or words & {option, "-h", "--help"}:
            if metavar:
                add(option, metavar=metavar, help=help)
            else:
                add(option, action="store_true", help=help)
    for kind, option, metavar, help in KINDS:
        if words is not None and not words & {option, "-h", "--help"}:
            continue
        if metavar:
            add(option, action="append", dest="attachments", metavar=metavar, type=_tagged(kind), help=help)
        else:
            add(option, action="append_const", dest="attachments", const=(kind, ""), help=help)
    add("--lab", action="store_true", help="boot inside the lab, an emulated host with real KVM")
    add("--verbose", action="store_true", help="say where everything was placed before the guest starts")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm boot`` with these arguments; returns the exit code."""
    options = _options(arguments)
    if options.machine_schema:
        return _print_schema()
    spec = _spec(options)
    if options.dump_machine:
        from pyvmm.machine.file import dump

        print(dump(vars(options), spec.attachments), end="")
        return 0
    _check_outputs(options)
    control = None
    try:
        if options.lab:
            return _in_the_lab(options, spec, list(arguments))
        from pyvmm.machine.build import build

        if options.control is not None or options.name is not None:
            control = _control(options)
        with build(spec) as machine:
            if control is not None:
                control.attach(machine)
            for line in machine.arch.advice(spec.cmdline):
                say(f"pyvmm: note: {line}")
            if options.verbose:
                _describe(machine)
            machine.run()
            if control is not None:
                control.finish()
            return _report(machine, options.result)
    except Exception as error:
        _error_result(options.result, error)
        raise
    finally:
        if control is not None:
            control.close()


def _control(options: argparse.Namespace) -> Control:
    """The control socket, made first of all: with its own path or, for a machine that only has a name, in the runtime
    directory.  A path alone names the machine too."""
    from pyvmm.control.server import Control
    from pyvmm.control.sockets import check_name, path_of

    if options.control is None:
        return Control(path_of(options.name, make=True), options.name)
    if options.name is not None:
        return Control(options.control, check_name(options.name))
    return Control(options.control, os.path.splitext(os.path.basename(options.control))[0])


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """What the command line says, and the machine file that it names."""
    known = parser(arguments)
    options = known.parse_args(list(arguments))
    if options.machine is not None:
        from pyvmm.machine import file

        known.set_defaults(**file.read(options.machine, vars(options)))
        options = known.parse_args(list(arguments))
    if options.kernel is None and not options.machine_schema:
        known.error("there is no kernel: name it here, or in a file with --machine")
    return options


def _print_schema() -> int:
    import json

    from pyvmm.machine.schema import schema

    print(json.dumps(schema(), indent=2))
    return 0


def _tagged(kind: str) -> Callable[[str], tuple[str, str]]:
    """All attachments are in one list, in the order given."""
    return lambda text: (kind, text)


def _number(text: str, option: str, kind: type[int] | type[float]) -> int | float:
    try:
        return int(text, 0) if kind is int else float(text)
    except ValueError:
        raise UsageError(f"{option} {text}: not a number", f"give {option} a number") from None


def _spec(options: argparse.Namespace) -> MachineSpec:
    """The machine the options ask for; UsageError for values and combinations that make no sense."""
    initrd: str | bytes | None = options.initrd
    require: tuple[str, ...] = ()
    if options.verify:
        if options.initrd is not None:
            raise UsageError(
                "--verify brings its own initrd", "leave out --initrd, or use --expect TEXT with yours"
            )
        if options.expect:
            raise UsageError("--verify and --expect exclude each other", "choose one of them")
        from pyvmm.initramfs import verify_initramfs

        initrd = verify_initramfs(host_name())
        require = (USERSPACE_REACHED,)
    return MachineSpec(
        options.kernel,
        cmdline=options.cmdline,
        initrd=initrd,
        memory=parse_size(options.memory),
        cpus=int(_number(options.cpus, "--cpus", int)),
        protocol=options.protocol,
        timeout=None if options.timeout is None else float(_number(options.timeout, "--timeout", float)),
        expect=options.expect,
        require=require,
        console_log=options.console_log,
        huge_pages=options.huge_pages,
        poison=None if options.poison is None else int(_number(options.poison, "--poison", int)),
        coalesce=not options.no_coalesce,
        extract=not options.no_extract,
        kaslr=options.kaslr,
        map_files=options.map,
        interactive=not options.no_input,
        dtb=options.dtb,
        dump_dtb=options.dump_dtb,
        attachments=[
            attachment(each[0]).parse(each[1]) if isinstance(each, tuple) else each
            for each in options.attachments or ()
        ],
    )


def _describe(machine: Machine) -> None:
    """The guest's memory as it stands before the first instruction, on standard error."""
    for claim in machine.memory.claims:
        say(f"pyvmm: {claim.start:#012x}-{claim.end - 1:#012x}  {claim.name}")


def _report(machine: Machine, result: str | None) -> int:
    """Say how the run ended where that is not obvious, write the result file, return the exit code."""
    from pyvmm.machine.outcome import EXIT_COLLISION, Outcome

    end = machine.end
    assert end is not None
    code = machine.exit_code()
    if code:
        words = end.outcome.describe() + (f": {end.detail}" if end.detail else "")
        if end.status is not None and end.outcome is Outcome.EXIT:
            words += f", {end.status}"
            if code == EXIT_COLLISION != end.status:
                words += f" (given as {code}: from 120 on the codes are pyvmm's own)"
        if end.outcome is Outcome.TIMEOUT:
            words += f" after {machine.spec.timeout:g} s (--timeout)"
        absent = machine.absent()
        if absent and code == 121:
            words += f", and the console never showed {', '.join(map(repr, absent))}"
        for name, count in machine.console.lost().items():
            words += f"; {count} bytes of console were not taken by {name}"
        if machine.console.in_a_line():
            say("")
        say(f"pyvmm: {words}", *(f"  {line}" if line else "" for line in end.report))
        if (
            end.outcome is Outcome.PANIC
            and "Unable to mount root fs" in end.detail
            and not machine.spec.initrd
        ):
            say("hint: the kernel found no root file system: give --initrd FILE, or try --verify")
    if result is not None:
        _write_result(result, machine.result())
    return code


def _check_outputs(options: argparse.Namespace) -> None:
    """Find out now, not after the run, that an output cannot be written, or would be written over something."""
    if options.result is not None:
        _check_result(options.result)
    taken: dict[tuple[int, int], str] = {}
    written = (options.console_log, options.result, options.dump_dtb)
    for path in (options.kernel, options.initrd, options.dtb, *written):
        if path is None or not os.path.isfile(path):
            continue
        status = os.stat(path)
        key = (status.st_dev, status.st_ino)
        if key in taken and path in written:
            raise UsageError(f"{path} would be written over {taken[key]}", "choose another place")
        taken[key] = path


def _check_result(path: str) -> None:
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise UsageError(f"--result {path}: is a directory", "name a file")
    if not os.path.isdir(folder):
        raise UsageError(f"--result {path}: there is no directory {folder}", "make the directory first")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"--result {path}: not writable", "choose a writable place")


def _write_result(path: str, result: dict[str, object]) -> None:
    """Write ``result`` as JSON: a file whole or not at all, anything else (a link, a pipe, a device) in place."""
    import json
    import stat

    data = (json.dumps(result, indent=2) + "\n").encode()
    try:
        try:
            in_place = not stat.S_ISREG(os.lstat(path).st_mode)
        except FileNotFoundError:
            in_place = False
        if in_place:
            _write(path, os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY, data)
            return
        temporary = f"{path}.{os.urandom(6).hex()}.tmp"
        try:
            _write(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, data)
            os.replace(temporary, path)
        except OSError:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write the result file {path}: {error.strerror}", "choose a writable place"
        ) from None


def _write(path: str, flags: int, data: bytes) -> None:
    """All of ``data`` to ``path``."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o666)
    try:
        os.set_blocking(fd, True)  # O_NONBLOCK is for opening a pipe that nobody reads
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _error_result(path: str | None, error: Exception) -> None:
    """A result file for a run that never started, so that whoever reads it finds the reason there."""
    if path is None:
        return
    message = getattr(error, "message", f"{type(error).__name__}: {error}")
    _write_result(
        path,
        {
            "outcome": "error",
            "detail": message,
            "hint": getattr(error, "hint", ""),
            "exit_code": 125,
            "guest_status": None,
            "absent": [],
            "elapsed_s": None,
            "first_run_s": None,
            "exits": {"total": 0, "by_device": {}, "by_port": {}, "unhandled": {}, "coalesced_writes": 0},
            "devices": {},
            "memory": {"resident_kib": None, "guest_kib": None},
            "console_bytes": 0,
            "console_lost": {},
            "console_tail": "",
            "report": [],
        },
    )


def _in_the_lab(options: argparse.Namespace, spec: MachineSpec, arguments: list[str]) -> int:
    """The same boot inside the lab for the kernel's architecture: the same paths, the same files coming back."""
    from pyvmm.cli.lab import report
    from pyvmm.errors import HostError
    from pyvmm.lab import Lab, architecture_for
    from pyvmm.lab.foreground import run_in_foreground

    if options.control is not None or options.name is not None:
        raise UsageError(
            "--control and --name reach no machine in the lab",
            "run both there: pyvmm lab -- sh -c 'pyvmm boot ...'",
        )
    carry_in = [path for path in (options.kernel, options.initrd, options.dtb) if path is not None]
    written = (options.console_log, options.result, options.dump_dtb)
    carry_out = [path for path in written if path is not None]
    for each in spec.attachments:
        carry_in += each.files()
        carry_out += each.changed_files()
    for path in carry_in:
        if not os.path.exists(path):
            raise UsageError(f"{path}: no such file", "check the name")
    for path in (options.kernel, options.initrd):
        if path is not None and os.path.isdir(path):  # all of it would be carried in
            raise UsageError(f"{path}: a directory, not a file", "give the file inside it")
    architecture = architecture_for(options.kernel)
    command = ["pyvmm", "boot", *(argument for argument in arguments if argument != "--lab")]
    resolved = None
    if options.machine is not None:  # what it says by now, as one file
        import tempfile

        from pyvmm.machine.file import dump

        resolved = tempfile.NamedTemporaryFile("w", prefix="pyvmm-machine-", suffix=".toml")  # noqa: SIM115
        values = {**vars(options), "lab": False}
        if options.cmdline == DEFAULT_CMDLINE:
            values["cmdline"] = None  # the lab's own default, where the console may have another name
        resolved.write(dump(values, spec.attachments))
        resolved.flush()
        command = ["pyvmm", "boot", "--machine", resolved.name]
    if not options.no_extract:
        command.append("--no-extract")  # the lab has no cache, and would unpack slower than the guest in it
    # pyvmm in the lab keeps the time; the limit here is for a lab that does not answer any more.
    limit = None if options.timeout is None else float(options.timeout) + LAB_GRACE
    lab = Lab(architecture, report=report)
    try:
        status = run_in_foreground(lab, command, carry_in=carry_in, carry_out=carry_out, timeout=limit)
    except BrokenPipeError:
        raise HostError(
            "nobody reads the output any more", "keep its reader running, or send the output to a file"
        ) from None
    finally:
        if resolved is not None:
            resolved.close()
    if lab.timed_out:
        raise HostError("the lab did not answer any more and was stopped", "run it again")
    return status
