"""The terminal, on real pseudo-terminals: raw and back, in the background, gone; and output that never blocks."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.terminal import EscapeKeys, OutputClosed, Terminal, nonblocking, write_some

ROOT = Path(__file__).resolve().parents[2]
CONTROLLING = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


class Pty:
    """Both ends of a pseudo-terminal."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()

    def attributes(self) -> list[object]:
        return termios.tcgetattr(self.slave)

    def run(self, code: str) -> subprocess.Popen[str]:
        """Python code in a session of its own whose controlling terminal this is; stdout is a pipe."""
        return subprocess.Popen(
            [sys.executable, "-c", CONTROLLING + textwrap.dedent(code)],
            stdin=self.slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def close(self) -> None:
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)

    def close_master(self) -> None:
        os.close(self.master)
        self.master = -1


@pytest.fixture
def pty() -> Iterator[Pty]:
    terminal = Pty()
    yield terminal
    terminal.close()


def finish(process: subprocess.Popen[str], seconds: float = 20) -> tuple[int, str]:
    """Exit code and standard output; standard error must be empty."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"it hangs: {out!r} {err!r}")
    assert err == ""
    return process.returncode, out


# -- the escape keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "guest", "commands"),
    [
        (b"ls -l\r", b"ls -l\r", []),
        (b"\x03\x1a\x04\x1c", b"\x03\x1a\x04\x1c", []),
        (b"\x01x", b"", ["leave"]),
        (b"\x01c", b"", ["status"]),
        (b"\x01h\x01?", b"", ["help", "help"]),
        (b"\x01a", b"\x01", []),
        (b"\x01\x01", b"\x01", []),
        (b"\x01\x01x", b"\x01x", []),
        (b"\x01\x01\x01x", b"\x01", ["leave"]),
        (b"\x01k", b"\x01k", []),
        (b"\x01X", b"\x01X", []),
        (b"ab\x01ccd\x01x", b"abcd", ["status", "leave"]),
        (b"\x01", b"", []),
    ],
)
def test_escape_keys(typed: bytes, guest: bytes, commands: list[str]) -> None:
    assert EscapeKeys().feed(typed) == (guest, commands)


@given(st.lists(st.sampled_from([b"\x01", b"x", b"c", b"a", b"k", b"\r", b"\x00"]), max_size=30), st.data())
def test_escape_keys_do_not_care_how_the_input_is_cut(keys: list[bytes], data: st.DataObject) -> None:
    typed = b"".join(keys)
    whole = EscapeKeys().feed(typed)
    cut = EscapeKeys()
    guest, commands, at = b"", [], 0
    while at < len(typed):
        end = data.draw(st.integers(at + 1, len(typed)))
        piece, found = cut.feed(typed[at:end])
        guest, commands, at = guest + piece, commands + found, end
    assert (guest, commands) == whole


# -- raw mode -------------------------------------------------------------------------------------------


def test_keys_reach_the_guest_one_by_one_unchanged_and_unechoed(pty: Pty) -> None:
    with Terminal(pty.slave) as terminal:
        assert terminal.interactive
        assert terminal.input_fd == pty.slave
        for key in (b"\x03", b"\x1a", b"\x04", b"\r", b"\x13", b"\x7f", b"\xff", b"q"):
            os.write(pty.master, key)
            assert select.select([pty.slave], [], [], 5)[0], key
            assert os.read(pty.slave, 100) == key
        assert not select.select([pty.master], [], [], 0.05)[0], "nothing is echoed"


def test_output_processing_stays(pty: Pty) -> None:
    with Terminal(pty.slave):
        os.write(pty.slave, b"line\n")
        assert os.read(pty.master, 100) == b"line\r\n"


def test_the_terminal_is_put_back(pty: Pty) -> None:
    odd = pty.attributes()
    odd[6][termios.VTIME] = b"\x07"  # type: ignore[index]
    termios.tcsetattr(pty.slave, termios.TCSANOW, odd)
    before = pty.attributes()
    assert before == odd
    terminal = Terminal(pty.slave)
    assert pty.attributes() != before
    terminal.close()
    assert pty.attributes() == before
    assert terminal.input_fd is None
    changed = pty.attributes()
    changed[3] &= ~termios.ECHO  # type: ignore[operator]
    termios.tcsetattr(pty.slave, termios.TCSANOW, changed)
    terminal.close()
    assert pty.attributes() == changed, "a second close does nothing"


def test_the_terminal_is_put_back_by_an_exception(pty: Pty) -> None:
    before = pty.attributes()
    with pytest.raises(RuntimeError), Terminal(pty.slave):
        raise RuntimeError
    assert pty.attributes() == before


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise SystemExit(3)", "os.close(2); 1/0"])
def test_the_terminal_is_put_back_when_the_process_ends_anyhow(pty: Pty, end: str) -> None:
    before = pty.attributes()
    process = pty.run(
        f"""
        from pyvmm.terminal import Terminal
        terminal = Terminal()
        assert terminal.interactive
        print(termios.tcgetattr(0)[3] & termios.ECHO, flush=True)
        {end}
        """
    )
    code, out = finish(process)
    assert code != 0
    assert out == "0\n", "it was raw in between"
    assert pty.attributes() == before


def test_raw_again_after_the_shell_had_the_terminal(pty: Pty) -> None:
    before = pty.attributes()
    with Terminal(pty.slave) as terminal:
        raw = pty.attributes()
        termios.tcsetattr(pty.slave, termios.TCSANOW, before)
        terminal.resume()
        assert pty.attributes() == raw
    assert pty.attributes() == before
    terminal.resume()
    assert pty.attributes() == before, "not after the end"


def test_in_the_background_there_is_no_input_and_nothing_is_touched(pty: Pty) -> None:
    before = pty.attributes()
    process = pty.run(
        """
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            from pyvmm.terminal import Terminal
            terminal = Terminal()
            print(terminal.interactive, terminal.input_fd, terminal.foreground(), flush=True)
            terminal.close()
            os._exit(7)
        _, status = os.waitpid(child, os.WUNTRACED)
        print("stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))
        """
    )
    assert finish(process) == (0, "False None False\n7\n")
    assert pty.attributes() == before


def test_a_process_sent_to_the_background_leaves_the_terminal_to_the_foreground(pty: Pty) -> None:
    process = pty.run(
        """
        from pyvmm.terminal import Terminal
        sane = termios.tcgetattr(0)
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.read(go[0], 1)  # by now it is the foreground
            terminal = Terminal()
            print(terminal.interactive, flush=True)
            os.write(ready[1], b"x")
            os.read(go[0], 1)  # and now it is not
            terminal.resume()
            terminal.close()
            os._exit(0)
        import signal
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            os.setpgid(child, child)
        except PermissionError:
            pass
        os.tcsetpgrp(0, child)
        os.write(go[1], b"x")
        os.read(ready[0], 1)
        os.tcsetpgrp(0, os.getpgrp())
        mine = list(sane)
        mine[3] &= ~termios.ECHO
        termios.tcsetattr(0, termios.TCSANOW, mine)
        os.write(go[1], b"x")
        _, status = os.waitpid(child, os.WUNTRACED)
        print("stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))
        print(termios.tcgetattr(0) == mine)
        """
    )
    assert finish(process) == (0, "True\n0\nTrue\n")


def test_a_terminal_that_vanishes_is_no_error(pty: Pty) -> None:
    terminal = Terminal(pty.slave)
    pty.close_master()
    terminal.resume()
    terminal.close()


def test_a_terminal_that_is_gone_already_gives_no_input(pty: Pty) -> None:
    pty.close_master()
    terminal = Terminal(pty.slave)
    assert (terminal.interactive, terminal.input_fd) == (False, None)


# -- no terminal ----------------------------------------------------------------------------------------


def test_a_pipe_is_handed_on_as_it_is() -> None:
    read, write = os.pipe()
    with Terminal(read) as terminal:
        assert not terminal.interactive
        assert terminal.input_fd == read
        assert terminal.decode(b"a\x01x\x01\x01") == (b"a\x01x\x01\x01", [])
    os.close(read)
    os.close(write)


def test_closed_standard_input_gives_no_input() -> None:
    read, write = os.pipe()
    os.close(read)
    terminal = Terminal(read)
    assert (terminal.interactive, terminal.input_fd) == (False, None)
    terminal.close()
    os.close(write)


# -- output ---------------------------------------------------------------------------------------------


def drain(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and select.select([fd], [], [], 5)[0]:
        data += os.read(fd, 65536)
    return data


@pytest.mark.parametrize("reopen", [False, True])
def test_a_full_pipe_takes_what_it_can_and_loses_nothing(reopen: bool) -> None:
    read, write = os.pipe()
    out = nonblocking(write) if reopen else write
    data = os.urandom(300_000)
    rest = write_some(out, data)
    assert 0 < len(rest) < len(data)
    assert write_some(out, rest) == rest, "it is full"
    got = b""
    while rest:
        got += os.read(read, 65536)
        rest = write_some(out, rest)
    got += drain(read, len(data) - len(got))
    assert got == data
    for fd in {read, write, out}:
        os.close(fd)


def test_the_rest_has_the_type_of_the_data() -> None:
    read, write = os.pipe()
    assert write_some(write, bytearray(b"abc")) == bytearray()
    assert isinstance(write_some(write, bytearray(200_000)), bytearray)
    data = bytearray(b"x")
    write_some(write, data)
    data += b"y"  # no view of it is left
    os.close(read)
    os.close(write)


def test_a_stalled_terminal_does_not_hold_us_up(pty: Pty) -> None:
    out = nonblocking(pty.slave)
    data = b"no newline, please; " * 20_000
    started = time.monotonic()
    rest = write_some(out, data)
    rest = write_some(out, rest)
    assert time.monotonic() - started < 5
    assert 0 < len(rest) < len(data)
    got = drain(pty.master, 1)
    while rest:
        got += drain(pty.master, 1)
        rest = write_some(out, rest)
    got += drain(pty.master, len(data) - len(got))
    assert got == data
    os.close(out)


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_the_shared_descriptor_keeps_its_flags(pty: Pty, kind: str) -> None:
    read, write = os.pipe()
    fd = write if kind == "pipe" else pty.slave
    out = nonblocking(fd)
    assert fcntl.fcntl(out, fcntl.F_GETFL) & os.O_NONBLOCK
    assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    for each in (read, write, out):
        os.close(each)


def test_a_file_keeps_its_place(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb+", buffering=0) as file:
        file.write(b"before ")
        out = nonblocking(file.fileno())
        assert write_some(out, b"a" * 100_000) == b""
        file.write(b" after")
        os.close(out)
    assert (tmp_path / "log").read_bytes() == b"before " + b"a" * 100_000 + b" after"


def test_a_pipe_without_a_reader() -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(OutputClosed, match="nobody reads the output any more"):
        write_some(write, b"x")
    os.close(write)


def test_a_terminal_that_was_closed(pty: Pty) -> None:
    out = nonblocking(pty.slave)
    pty.close_master()
    with pytest.raises(OutputClosed):
        write_some(out, b"x")
    os.close(out)


def test_standard_output_that_is_not_open() -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    with pytest.raises(OutputClosed):
        write_some(write, b"x")


def test_other_errors_come_through() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        write_some(full.fileno(), b"x")


def test_nothing_to_write() -> None:
    assert write_some(1, b"") == b""
