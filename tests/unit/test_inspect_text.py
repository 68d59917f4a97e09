"""pyvmm inspect as people and scripts see it: the table, the drawn map, the command line, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from loader_images import MIB, as_file, bzimage, kernel, note, pvh_note

from loader.structs import setup_header
from pyvmm import inspect
from pyvmm.cli import main
from pyvmm.inspect import memory_map
from pyvmm.inspect.report import SCHEMA, Placement, Range, printable, size_text
from pyvmm.inspect.table import Style, render

LINUX = bytes(kernel(note(b"Linux\0", 0x100, b"6.1\0"), pvh_note(0x1000850)))
WILD = bytes(kernel(paddr=0xFFFF_FFFF_0000_0000))


def text(data: bytes, memory: int = 512 * MIB, *, unicode: bool = False) -> list[str]:
    with as_file(data) as file:
        return render(inspect.inspect_open(file, memory), Style(unicode=unicode))


@pytest.mark.parametrize("unicode", [False, True])
@pytest.mark.parametrize("memory", [2 * MIB, 512 * MIB, 8 << 30, 511 << 30])
@pytest.mark.parametrize(
    "data", [bzimage(), bzimage(version=0x203), bzimage()[:1500], LINUX, WILD, b"hello\n"]
)
def test_no_line_is_too_wide(data, memory, unicode):
    lines = text(data, memory, unicode=unicode)
    assert max(map(len, lines)) <= 100
    assert unicode or all(line.isascii() for line in lines)
    assert not any(line != line.rstrip() or "\0" in line for line in lines if line.strip("|│ "))


def test_table_tells_every_field_with_its_section():
    lines = text(bzimage())
    for name, *_ in setup_header._fields_:
        offset = 0x1F1 + getattr(setup_header, name).offset
        assert any(line.startswith(f"  {offset:#06x} {name} ") for line in lines), name
    joined = "\n".join(lines)
    assert 'documented in Linux Documentation/arch/x86/boot.rst, "Details of Header Fields"' in joined
    assert '[1] Linux Documentation/arch/x86/boot.rst, "The kernel_info"' in joined
    assert "KERNEL_64 | CAN_BE_LOADED_ABOVE_4G |" in " ".join(joined.split())
    assert "  version      6.1.0-test (someone@somewhere) #1 SMP (from the bzImage's header)" in lines
    assert "  0x1000000..0x1800000              8 MiB  room to unpack and run" in lines


def test_table_of_an_elf_file():
    joined = "\n".join(text(LINUX))
    assert "  PVH (32-bit)           0x1000850" in joined
    assert "  Linux  BUILD_SALT          6.1" in joined
    assert "  type flags in file   virtual  physical file size memory size align" in joined


def test_headings_are_bold_where_that_can_be_shown():
    with as_file(bzimage()) as file:
        report = inspect.inspect_open(file, 512 * MIB)
    lines = render(report, Style(bold=True))
    assert "\033[1mHeader fields\033[0m" in lines
    assert [line for line in render(report, Style()) if "\033" in line] == []


def test_truncated_file_has_a_warning_line():
    lines = text(bzimage()[:1500])
    assert "  warning: cannot be booted: ends at 0x5dc, inside its setup code" in "\n".join(lines)
    assert any("setup_sects" in line for line in lines)


def test_what_does_not_fit_is_said_with_a_hint():
    joined = "\n".join(text(bzimage(), 16 * MIB))
    assert "does not fit: the kernel needs RAM up to 0x1800000" in joined
    assert "hint: give the machine at least 24 MiB of memory" in joined


class TestMap:
    def test_drawing(self):
        placement = Placement("x", 4096, False, [(0, 0x1000)])
        placement.ranges = [
            Range(0x100, 0x300, "kernel", "one"),
            Range(0x200, 0x500, "runtime", "two"),
            Range(0x2000, 0x2100, "device", "chip"),
        ]
        inner = 60 - 16
        row = f"              |{{:{inner}}}|"
        expected = [
            f"              +{'-' * inner}+",
            f"0x0000000000  |{'       free':{inner - 10}}256 bytes |",
            f"0x0000000100  |{' ####  one':{inner - 10}}256 bytes |",
            f"0x0000000200  |{' ####  one; two':{inner - 10}}256 bytes |",
            f"0x0000000300  |{' ++++  two':{inner - 10}}512 bytes |",
            f"0x0000000500  |{'       free':{inner - 8}}2.8 KiB |",
            f"              +{'-' * inner}+",
            f"0x0000001000  |{' ~~~~  no RAM':{inner - 6}}4 KiB |",
            f"0x0000002000  |{' xxxx  chip':{inner - 10}}256 bytes |",
            f"0x0000002100  +{'-' * inner}+",
        ]
        lines = memory_map.draw(placement, unicode=False, width=60)
        assert [line for line in lines if not line.startswith("              |")] == expected
        # 16 rows more, by size: 1, 1, 1, 2 and 11 of them
        extra = [line for line in lines if line.startswith("              |")]
        assert extra == [
            *[row.format("")],
            *[row.format(" ####")] * 2,
            *[row.format(" ++++")] * 2,
            *[row.format("")] * 11,
        ]

    def test_pieces_cover_all_without_overlap(self):
        with as_file(bzimage()) as file:
            placement = inspect.inspect_open(file, 5 << 30).placement
        assert placement is not None
        lines = [line for line in memory_map.draw(placement, unicode=True) if line.startswith("0x")]
        starts = [int(line.split()[0], 16) for line in lines]
        assert starts == sorted(set(starts))
        assert starts[0] == 0
        assert starts[-1] == (6 << 30)

    def test_scale(self):
        """A larger range never has fewer rows than a smaller one of the same kind of space."""
        with as_file(bzimage()) as file:
            placement = inspect.inspect_open(file, 512 * MIB).placement
        assert placement is not None
        lines = memory_map.draw(placement, unicode=False)
        assert sum(line.startswith("              | ....") for line in lines) > 10
        assert len(lines) < 60

    def test_legend_has_what_is_drawn(self):
        placement = Placement("x", 4096, True, [(0, 0x1000)], [Range(0, 16, "kernel", "one")])
        assert memory_map.legend(placement, unicode=False) == "## kernel"


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"),
     (53243444, "50.8 MiB"), (1 << 31, "2 GiB"), (1 << 41, "2 TiB")],
)  # fmt: skip
def test_sizes(size, words):
    assert size_text(size) == words


def test_text_of_files_is_made_printable():
    assert printable(b"a\x1b[31m\n\xff~") == "a?[31m??~"


class TestCommand:
    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "PYTHONUTF8": "0", **environment}
        command = [sys.executable, "-m", "pyvmm", "inspect", *arguments]
        return subprocess.run(command, capture_output=True, check=False, env=env, cwd=ROOT)

    def test_json(self, tmp_path, capsys):
        path = tmp_path / "bzImage"
        path.write_bytes(bzimage())
        assert main(["inspect", str(path), "--json", "--memory", "1G"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["schema"] == SCHEMA
        assert set(told) == {
            "schema", "path", "size", "format", "machine", "description", "hint", "is_kernel", "version",
            "version_source", "protocol", "relocatable", "kaslr", "fields", "payload", "entry_points",
            "segments", "notes", "placement", "content", "warnings",
        }  # fmt: skip
        assert told["path"] == str(path)
        assert told["placement"]["ram"] == [[0, 1 << 30]]
        assert [entry["address"] for entry in told["entry_points"]] == [None, 16 * MIB, 16 * MIB + 0x200]
        field = next(field for field in told["fields"] if field["name"] == "init_size")
        assert (field["value"], field["offset"], field["size"]) == (0x800000, 0x260, 4)

    def test_text(self, tmp_path, capsys):
        path = tmp_path / "bzImage"
        path.write_bytes(bzimage())
        assert main(["inspect", str(path)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{path}: a bzImage for x86_64\n")
        assert "In pyvmm's x86_64 machine with 512 MiB of memory" in out
        assert "\033" not in out

    def test_no_kernel_is_no_error(self, tmp_path, capsys):
        path = tmp_path / "notes"
        path.write_text("hello\n")
        assert main(["inspect", str(path)]) == 0
        assert capsys.readouterr().out.startswith(f"{path}: a text file\n")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["/nonexistent/bzImage"], "no such file"),
            (["/"], "a directory, not a file"),
            (["/dev/null"], "a character device"),
            ([__file__, "--memory", "lots"], "'lots' is not a size"),
            ([__file__, "--memory", "1K"], "less than the smallest machine's"),
            ([__file__, "--memory", "1000G"], "more than the largest machine's"),
            ([], "required: FILE"),
            ([__file__, "--colour"], "--colour"),
        ],
    )
    def test_errors(self, arguments, words, capsys):
        assert main(["inspect", *arguments]) == 125
        captured = capsys.readouterr()
        first, *rest = captured.err.splitlines()
        assert first.startswith("pyvmm: ")
        assert words in first
        assert len(rest) == 1
        assert rest[0].startswith("hint: ")
        assert captured.out == ""

    def test_empty_file(self, tmp_path, capsys):
        path = tmp_path / "empty"
        path.touch()
        assert main(["inspect", str(path)]) == 125
        assert "the file is empty" in capsys.readouterr().err

    def test_drawn_for_the_encoding(self, tmp_path):
        path = tmp_path / "kernel-é"
        path.write_bytes(bzimage())
        done = self.run(str(path), PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert b"+----" in done.stdout
        assert "┌───".encode() in self.run(str(path), PYTHONIOENCODING="utf-8").stdout

    def test_needs_neither_kvm_nor_this_architecture(self, tmp_path):
        path = tmp_path / "bzImage"
        path.write_bytes(bzimage())
        script = (
            "import os, sys\n"
            "os.uname = lambda: os.uname_result(('Linux', 'x', '6', '1', 'riscv64'))\n"
            "import pyvmm.kvm.system as system\n"
            "system.System.__init__ = lambda self: 1 / 0\n"
            "from pyvmm.cli import main\n"
            f"sys.exit(main(['inspect', {str(path)!r}]))\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, b"")

    def test_listed(self, capsys):
        assert main(["--help"]) == 0
        assert "inspect FILE" in capsys.readouterr().out
        assert main(["inspector"]) == 125
        assert "inspect" in capsys.readouterr().err
