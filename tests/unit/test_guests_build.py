"""scripts/build-guests and what it makes: built when it must be, whole, and what a loader expects of it.

The init is run here as an ordinary process: it takes its options from the environment, as it does as init.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from pyvmm.arch.x86_64.probe import code as probe_code

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted(path.stem for path in (ROOT / "kernels" / "x86_64").glob("*.S") if path.stem != "probe")
#: The guests, the init and the agent.
ALL = len(SOURCES) + 2

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or platform.machine() != "x86_64", reason="there is no gcc for x86_64 here"
)


class Tree:
    """A copy of the sources, to build in; of what is built too, if it is a copy of another tree."""

    def __init__(self, root: Path, origin: Path = ROOT) -> None:
        self.root = root
        self.guests = root / "kernels" / "build" / "x86_64"
        self.init = root / "pyvmm" / "data" / "init-x86_64"
        if origin != ROOT:
            shutil.copytree(origin, root, dirs_exist_ok=True)
            return
        (root / "scripts").mkdir()
        shutil.copy2(ROOT / "scripts" / "build-guests", root / "scripts")
        shutil.copytree(ROOT / "kernels", root / "kernels", ignore=shutil.ignore_patterns("build"))

    def build(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, self.root / "scripts" / "build-guests", "--arch", "x86_64", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **environment},
        )

    def files(self) -> list[Path]:
        """Everything there is in the places for what is built."""
        return [*self.guests.iterdir(), *self.init.parent.iterdir()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree that has been built once, to look at."""
    tree = Tree(tmp_path_factory.mktemp("built"))
    done = tree.build()
    assert done.returncode == 0, done.stderr
    assert f"{ALL} built, 0 up to date" in done.stdout
    return tree


@pytest.fixture
def tree(built: Tree, tmp_path: Path) -> Tree:
    """A tree that has been built once, to change."""
    return Tree(tmp_path, built.root)


def test_everything_is_built_and_then_up_to_date(tree: Tree) -> None:
    made = {"init-x86_64", "agent-x86_64", *(f"{name}.elf" for name in SOURCES)}
    assert {path.name for path in tree.files()} == made
    assert f"0 built, {ALL} up to date" in tree.build().stdout
    assert tree.build("--quiet").stdout == ""


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        ("kernels/x86_64/hello.S", 1),
        ("kernels/x86_64/serial.inc", len(SOURCES)),
        ("kernels/x86_64/guest.ld", len(SOURCES)),
        ("kernels/init/guest_status.h", 1),
        ("kernels/agent/agent.h", 1),
        ("kernels/linux.h", 2),
        ("scripts/build-guests", ALL),
        ("kernels/x86_64/probe.S", 0),
    ],
)
def test_what_is_older_than_its_sources_is_built_anew(changed: str, count: int, tree: Tree) -> None:
    for path in tree.root.rglob("*.*"):
        os.utime(path, (1000, 1000))
    for path in tree.files():
        os.utime(path, (2000, 2000))
    os.utime(tree.root / "scripts" / "build-guests", (1000, 1000))
    os.utime(tree.root / changed, (3000, 3000))
    assert f"{count} built, {ALL - count} up to date" in tree.build().stdout


def test_a_source_that_does_not_build_leaves_the_last_good_file(tree: Tree) -> None:
    good = (tree.guests / "hello.elf").read_bytes()
    source = tree.root / "kernels" / "x86_64" / "hello.S"
    source.write_text(source.read_text() + "\tcall no_such_symbol\n")
    done = tree.build()
    assert done.returncode == 1
    assert done.stderr.startswith("build-guests: hello.elf does not build:")
    assert "no_such_symbol" in done.stderr
    assert (tree.guests / "hello.elf").read_bytes() == good
    assert len(tree.files()) == ALL  # nothing half done is left


def test_a_missing_compiler_is_said_in_one_line_with_a_hint(tree: Tree, tmp_path: Path) -> None:
    done = tree.build("--force", PATH=str(tmp_path), CC="")
    assert done.returncode == 1
    assert done.stderr == "build-guests: there is no gcc to build with\nhint: apt-get install gcc\n"


def test_the_same_sources_give_the_same_bytes(built: Tree, tree: Tree) -> None:
    assert f"{ALL} built, 0 up to date" in tree.build("--force").stdout
    for path in tree.files():
        assert path.read_bytes() == (built.root / path.relative_to(tree.root)).read_bytes(), path.name


@pytest.mark.parametrize("name", SOURCES)
def test_a_guest_is_an_elf_file_with_a_pvh_entry(name: str, built: Tree) -> None:
    with (built.guests / f"{name}.elf").open("rb") as file:
        elf = ELFFile(file)
        assert elf.elfclass == 64
        assert elf["e_machine"] == "EM_X86_64"
        loads = list(elf.iter_segments("PT_LOAD"))
        assert min(load["p_paddr"] for load in loads) == 0x100000
        for load in loads:
            assert load["p_flags"] & 3 != 3, "a segment is both writable and executable"
        segments: list[Any] = list(elf.iter_segments("PT_NOTE"))
        notes = [note for segment in segments for note in segment.iter_notes()]
        assert [(note["n_name"], note["n_descsz"]) for note in notes] == [("Xen", 4)]
        assert notes[0]["n_type"] == 18
        entry = int.from_bytes(notes[0]["n_descdata"], "little")
        text = next(load for load in loads if load["p_flags"] & 1)
        assert text["p_paddr"] <= entry < text["p_paddr"] + text["p_filesz"]
        assert elf["e_entry"] == entry


def test_the_readme_lists_every_guest() -> None:
    text = (ROOT / "kernels" / "README.md").read_text()
    for folder in ("x86_64", "aarch64"):
        section = text.split(f"\n## {folder}/\n")[1].split("\n## ")[0]
        listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        sources = sorted(
            path.stem for path in (ROOT / "kernels" / folder).glob("*.S") if path.stem != "probe"
        )
        assert sorted(listed) == sources


@pytest.mark.parametrize("name", SOURCES)
def test_every_guest_says_what_it_shows(name: str) -> None:
    head = (ROOT / "kernels" / "x86_64" / f"{name}.S").read_text().split("*/")[0]
    assert head.startswith("/* ")
    assert "\n * Shows: " in head


def test_the_probe_carries_what_its_source_assembles_to(tmp_path: Path) -> None:
    source = ROOT / "kernels" / "x86_64" / "probe.S"
    object_file, binary = tmp_path / "probe.o", tmp_path / "probe.bin"
    assemble = ["gcc", "-c", "-x", "assembler-with-cpp", str(source), "-o", str(object_file)]
    subprocess.run(assemble, check=True, timeout=60)
    link = ["ld", "-Ttext=0x1000", "-e", "0x1000", "--oformat=binary", str(object_file), "-o", str(binary)]
    subprocess.run(link, check=True, timeout=60)
    assembled = binary.read_bytes()
    assert assembled[: len(probe_code())] == probe_code()
    assert not assembled[len(probe_code()) :].strip(b"\0\xf4")


def test_the_init_is_small_and_static(built: Tree) -> None:
    assert built.init.stat().st_size < 4096
    with built.init.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_type"] == "ET_EXEC"
        assert not list(elf.iter_segments("PT_INTERP"))
        assert not list(elf.iter_segments("PT_DYNAMIC"))
        for load in elf.iter_segments("PT_LOAD"):
            assert load["p_flags"] & 3 != 3, "a segment is both writable and executable"


def run_init(tree: Tree, input: bytes = b"", **environment: str) -> tuple[list[bytes], int]:
    """The writes that init makes, each as one item, and its exit status."""
    # A socket that keeps the borders between messages shows each write().
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen([tree.init], stdin=subprocess.PIPE, stdout=theirs.fileno(), env=environment)
    theirs.close()
    assert process.stdin is not None
    process.stdin.write(input)
    process.stdin.close()
    ours.settimeout(60)
    writes = []
    while data := ours.recv(1 << 16):
        writes.append(data)
    ours.close()
    return writes, process.wait(timeout=60)


def hello() -> bytes:
    name = os.uname()
    return f"pyvmm: userspace reached, Linux {name.release} {name.machine}\n".encode()


def test_init_says_in_one_write_that_userspace_was_reached(built: Tree) -> None:
    assert run_init(built) == ([hello()], 0)


def test_init_prints_lines_one_by_one(built: Tree) -> None:
    writes, status = run_init(built, pyvmm_lines="12")
    assert writes == [hello(), *(f"line {n}\n".encode() for n in range(1, 13))]
    assert status == 0


@pytest.mark.parametrize("size", [1, 100, 4096, 4097, 50000])
def test_init_prints_exactly_as_many_bytes_as_asked(size: int, built: Tree) -> None:
    writes, _ = run_init(built, pyvmm_spam=str(size))
    assert sum(map(len, writes[1:])) == size
    assert len(writes) == 1 + -(-size // 4096)  # in the largest writes it can
    assert writes[-1].endswith(b"\n")


def test_init_echoes_lines_until_quit(built: Tree) -> None:
    writes, _ = run_init(built, b"one\n\ntwo words\nquit\nnot this\n", pyvmm_echo="1")
    assert writes[1:] == [b"echo: one\n", b"echo: \n", b"echo: two words\n", b"echo: quit\n"]


def test_init_stops_echoing_at_the_end_of_input(built: Tree) -> None:
    writes, status = run_init(built, b"last\nunfinished", pyvmm_echo="1")
    assert (writes[1:], status) == ([b"echo: last\n"], 0)


@pytest.mark.parametrize(("how", "status"), [("exit=7", 7), ("exit=255", 255), ("panic", 1), ("poweroff", 0)])
def test_init_leaves_with_the_status_asked_for(how: str, status: int, built: Tree) -> None:
    assert run_init(built, pyvmm_end=how) == ([hello()], status)


def test_init_says_which_ending_it_does_not_know(built: Tree) -> None:
    writes, status = run_init(built, pyvmm_end="explode")
    assert writes[1:] == [b"pyvmm: init knows no pyvmm_end=explode, powering off\n"]
    assert status == 0


def test_init_is_not_confused_by_names_that_begin_alike(built: Tree) -> None:
    writes, _ = run_init(built, pyvmm_linesX="3", pyvmm_line="3", Xpyvmm_lines="3", pyvmm_lines="1")
    assert writes[1:] == [b"line 1\n"]


def test_init_can_wait_for_ever(built: Tree) -> None:
    process = subprocess.Popen([built.init], stdout=subprocess.PIPE, env={"pyvmm_end": "hang"})
    assert process.stdout is not None
    assert process.stdout.readline() == hello()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.kill()
    process.wait(timeout=60)
    process.stdout.close()


def test_an_unknown_option(built: Tree) -> None:
    done = built.build("--nonsense")
    assert done.returncode == 125
    assert done.stderr.splitlines()[-1].startswith("hint: ")
