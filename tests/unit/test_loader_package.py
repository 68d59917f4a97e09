"""The package as a whole: what importing it costs, its public names, its errors, its example."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import loader_images
import pytest

import loader
from loader import errors
from loader.buffer import BufferMemory

ROOT = Path(loader.__file__).parent.parent
#: What a boot must not import: each costs milliseconds that a small guest does not take itself.
HEAVY = [
    "asyncio", "dataclasses", "elftools", "importlib", "inspect", "json", "logging", "pathlib", "rich", "subprocess",
    "tempfile", "typing",
]  # fmt: skip
CRATE_ERRORS = [
    "SeekElfStart", "ReadElfHeader", "InvalidElfMagicNumber", "BigEndianElfOnLittle",
    "InvalidProgramHeaderSize", "InvalidProgramHeaderOffset", "InvalidEntryAddress", "ElfOverflow",
    "SeekProgramHeader", "ReadProgramHeader", "SeekKernelStart", "InvalidProgramHeaderAddress",
    "ElfReadKernelImage", "MemoryOverflow", "SeekNoteHeader", "ReadNoteHeader", "InvalidPvhNote",
    "SeekBzImageEnd", "SeekBzImageHeader", "ReadBzImageHeader", "InvalidBzImage", "BzImageUnderflow",
    "InvalidKernelStartAddress", "SeekBzImageCompressedKernel", "ReadBzImageCompressedKernel",
    "CommandLineOverflow", "CommandLineCopy", "ZeroPagePastRamEnd", "ZeroPageSetup", "MemmapTableMissing",
    "MemmapTableAddressMissing", "MemmapTablePastRamEnd", "MemmapTableSetup", "StartInfoPastRamEnd",
    "StartInfoSetup", "ModulesAddressMissing", "ModulesSetup",
]  # fmt: skip
MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for path in (ROOT / "loader").rglob("*.py")
    if path.stem not in ("__init__", "memory")
)


def imported_by(code: str) -> set[str]:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_no_module_imports_anything_heavy_or_of_pyvmm():
    loaded = imported_by("import " + ", ".join(MODULES))
    assert loaded >= set(MODULES)
    heavy = {
        name
        for name in loaded
        if name.split(".")[0] in HEAVY and name not in ("importlib._bootstrap", "importlib")
    }
    assert heavy <= imported_by("pass")
    assert not any(name.split(".")[0] == "pyvmm" for name in loaded)


def test_a_format_is_imported_only_when_it_is_used():
    loaded = imported_by("import loader; loader.open_kernel; from loader import bzimage")
    assert "loader.bzimage" in loaded
    assert not loaded & {
        "loader.elf",
        "loader.elf_headers",
        "loader.configurator.pvh",
        "loader.buffer",
        "loader.memory",
    }


def test_public_names():
    for name in loader.__all__:
        assert getattr(loader, name).__name__ == name
    assert loader.LoaderError is errors.LoaderError
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        loader.nothing  # noqa: B018


def test_every_error_is_a_loader_error_with_a_message_and_a_hint():
    modules = [importlib.import_module(name) for name in MODULES if name.endswith("errors")]
    classes = {item for module in modules for _, item in inspect.getmembers(module, inspect.isclass)}
    assert len(classes) > 110
    for item in classes:
        assert issubclass(item, errors.LoaderError)
        assert item.__doc__
        error = item("what is wrong", "what to do")
        assert (error.message, error.hint, str(error)) == ("what is wrong", "what to do", "what is wrong")
        assert item("what is wrong").hint == ""
        assert getattr(errors, item.__name__) is item


def test_the_errors_of_a_format_are_loaded_when_one_is_asked_for():
    everything = "import " + ", ".join(name for name in MODULES if not name.endswith("_errors"))
    loaded = {name for name in imported_by(everything) if name.endswith("_errors")}
    assert loaded <= {"loader.payload_errors", "loader.relocation_errors"}
    asked = imported_by(f"{everything}\nfrom loader import errors; errors.DtbTooBig")
    assert "loader.dtb_errors" in asked
    with pytest.raises(AttributeError, match="'loader.errors' has no attribute 'Nothing'"):
        errors.Nothing  # noqa: B018


@pytest.mark.parametrize("name", CRATE_ERRORS)
def test_each_error_of_the_crate_has_a_class_of_its_own(name):
    assert getattr(errors, name).__name__ == name


def test_the_example_of_the_docstring_works(tmp_path, monkeypatch):
    (tmp_path / "bzImage").write_bytes(loader_images.bzimage())
    monkeypatch.chdir(tmp_path)
    example = re.search(r"::\n\n((?:    .*\n|\n)+)", loader.__doc__ or "")
    assert example
    names: dict[str, object] = {}
    exec(compile(inspect.cleandoc(example[1]), "example", "exec"), names)
    memory, result = names["memory"], names["result"]
    assert isinstance(memory, BufferMemory)
    assert isinstance(result, loader.KernelLoaderResult)
    assert memory.read(0x20000, 14) == b"console=ttyS0\0"
    assert memory.read(0x7202, 4) == b"HdrS"
    assert result.entry_64 == 0x1000200


class TestBufferMemory:
    def test_ranges_and_holes(self):
        memory = BufferMemory([(0x2000, 0x1000), (0, 0x1000)], fill=7)
        assert memory.ranges == [(0, 0x1000), (0x2000, 0x1000)]
        assert memory.contains(0, 0x1000)
        assert not memory.contains(0, 0x1001)
        assert not memory.contains(0xFFF, 0x1002)
        memory.write(0x2FFE, b"ab")
        assert memory.read(0x2FFC, 4) == b"\7\7ab"
        view = memory.slice(0x2FFE, 2)
        view[0] = 0
        assert memory.read(0x2FFE, 2) == b"\0b"

    def test_outside(self):
        memory = BufferMemory([(0, 0x1000)])
        with pytest.raises(IndexError, match="0xfff..0x1001 is not RAM"):
            memory.write(0xFFF, b"ab")
