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


#: (option, metavar, help) of options that few boots have: about machine files and device trees.
RARE = (
    (
        "--machine",
        "FILE.toml",
        "take what is not said here from a file with the same names; attachments add up",
    ),
    ("--dump-machine", "", "print the machine as such a file, and leave it at that"),
    ("--machine-schema", "", "print the JSON schema of such files"),
    ("--dtb", "FILE", "give the guest this device tree instead of the machine's own (aarch64)"),
    ("--dump-dtb", "FILE", "write the guest's device tree to FILE (aarch64)"),
)


def parser(arguments: Sequence[str] | None = None) -> Parser:
    """The command line of ``pyvmm boot``; of the devices' and the rare options only those that ``arguments`` use, if
    they are given and do not ask for help, as each option that argparse has to know costs time."""
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
    add("--control", metavar="SOCKET", help="make the control socket there; -: on standard input and output")
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
    parser.others = (*(option for option, *_ in RARE), *(option for _, option, *_ in KINDS))
    words = {word.partition("=")[0] for word in arguments or ()}
    everything = arguments is None or bool(words & {"-h", "--help"})
    for option, metavar, help in RARE:
        if not everything and option not in words:
            continue
        if metavar:
            add(option, metavar=metavar, help=help)
        else:
            add(option, action="store_true", help=help)
    for kind, option, metavar, help in KINDS:
        if not everything and option not in words:
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
    if options.control != "-" and any(each.for_owner for each in spec.attachments):
        raise UsageError(
            "a port with control is for the owner of the machine", "add --control -, or give it a socket"
        )
    if options.dump_machine:
        from pyvmm.machine.file import dump

        print(dump(vars(options), spec.attachments), end="")
        return 0
    _check_outputs(options)
    control = None
    try:
        if options.lab:
            from pyvmm.cli.boot_lab import boot_in_lab

            return boot_in_lab(options, spec, list(arguments))
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
        if control is not None:
            control.failed(error)
        if options.result is not None:
            from pyvmm.cli import result_file

            result_file.write_error(options.result, error)
        raise
    finally:
        if control is not None:
            control.close()


def _control(options: argparse.Namespace) -> Control:
    """The control socket, made first of all: with its own path or, for a machine that only has a name, in the runtime
    directory.  A path alone names the machine too.  ``-`` is standard input and output instead."""
    from pyvmm.control.sockets import check_name, path_of

    if options.control == "-":
        from pyvmm.control.owner import OwnerControl

        return OwnerControl("-" if options.name is None else check_name(options.name))
    from pyvmm.control.server import SocketControl as Control

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
        interactive=not options.no_input and options.control != "-",
        show_console=options.control != "-",
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
        from pyvmm.cli import result_file

        result_file.write(result, machine.result())
    return code


def _check_outputs(options: argparse.Namespace) -> None:
    """Find out now, not after the run, that an output cannot be written, or would be written over something."""
    if options.result is not None:
        from pyvmm.cli import result_file

        result_file.check(options.result)
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
