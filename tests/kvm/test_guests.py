"""The small guests of kernels/x86_64, booted by the command line on any /dev/kvm.

Each shows one thing that the machine has to get right; kernels/README.md says which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("kvm")

FAULT = 122
PANIC = 120
TIMEOUT = 124
COLLISION = 119

Boot = Callable[..., "Run"]


class Run:
    """A finished boot: exit code, console, and what ``--result`` says."""

    def __init__(self, returncode: int, console: str, stderr: str, result: dict[str, Any]) -> None:
        self.returncode = returncode
        self.console = console
        self.stderr = stderr
        self.result = result

    def __repr__(self) -> str:
        return f"exit code {self.returncode}, {self.console[-2000:]!r}, {self.stderr!r}, {self.result}"


@pytest.fixture
def boot(pyvmm: Callable[..., Any], guests: Path, tmp_path: Path) -> Boot:
    """Boots a guest by name with these options."""

    def boot(name: str, *options: str, input: bytes | None = None) -> Run:
        result = tmp_path / "result.json"
        done = pyvmm(
            "boot", guests / f"{name}.elf", "--memory", "32M", "--timeout", "60", "--result", result, *options,
            input=input,
        )  # fmt: skip
        return Run(done.returncode, done.stdout.decode(), done.stderr, json.loads(result.read_text()))

    return boot


@pytest.mark.parametrize(
    ("name", "console"),
    [
        ("hello", "hello from a guest of pyvmm\n"),
        ("four", ""),
        ("real", "real mode reached\n"),
        ("long", "long mode reached: 0123456789abcdef\n"),
        ("mmio", "mmio read ffffffff\n"),
        ("unknown_port", "all ones\n"),
        ("stringio", "this line is one rep outsb\n"),
        ("hlt", "halting\nwoken by the timer\n"),
        ("irq", "serial interrupt, IIR 00000002\n"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--no-coalesce",)], ids=["coalesced", "uncoalesced"])
def test_a_guest_prints_and_ends_with_status_0(
    name: str, console: str, options: tuple[str, ...], boot: Boot
) -> None:
    run = boot(name, *options)
    assert run.console == console, run
    assert run.returncode == 0, run
    assert run.result["outcome"] == "exit"
    assert run.result["guest_status"] == 0


@pytest.mark.parametrize("name", ["hello", "real", "long", "irq", "memmap"])
def test_no_guest_relies_on_zeroed_ram(name: str, boot: Boot) -> None:
    run = boot(name, "--poison", "0xa5")
    assert run.returncode == 0, run


@pytest.mark.parametrize(
    ("status", "code"),
    [(1, 1), (42, 42), (118, 118), (126, 126), (120, COLLISION), (125, COLLISION), (255, COLLISION)],
)
def test_the_guests_status_is_the_exit_code(status: int, code: int, boot: Boot) -> None:
    run = boot("status", "--cmdline", str(status))
    assert run.returncode == code, run
    assert run.result["guest_status"] == status


def test_exits_are_counted_by_device(boot: Boot) -> None:
    exits = boot("hello", "--no-coalesce").result["exits"]
    length = len("hello from a guest of pyvmm\n")
    assert exits["by_device"]["com1"] == 2 * length  # LSR before each byte
    assert exits["total"] == sum(exits["by_device"].values()) == 2 * length + 1


def test_a_port_that_nobody_answers_is_kept_for_diagnosis(boot: Boot) -> None:
    exits = boot("unknown_port").result["exits"]
    assert exits["unhandled"] == {"in 0x1230": 3, "out 0x1230": 3}
    assert exits["by_device"]["unhandled"] == 6


def test_the_command_line_reaches_the_guest(boot: Boot) -> None:
    run = boot("cmdline", "--cmdline", 'one two="3 4"')
    assert run.console == 'cmdline: one two="3 4"\n'


def test_the_initrd_reaches_the_guest(boot: Boot, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"07070199" + bytes(5000))
    run = boot("cmdline", "--initrd", str(initrd), "--cmdline", "x")
    assert run.console == f"cmdline: x\nmodule: {5008:08x} bytes: 07070199\n", run


@pytest.mark.parametrize(("memory", "end"), [("32M", 32 << 20), ("2048M", 2 << 30)])
def test_the_memory_map_is_that_of_the_machine(memory: str, end: int, boot: Boot) -> None:
    ranges = memory_map(boot("memmap", "--memory", memory))
    assert (0x100000, end - 0x100000, 1) in ranges
    assert max(start + size for start, size, type in ranges if type == 1) == end


def test_memory_above_the_hole_is_in_the_memory_map(boot: Boot) -> None:
    ranges = memory_map(boot("memmap", "--memory", "4096M"))
    assert (1 << 32, 1 << 30, 1) in ranges
    for start, size, type in ranges:
        assert type != 1 or start + size <= 0xC000_0000 or start >= 1 << 32


def memory_map(run: Run) -> list[tuple[int, int, int]]:
    assert run.returncode == 0, run
    found = re.findall(r"memmap (\w{16}) (\w{16}) type (\w{8})\n", run.console)
    ranges = [(int(start, 16), int(size, 16), int(type, 16)) for start, size, type in found]
    assert ranges == sorted(ranges)
    for (start, size, _), (following, _, _) in pairwise(ranges):
        assert start + size <= following
    return ranges


def test_there_is_nothing_to_see_beyond_ram(boot: Boot) -> None:
    run = boot("escape")
    assert run.returncode == 0, run
    assert re.findall(r"at (\w+) is (\w+)", run.console) == [
        ("c0000000", "ffffffff"),
        ("fe000000", "ffffffff"),
        (f"{32 << 20:08x}", "ffffffff"),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r"])
def test_input_reaches_the_guest(ending: str, boot: Boot) -> None:
    text = ending.join(("first", "", "two words", "quit", ""))
    run = boot("echo", input=text.encode())
    assert run.console == "ready\necho: first\necho: \necho: two words\necho: quit\n", run
    assert run.returncode == 0


def test_a_panic_ends_the_run(boot: Boot) -> None:
    run = boot("panic")
    assert run.returncode == PANIC, run
    assert run.result["outcome"] == "panic"
    assert "Kernel panic - not syncing: test" in run.console
    assert "---[ end Kernel panic" in run.console  # and the rest of the panic is shown


def test_an_expected_text_ends_the_run(boot: Boot) -> None:
    run = boot("spin", "--expect", "spinning")
    assert run.returncode == 0, run
    assert run.result["outcome"] == "expected"


def test_a_guest_that_never_exits_is_stopped_by_the_timeout(boot: Boot) -> None:
    run = boot("spin", "--timeout", "0.5")
    assert run.returncode == TIMEOUT, run
    assert run.console == "spinning\n"
    assert run.result["outcome"] == "timeout"
    assert 0.5 <= run.result["elapsed_s"] < 20


def test_a_triple_fault_is_named_and_explained(boot: Boot) -> None:
    run = boot("triple")
    assert run.returncode == FAULT, run
    assert run.result["outcome"] == "triple-fault"
    assert run.result["report"]


def test_a_jump_out_of_ram_is_named_and_shows_where(boot: Boot) -> None:
    run = boot("badjump")
    assert run.returncode == FAULT, run
    assert run.result["outcome"] == "internal-error"
    assert run.console == "jumping out of RAM\n"
    assert "d0000000" in "\n".join(run.result["report"])


def test_what_only_hardware_can_do_works_or_is_an_internal_error(boot: Boot) -> None:
    run = boot("iret")
    if run.returncode == 0:
        assert run.console == "in the breakpoint's handler\nback from the breakpoint\n"
    else:
        assert run.returncode == FAULT, run
        assert run.result["outcome"] == "internal-error"


def test_a_flood_of_output_arrives_whole(boot: Boot) -> None:
    run = boot("flood", "--timeout", "240")
    assert run.returncode == 0, run
    line = "flood: a line of 64 bytes, of which there are 16384 in one MiB\n\n"
    assert len(run.console) == 1 << 20
    assert run.console == line * 16384
