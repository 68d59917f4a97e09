"""The fuzz targets on their corpus, without a fuzzer: that they run, and what was once found stays mended."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path

import pytest

from loader import elf_headers, elf_notes, relocation
from loader.buffer import BufferMemory
from loader.relocation_errors import RelocationOutsideImage
from loader.result import KernelLoaderResult

FOLDER = Path(__file__).resolve().parent.parent / "fuzz"
sys.path.insert(0, str(FOLDER))

from targets import TARGETS  # noqa: E402

FILES = sorted((FOLDER / "corpus").glob("*/*"))


def test_every_target_has_a_corpus():
    assert {file.parent.name for file in FILES} == set(TARGETS)
    assert sum(file.stat().st_size for file in FILES) < 200_000


def test_the_corpus_is_what_its_script_makes():
    """Where a library of another release packs otherwise, what it packs must still unpack to the same."""
    pytest.importorskip("lz4.block")
    pytest.importorskip("backports.zstd")
    import make_corpus

    made = make_corpus.corpus()
    committed = {f"{file.parent.name}/{file.name}": file.read_bytes() for file in FILES}
    assert sorted(made) == sorted(committed)
    assert [path for path in made if made[path] != committed[path]] == []


def test_the_corpus_holds_valid_files_to_start_from(monkeypatch):
    """Each packed kernel unpacks to the end; a corpus that every check refuses at once would teach a fuzzer nothing."""
    import targets

    sizes: list[int] = []
    unpack = targets.payload.unpack

    def watched(*arguments, **options):
        sink = unpack(*arguments, **options)
        sizes.append(sink.total)
        return sink

    monkeypatch.setattr(targets.payload, "unpack", watched)
    packed = [file for file in FILES if file.parent.name in ("payload", "zboot")]
    for file in packed:
        TARGETS[file.parent.name](file.read_bytes())
    size = len((FOLDER / "corpus" / "inspect" / "elf").read_bytes()) - 1
    assert sizes == [size] * len(packed)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_corpus(file):
    TARGETS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 300])
def test_no_format_at_all(target, data):
    TARGETS[target](data)


@pytest.mark.parametrize("machine_code", [True, False])
def test_relocation_of_an_image_linked_past_the_mapping(machine_code, monkeypatch):
    """Once found: the machine code then wrote 4 GiB below the image, and ended the process."""
    memory = BufferMemory([(0x7FFFF000, 0x2000)])
    segment = elf_headers.Segment(64, 0, 0x7FFFF000, 0x2000, 0x2000)
    image = elf_headers.ElfImage("x86_64", 0x7FFFF000, [segment], elf_notes.NoteSummary(), False, True, 64)
    result = KernelLoaderResult(0x7FFFF000, 0x80001000, load_base=0x7FFFF000)
    table = relocation.RelocationTable(array("I", [0x10]), [(64, 1, 0, 1)])
    if not machine_code:
        monkeypatch.setattr(relocation.machine_code, "routines", lambda: None)
    with pytest.raises(RelocationOutsideImage, match="passes the end"):
        relocation.apply(memory, table, image, result, 0x200000)
    assert not any(memory.read(0x7FFFF000, 0x2000))
