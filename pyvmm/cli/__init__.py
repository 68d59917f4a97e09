"""The command line: one small module for each verb, imported when it is used.

Start-up time is the user's, so nothing is imported before the verb is known (a bare interpreter is 15 ms,
argparse with what it needs about as much again).
"""

from __future__ import annotations

import errno
import os
import sys

from pyvmm.errors import PyvmmError, UsageError
from pyvmm.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

EXIT_ERROR = 125

USAGE = """\
usage: pyvmm VERB ...

  boot KERNEL        boot a kernel image under KVM with its console here
  run -k K -- CMD    run a command under a kernel, on this host's own files
  ps                 list the running machines that have a name
  ctl NAME COMMAND   ask or steer one of them: status, pause, resume, stop, console, ...
  inspect FILE       say what a file is, what its headers mean, and where it would stand in memory
  parse [FILE]       read test results (KTAP, kselftest, KUnit) out of a console's log
  doctor             say what this host can do, what is missing and how to mend it
  cache [clear]      list or remove the kernels taken out of bzImages
  lab -- COMMAND     run a command inside an emulated host with real KVM
  mkinitramfs -o F   make an initramfs: busybox, files with their libraries, modules, an init
  test [FILE.toml]   boot tests: kernels x machines x cases, in parallel, with reports

`pyvmm VERB --help` explains one verb; `pyvmm --version` prints the version.
"""

#: The module of each verb.
VERBS = {
    "boot": "boot", "cache": "cache", "ctl": "ctl", "doctor": "doctor", "inspect": "inspect", "lab": "lab",
    "mkinitramfs": "mkinitramfs", "parse": "parse", "ps": "ps", "run": "run_command", "test": "test",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit code.

    Every error raised on purpose becomes one line and a hint on standard error, and 125.
    """
    _occupy_standard_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # here, where it can still be said that the output was not taken
        return code
    except _own_errors() as error:
        return report_error(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away.
        _drop_output()
        say(
            "pyvmm: nobody reads the output any more",
            "hint: keep its reader running, or send the output to a file",
        )
        return EXIT_ERROR
    except Exception as error:
        if os.environ.get("PYVMM_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _drop_output()
            where = f": {error.filename}" if error.filename else ""
            say(
                f"pyvmm: {error.strerror}{where}",
                "hint: free some space, or send the output to another place",
            )
            return EXIT_ERROR
        say(
            f"pyvmm: internal error: {type(error).__name__}: {error}",
            "hint: this is a bug in pyvmm; PYVMM_DEBUG=1 shows where it happened",
        )
        return EXIT_ERROR


def run() -> NoReturn:
    """The ``pyvmm`` command.  After a boot everything has been closed and said, so that the interpreter need not take
    itself apart first, which would take as long as building the machine did."""
    code = main()
    if "pyvmm.machine.build" not in sys.modules or "pyvmm.lab" in sys.modules:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # its reader went away, or it was closed from the start
    os._exit(code)


def _occupy_standard_descriptors() -> None:
    """Put /dev/null where standard input, output or error was closed: the next file opened would take its
    number, and the guest's console would be written into it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


def _drop_output() -> None:
    """Keep the interpreter from trying, at its exit, to write what was not taken, and complaining about it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _dispatch(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "help":
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else EXIT_ERROR
    verb, rest = arguments[0], arguments[1:]
    if verb in VERBS:
        module = __import__(f"pyvmm.cli.{VERBS[verb]}", fromlist=("main",))
        code: int = module.main(rest)
        return code
    if verb in ("-V", "--version", "version"):
        from pyvmm import __version__

        print(f"pyvmm {__version__}")
        return 0
    from pyvmm.text import perhaps

    verbs = sorted(VERBS)
    raise UsageError(
        f"there is no verb '{verb}'{perhaps(verb, verbs)}",
        f"the verbs are {', '.join(verbs[:-1])} and {verbs[-1]}; see pyvmm --help",
    )


def _own_errors() -> tuple[type[Exception], ...]:
    """The classes of errors raised on purpose; evaluated only once something was raised."""
    from loader.errors import LoaderError

    return (PyvmmError, LoaderError)


def say(*lines: str) -> None:
    """Print lines on standard error; where that went away too, there is nobody left to tell."""
    try:
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stderr.flush()
    except (OSError, AttributeError):  # AttributeError: started with standard error closed
        pass


def report_error(error: Exception) -> int:
    """Print ``error`` (a PyvmmError or LoaderError) as one line and its hint; returns 125."""
    message = getattr(error, "message", str(error))
    hint = getattr(error, "hint", "")
    say(f"pyvmm: {message}", *([f"hint: {hint}"] if hint else []))
    return EXIT_ERROR
