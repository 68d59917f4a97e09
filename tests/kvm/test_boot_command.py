"""``pyvmm boot`` as a user types it, with the small guests: how runs end, what is written, how it is stopped."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_pyvmm

pytestmark = pytest.mark.usefixtures("kvm")


def boot(guests, name, *options, **keywords):
    return run_pyvmm("boot", guests / f"{name}.elf", "--timeout", "20", *options, **keywords)


def start(guests, name, *options, **keywords):
    return subprocess.Popen(
        [sys.executable, "-m", "pyvmm", "boot", str(guests / f"{name}.elf"), "--timeout", "30", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **keywords,
    )  # fmt: skip


def result_of(guests, tmp_path, name, *options):
    done = boot(guests, name, "--result", tmp_path / "r.json", *options)
    return done, json.loads((tmp_path / "r.json").read_text())


class TestHowItEnds:
    def test_status_zero(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "hello")
        assert done.returncode == 0
        assert done.stdout == b"hello from a guest of pyvmm\r\n" or b"hello" in done.stdout
        assert done.stderr == ""
        assert (result["outcome"], result["exit_code"], result["guest_status"]) == ("exit", 0, 0)
        assert result["console_tail"].strip() == done.stdout.decode().strip()
        assert 0 < result["first_run_s"] < result["elapsed_s"] < 20
        exits = result["exits"]
        assert exits["total"] == sum(exits["by_device"].values()) > 0
        assert exits["coalesced_writes"] >= len(done.stdout)

    def test_triple_fault_is_explained(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "triple")
        assert done.returncode == 122
        assert result["outcome"] == "triple-fault"
        report = "\n".join(result["report"])
        for part in ("likely cause", "CR0 = 0x11 [ET PE]", "page walk of RIP", "code at RIP"):
            assert part in report
            assert part in done.stderr

    def test_an_early_exception_is_named(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "fault")
        assert (done.returncode, result["outcome"]) == (122, "triple-fault")
        report = "\n".join(result["report"])
        assert "#DE" in report
        assert "RAX 0000000000001234" in report
        assert "divide" in report, "the symbol of RIP"

    def test_a_jump_out_of_ram_is_explained(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "badjump")
        assert (done.returncode, result["outcome"]) == (122, "internal-error")
        assert "there is no RAM" in done.stderr

    def test_panic_does_not_hang_and_shows_its_line_whole(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "panic")
        assert (done.returncode, result["outcome"]) == (120, "panic")
        assert "Kernel panic - not syncing: test" in done.stderr
        assert done.stdout.rstrip().endswith(b"---[ end Kernel panic - not syncing: test ]---")
        assert result["elapsed_s"] < 10

    def test_a_guest_that_halted_has_ended(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "halt")
        assert (done.returncode, result["outcome"]) == (0, "shutdown")
        assert "nothing can wake it" in result["detail"]

    def test_a_silent_guest_is_seldom_asked(self, guests, tmp_path):
        _, result = result_of(guests, tmp_path, "spin", "--timeout", "7")
        assert result["exits"]["by_device"]["KVM_EXIT_INTR"] <= 4  # after 2 and 6 s, and to stop it

    def test_reset_within_the_ports_of_pci(self, guests, tmp_path):
        _, result = result_of(guests, tmp_path, "reset")
        assert result["outcome"] == "reset"
        assert result["exits"]["total"] == 1, "the write to 0xcf8 makes no exit"

    def test_a_word_the_machine_cannot_honour_is_noted(self, guests):
        done = boot(guests, "hello", "--cmdline", "console=ttyS0 noapic")
        assert done.returncode == 0
        assert "noapic" in done.stderr

    def test_timeout(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "spin", "--timeout", "0.5")
        assert (done.returncode, result["outcome"]) == (124, "timeout")
        assert "time was up" in done.stderr
        assert re.search(r"vCPU 0 was running, interrupts off, RIP 0x1\w+ \(\w+\+0x", done.stderr), done

    def test_expected_text_ends_the_run(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "panic", "--expect", "not syncing: te")
        assert (done.returncode, result["outcome"]) == (0, "expected")

    def test_expected_text_that_never_comes(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "hello", "--expect", "login:")
        assert done.returncode == 121
        assert result["absent"] == ["login:"]
        assert "'login:'" in done.stderr

    def test_two_expected_texts_are_both_waited_for(self, guests):
        assert boot(guests, "hello", "--expect", "hello", "--expect", "guest of").returncode == 0
        assert boot(guests, "hello", "--expect", "hello", "--expect", "goodbye").returncode == 121


class TestImages:
    def test_a_compressed_image_is_unpacked(self, guests, tmp_path):
        path = tmp_path / "hello"
        path.write_bytes(gzip.compress((guests / "hello.elf").read_bytes()))
        done = run_pyvmm("boot", path)
        assert done.returncode == 0, done
        assert b"hello" in done.stdout

    def test_mapped_and_copied_are_the_same_to_the_guest(self, guests, tmp_path):
        initrd = tmp_path / "initrd"
        initrd.write_bytes(os.urandom(1 << 20))
        copied, mapped = (boot(guests, "memmap", "--initrd", initrd, *option) for option in ([], ["--map"]))
        assert copied.returncode == mapped.returncode == 0
        assert copied.stdout == mapped.stdout

    def test_kaslr_of_what_cannot_be_moved_is_an_error_only_if_asked_for(self, guests):
        assert boot(guests, "hello", "--no-kaslr").returncode == 0
        done = boot(guests, "hello", "--kaslr")
        assert done.returncode == 125
        assert "relocation table" in done.stderr
        assert boot(guests, "hello", "--kaslr", "--cmdline", "nokaslr").returncode == 0


class TestConsole:
    def test_log_and_standard_output_are_the_same(self, guests, tmp_path):
        done = boot(guests, "hello", "--console-log", tmp_path / "log")
        assert (tmp_path / "log").read_bytes() == done.stdout != b""

    def test_a_flood_arrives_whole(self, guests, tmp_path):
        done, result = result_of(guests, tmp_path, "flood")
        assert done.returncode == 0
        assert len(done.stdout) == result["console_bytes"] >= 1 << 20
        lines = set(done.stdout[: 1 << 20].splitlines())
        assert len(lines - {b""}) == 1, "a line lost bytes"

    def test_coalescing_spares_exits(self, guests, tmp_path):
        def exits_per_byte(*options):
            _, result = result_of(guests, tmp_path, "flood", *options)
            return result["exits"]["total"] / result["console_bytes"]

        assert exits_per_byte("--no-coalesce", "--timeout", "2") >= 1
        assert exits_per_byte() < 0.01

    def test_input_from_a_pipe(self, guests):
        done = boot(guests, "echo", input=b"one\ntwo\nquit\n")
        assert done.returncode == 0
        assert b"echo: one" in done.stdout
        assert b"echo: two" in done.stdout

    def test_much_input_from_a_file_loses_nothing(self, guests, tmp_path):
        lines = [f"line {number:04}" for number in range(300)]
        (tmp_path / "input").write_text("\n".join([*lines, "quit", ""]))
        with (tmp_path / "input").open("rb") as file:
            process = start(guests, "echo", stdin=file, stdout=subprocess.PIPE)
            output = process.communicate(timeout=60)[0].decode()
        assert re.findall(r"echo: (line \d+)", output) == lines

    def test_reader_goes_away(self, guests):
        process = start(
            guests, "flood", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.read(100)
        process.stdout.close()
        assert process.wait(20) == 125
        error = process.stderr.read().decode()
        assert len(error.splitlines()) <= 2, error
        assert "Traceback" not in error

    def test_a_slow_reader_gets_all_of_it(self, guests):
        process = start(guests, "flood", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        time.sleep(7)  # the guest has ended, or waits for room
        assert len(process.stdout.read()) >= 1 << 20
        assert process.wait(20) == 0

    def test_a_reader_that_never_reads_is_told_of(self, guests, tmp_path):
        read, write = os.pipe()
        process = start(
            guests, "flood", "--timeout", "4", "--result", str(tmp_path / "r.json"),
            stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(write)
        assert process.wait(30) in (124, 125)
        os.close(read)
        assert json.loads((tmp_path / "r.json").read_text())["console_lost"]["standard output"] > 0
        assert "were not taken by standard output" in process.stderr.read().decode()

    def test_the_log_is_whole_though_standard_output_was_closed(self, guests, tmp_path):
        log = tmp_path / "log"
        process = start(
            guests, "flood", "--console-log", str(log), "--result", str(tmp_path / "r.json"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 125
        assert log.stat().st_size == json.loads((tmp_path / "r.json").read_text())["console_bytes"]

    def test_no_standard_streams_at_all(self, guests, tmp_path):
        script = f'exec "$0" -m pyvmm boot {guests}/hello.elf --result {tmp_path}/r.json <&- >&- 2>&-'
        done = subprocess.run(
            ["/bin/sh", "-c", script, sys.executable],
            timeout=30,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0
        assert "hello" in json.loads((tmp_path / "r.json").read_text())["console_tail"]


class TestResultFile:
    def test_a_link_is_written_through(self, guests, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "target")
        (tmp_path / "target").write_text("old")
        assert boot(guests, "four", "--result", tmp_path / "link").returncode == 0
        assert (tmp_path / "link").is_symlink()
        assert json.loads((tmp_path / "target").read_text())["outcome"] == "exit"

    def test_a_file_is_replaced_whole_and_nothing_is_left(self, guests, tmp_path):
        (tmp_path / "r.json").write_text("old")
        before = (tmp_path / "r.json").stat().st_ino
        assert boot(guests, "four", "--result", tmp_path / "r.json").returncode == 0
        assert (tmp_path / "r.json").stat().st_ino != before
        assert [path.name for path in tmp_path.iterdir()] == ["r.json"]

    def test_standard_output(self, guests):
        done = boot(guests, "four", "--result", "/dev/stdout")
        assert json.loads(done.stdout)["outcome"] == "exit"


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "code"),
        [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
    )
    def test_a_signal_stops_it_cleanly(self, guests, tmp_path, number, code):
        process = start(
            guests,
            "spin",
            "--result",
            str(tmp_path / "r.json"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(10) == code
        assert number.name in process.stderr.read().decode()
        assert json.loads((tmp_path / "r.json").read_text())["outcome"] == "interrupted"


class Terminal:
    """A pyvmm on a terminal of its own, as a person has it."""

    def __init__(self, guests, name, *options):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["PYTHONPATH"] = str(ROOT)
            os.execv(
                sys.executable, [sys.executable, "-m", "pyvmm", "boot", str(guests / f"{name}.elf"), *options]
            )
        self.output = b""

    def until(self, text: bytes, seconds: float = 20) -> bytes:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; so far: {self.output!r}"
            try:
                self.output += os.read(self.fd, 4096)
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self.output!r}") from None
        return self.output

    def send(self, data: bytes) -> None:
        os.write(self.fd, data)

    def wait(self) -> int:
        while True:
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                break
            if not data:
                break
            self.output += data
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class TestTerminal:
    def test_typed_lines_reach_the_guest(self, guests):
        terminal = Terminal(guests, "echo", "--timeout", "30")
        time.sleep(1)
        terminal.send(b"hello\n")
        terminal.until(b"echo: hello")
        terminal.send(b"\x03quit\n")  # Ctrl-C goes to the guest
        terminal.send(b"\nquit\n")
        assert terminal.wait() == 0

    def test_ctrl_a_x_leaves(self, guests):
        terminal = Terminal(guests, "spin")
        time.sleep(1)
        terminal.send(b"\x01x")
        assert terminal.wait() == 130
        assert b"Ctrl-A x" in terminal.output

    def test_ctrl_a_x_is_heard_though_the_guest_reads_nothing(self, guests):
        terminal = Terminal(guests, "spin")
        time.sleep(1)
        for _ in range(20):
            terminal.send(b"y" * 500)
            time.sleep(0.02)
        terminal.send(b"\x01x")
        assert terminal.wait() == 130

    def test_ctrl_a_c_tells_the_status(self, guests):
        terminal = Terminal(guests, "spin")
        time.sleep(1)
        terminal.send(b"\x01c")
        terminal.until(b"exits")
        terminal.send(b"\x01x")
        assert terminal.wait() == 130

    def test_a_terminal_that_is_closed(self, guests):
        terminal = Terminal(guests, "spin", "--timeout", "60")
        time.sleep(1)
        os.close(terminal.fd)
        status = os.waitpid(terminal.pid, 0)[1]
        assert os.waitstatus_to_exitcode(status) in (125, 129)
