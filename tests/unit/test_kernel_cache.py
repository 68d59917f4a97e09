"""The cache of kernels taken out of bzImages: right under replacement and damage, for many processes, and bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_pyvmm
from payload_images import packed_bzimage, vmlinux, with_payload

from loader import bzimage, open_kernel
from loader.enums import HDRS_MAGIC
from loader.structs import boot_params
from pyvmm import kernel_cache, kernel_cache_fill
from pyvmm.arch import x86_64
from pyvmm.arch.x86_64 import layout
from pyvmm.machine.spec import MachineSpec
from pyvmm.memory import GuestMemory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The cache's directory for this test."""
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vmlinux"


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> Path:
    """A bzImage that has not been changed for long."""
    monkeypatch.setattr(kernel_cache_fill, "SETTLED_SECONDS", -1e9)
    path = tmp_path / "bzImage"
    path.write_bytes(packed_bzimage("gzip", vmlinux()))
    return path


def take(path: Path) -> bytes | None:
    """What the cache gives for the bzImage at ``path``."""
    with open_kernel(path) as file:
        found = kernel_cache.vmlinux(file, bzimage.read_header(file))
        if found is None:
            return None
        with found:
            return found.read(0, found.size)


def names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != "index") if folder.exists() else []


@pytest.fixture
def no_filling(monkeypatch):
    """Makes a test fail that does not find its kernel by stat(2) alone."""

    def switch_off():
        def fill(*_arguments):
            raise AssertionError("looked at the content")

        monkeypatch.setattr(kernel_cache_fill, "fill", fill)

    return switch_off


def test_second_boot_needs_no_content(kernel, folder, no_filling):
    assert take(kernel) == vmlinux()
    (name,) = names(folder)
    assert name.endswith("-6.1.0-test")
    assert (folder / name).read_bytes() == vmlinux()
    assert (folder / name).stat().st_mode & 0o077 == 0, "a kernel may be for its owner's eyes only"
    no_filling()
    assert take(kernel) == vmlinux()


def test_same_content_elsewhere_is_the_same_entry(kernel, folder, tmp_path):
    take(kernel)
    other = tmp_path / "other"
    other.write_bytes(kernel.read_bytes() + b"signature")
    made = (folder / names(folder)[0]).stat().st_ino
    assert take(other) == vmlinux()
    assert len(names(folder)) == 1
    assert (folder / names(folder)[0]).stat().st_ino == made


def test_replaced_kernel(kernel, folder, tmp_path):
    """Another file of the same name, size and mtime; and the same file written to, its mtime put back."""
    first, second = vmlinux(), vmlinux(entry=0x1000020)
    kernel.write_bytes(packed_bzimage("gzip", first).ljust(MIB))
    assert take(kernel) == first
    before = kernel.stat()
    changed = packed_bzimage("gzip", second).ljust(MIB)
    new = tmp_path / "new"
    new.write_bytes(changed)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(new, kernel)
    assert take(kernel) == second

    time.sleep(0.02)  # a tick of the clock that files get their times from
    inode = kernel.stat().st_ino
    kernel.write_bytes(packed_bzimage("gzip", first).ljust(MIB))
    os.utime(kernel, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert kernel.stat().st_ino == inode
    assert take(kernel) == first


def test_a_file_just_written_is_not_known_by_its_times(tmp_path, folder):
    """It could change again within the same tick of the clock."""
    path = tmp_path / "bzImage"
    path.write_bytes(packed_bzimage("gzip", vmlinux()))
    assert take(path) == vmlinux()
    assert os.listdir(folder / "index") == []
    assert len(names(folder)) == 1


@pytest.mark.parametrize(
    "damage", ["truncated", "truncated, time kept", "longer", "changed", "zeroed", "link", "directory"]
)
def test_damaged_entry_is_made_anew(kernel, folder, damage):
    take(kernel)
    entry = folder / names(folder)[0]
    data = bytearray(entry.read_bytes())
    stamp = entry.stat().st_mtime_ns
    if damage.startswith("truncated"):
        os.truncate(entry, len(data) - 1)
        if "kept" in damage:
            os.utime(entry, ns=(stamp, stamp))
    elif damage == "longer":
        entry.write_bytes(data + b"\0")
    elif damage == "changed":
        with entry.open("r+b") as file:
            file.seek(len(data) // 2)
            file.write(b"\xa5")
    elif damage == "zeroed":
        entry.write_bytes(bytes(len(data)))
    else:
        os.rename(entry, folder / "aside")
        entry.symlink_to(folder / "aside") if damage == "link" else entry.mkdir()
    if damage == "directory":  # nothing of ours: nothing is removed, and the guest unpacks itself
        assert take(kernel) is None
        return
    assert take(kernel) == vmlinux()
    assert (folder / names(folder)[0]).read_bytes()[: len(data)] == vmlinux() or damage == "link"


def test_entry_that_lost_its_time_is_checked_once(kernel, folder, monkeypatch, no_filling):
    """As by copying the cache, or carrying it into the lab."""
    take(kernel)
    entry = folder / names(folder)[0]
    os.utime(entry)
    sums = []
    crc32 = kernel_cache._crc32
    monkeypatch.setattr(kernel_cache, "_crc32", lambda fd: sums.append(fd) or crc32(fd))
    no_filling()
    assert take(kernel) == vmlinux()
    assert take(kernel) == vmlinux()
    assert len(sums) == 1


def test_names_that_are_no_entries():
    good = kernel_cache.Entry("a" * 40, 0x123, 0xABC, 0x60000000, "6.1-a-b")
    assert good.name == f"{'a' * 40}-123-00000abc-60000000-6.1-a-b"
    again = kernel_cache.Entry.parse(good.name)
    assert again is not None and again.name == good.name
    for bad in (
        "",
        "index",
        "tmp-x",
        good.name[1:],
        good.name.replace("123", "0123"),
        good.name.replace("123", "zz"),
    ):
        assert kernel_cache.Entry.parse(bad) is None, bad


def test_release_of_a_hostile_image_makes_no_path():
    assert kernel_cache_fill._release("../../etc/passwd x") == ".._.._etc_passwd"
    assert kernel_cache_fill._release("6.1.0-56-cloud-amd64 (debian) #1") == "6.1.0-56-cloud-amd64"
    assert len(kernel_cache_fill._release("é\n" * 500)) <= 64
    assert kernel_cache_fill._release("é\0/") == "___"


# -- many at once --------------------------------------------------------------------------------------

TAKE = """
import sys, hashlib
from loader import bzimage, open_kernel
from pyvmm import kernel_cache
with open_kernel(sys.argv[1]) as file:
    with kernel_cache.vmlinux(file, bzimage.read_header(file)) as found:
        print(hashlib.sha256(found.read(0, found.size)).hexdigest(), found.path)
"""


def test_processes_at_once(tmp_path, folder):
    path = tmp_path / "bzImage"
    path.write_bytes(packed_bzimage("xz", vmlinux(8 * MIB)))
    processes = [
        subprocess.Popen([sys.executable, "-c", TAKE, path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(5)
    ]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 5
    (only,) = outputs
    assert only.split()[1] == str(folder / names(folder)[0])
    assert len(names(folder)) == 1, "one entry, and nothing temporary"


def test_what_a_killed_process_left(kernel, folder):
    take(kernel)
    key = names(folder)[0].split("-")[0]
    kernel_cache_fill.clear()
    (folder / f"tmp-{key}").write_bytes(b"half a kernel" * 100_000)
    (folder / f"tmp-{'b' * 40}").write_bytes(b"half of another")
    assert take(kernel) == vmlinux()
    assert len(names(folder)) == 1


def test_a_process_that_never_ends_is_not_waited_for(kernel, folder, monkeypatch):
    import fcntl

    take(kernel)
    key = names(folder)[0].split("-")[0]
    kernel_cache_fill.clear()
    monkeypatch.setattr(kernel_cache_fill, "WAIT_SECONDS", 0.1)
    with (folder / f"tmp-{key}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert take(kernel) is None
        assert names(folder) == [f"tmp-{key}"], "another's file is left alone"
        lz4 = kernel.with_name("lz4")
        lz4.write_bytes(packed_bzimage("lz4", vmlinux()))
        assert take(lz4) == vmlinux()


# -- bounds --------------------------------------------------------------------------------------------


def fill_with(path: Path, count: int, tmp_path: Path) -> list[str]:
    """``count`` entries, each used a minute after the one before; their names."""
    made = []
    for index in range(count):
        path.write_bytes(packed_bzimage("gzip", vmlinux(entry=0x1000020 + index)))
        take(path)
        (name,) = set(names(kernel_cache_path())) - set(made)
        made.append(name)
        entry = kernel_cache_path() / name
        os.utime(entry, ns=(10**18 + index * 60 * 10**9, entry.stat().st_mtime_ns))
    return made


def kernel_cache_path() -> Path:
    return Path(kernel_cache.directory())


def test_entries_used_longest_ago_go_first(kernel, folder, tmp_path):
    made = fill_with(kernel, 4, tmp_path)
    size = len(vmlinux())
    assert [entry.name for entry in kernel_cache.entries()] == made[::-1]
    kernel_cache_fill.trim(made[0], limit=3 * size)
    assert names(folder) == sorted([made[0], made[2], made[3]])
    assert {os.readlink(folder / "index" / link) for link in os.listdir(folder / "index")} == {
        made[0],
        made[2],
        made[3],
    }
    kernel_cache_fill.trim(made[2], limit=size - 1)
    assert names(folder) == [made[2]], "the one in use stays, however large"


def test_use_counts(kernel, folder, tmp_path):
    made = fill_with(kernel, 2, tmp_path)
    kernel.write_bytes(packed_bzimage("gzip", vmlinux(entry=0x1000020)))
    take(kernel)
    assert kernel_cache.entries()[0].name == made[0]
    assert abs(kernel_cache.entries()[0].used - time.time()) < 60


def test_links_are_bounded(kernel, folder, monkeypatch):
    take(kernel)
    name = names(folder)[0]
    for index in range(8):
        (folder / "index" / f"link{index}").symlink_to(name)
        os.utime(folder / "index" / f"link{index}", ns=(0, index), follow_symlinks=False)
    monkeypatch.setattr(kernel_cache_fill, "LINKS_LIMIT", 3)
    kernel_cache_fill.trim(name)
    left = os.listdir(folder / "index")
    assert len(left) == 3 and {"link6", "link7"} < set(left)


# -- where nothing can be kept, or had -----------------------------------------------------------------


def test_cache_that_cannot_be_made(tmp_path, monkeypatch):
    """What this host unpacks quickly is unpacked all the same; the rest is left to the guest."""
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "file"))
    path = tmp_path / "bzImage"
    for kind, expected in (("lz4", vmlinux()), ("zstd", vmlinux()), ("xz", None), ("gzip", None)):
        path.write_bytes(packed_bzimage(kind, vmlinux()))
        assert take(path) == expected, kind


def test_full_disk(kernel, folder, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_cache_fill.os, "fsync", full)
    assert take(kernel) is None
    assert names(folder) == []


@pytest.mark.parametrize("filled", [False, True])
def test_library_missing(tmp_path, folder, monkeypatch, filled):
    """An entry is found without it; otherwise nothing is even read."""
    monkeypatch.setattr(kernel_cache_fill, "SETTLED_SECONDS", -1e9)
    path = tmp_path / "bzImage"
    path.write_bytes(packed_bzimage("lz4", vmlinux()))
    if filled:
        assert take(path) == vmlinux()
        path.write_bytes(path.read_bytes())  # and so without a link
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    assert take(path) == (vmlinux() if filled else None)


@pytest.mark.parametrize("what", ["damaged", "no kernel", "other machine", "no payload"])
def test_payload_that_is_of_no_use(tmp_path, folder, what):
    path = tmp_path / "bzImage"
    data = packed_bzimage("gzip", vmlinux())
    if what == "damaged":
        middle = len(data) // 2
        data = data[:middle] + b"\xff" * 64 + data[middle + 64 :]
    elif what == "no kernel":
        data = packed_bzimage("gzip", b"words " * 1000)
    elif what == "other machine":
        data = packed_bzimage("gzip", vmlinux(machine=183))
    else:
        data = with_payload(b"nothing known" * 99)
    path.write_bytes(data)
    assert take(path) is None
    assert names(folder) == []


def test_no_descriptor_is_lost(kernel, tmp_path):
    bad = tmp_path / "bad"
    bad.write_bytes(packed_bzimage("gzip", b"words " * 1000))
    before = len(os.listdir("/proc/self/fd"))
    take(kernel), take(kernel), take(bad)
    assert len(os.listdir("/proc/self/fd")) == before


# -- the command ---------------------------------------------------------------------------------------


def test_cache_command(kernel, folder, tmp_path):
    env = {"PYVMM_CACHE": str(tmp_path / "cache")}
    empty = run_pyvmm("cache", env=env)
    assert (empty.returncode, empty.stderr) == (0, "")
    assert empty.stdout.startswith(b"0 kernels, 0.0 of at most 1024 MiB")
    take(kernel)
    listed = run_pyvmm("cache", env=env).stdout.decode()
    assert "6.1.0-test" in listed and "1 kernel," in listed and str(folder) in listed
    told = json.loads(run_pyvmm("cache", "--json", env=env).stdout)
    (only,) = told["kernels"]
    assert Path(only["path"]).read_bytes() == vmlinux()
    assert (only["release"], only["bytes"], told["total_bytes"]) == (
        "6.1.0-test",
        len(vmlinux()),
        len(vmlinux()),
    )
    assert told["limit_bytes"] == 1 << 30
    cleared = run_pyvmm("cache", "clear", env=env)
    assert (cleared.returncode, cleared.stdout) == (0, b"1 kernel removed, 0.3 MiB\n")
    assert names(folder) == [] and os.listdir(folder / "index") == []
    assert json.loads(run_pyvmm("cache", "clear", "--json", env=env).stdout) == {
        "removed": 0,
        "removed_bytes": 0,
    }
    assert run_pyvmm("cache", "fill", env=env).returncode == 125


# -- booting from it -----------------------------------------------------------------------------------


def place(path: Path, memory: int = 512 * MIB, **options) -> tuple[object, GuestMemory]:
    spec = MachineSpec(str(path), memory=memory, **options)
    ram = GuestMemory(x86_64.ram_ranges(spec.memory), poison=options.get("poison"))
    with x86_64.open_image(spec.kernel) as file:
        return x86_64.load(file, spec, ram), ram


def zero_page(ram: GuestMemory) -> boot_params:
    return boot_params.from_buffer_copy(ram.read(layout.ZERO_PAGE, 4096))


def test_vmlinux_is_booted_with_the_header_of_the_bzimage(kernel):
    entry, ram = place(kernel, cmdline="c" * 1500)
    assert (entry.protocol, entry.rip) == ("linux64", 0x1000010)
    assert ram.read(0x1000000, 0x1000) == vmlinux()[232:][:0x1000]
    fields = zero_page(ram).hdr
    assert (fields.header, fields.version, fields.setup_sects, fields.kernel_info_offset) == (
        HDRS_MAGIC,
        0x20F,
        4,
        0x500,
    )
    assert (fields.pref_address, fields.code32_start, fields.init_size) == (0x1000000, 0x1000000, 0x6000000)
    claims = {claim.name: (claim.start, claim.end) for claim in ram.claims}
    assert claims["kernel"] == (0x1000000, 0x7000000), (
        "init_size is kept free, as it would be for the bzImage"
    )


def test_limits_are_those_of_the_header(kernel, tmp_path):
    from loader.errors import LoaderError

    path = tmp_path / "small"
    path.write_bytes(packed_bzimage("gzip", vmlinux(), cmdline_size=100, initrd_addr_max=0x9FFFFFF))
    with pytest.raises(LoaderError, match="100"):
        place(path, cmdline="c" * 101)
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"070701" + bytes(5000))
    _, ram = place(path, cmdline="c" * 100, initrd=str(initrd))
    assert zero_page(ram).hdr.ramdisk_image == 0x9FFE000


@pytest.mark.parametrize("options", [{"extract": False}, {"protocol": "linux64"}, {"protocol": "linux32"}])
def test_bzimage_as_it_is_where_that_was_asked_for(kernel, folder, options):
    entry, _ = place(kernel, **options)
    assert entry.rip == 0x1000000 if options.get("protocol") == "linux32" else 0x1000200
    assert names(folder) == []


@pytest.mark.parametrize(
    "content",
    [
        vmlinux(paddr=0x2000000),  # linked for another place than the header says
        vmlinux(entry=0x5000),  # entered outside its image
        vmlinux()[:0x1000],  # segments beyond the end
        vmlinux(kind=1),
    ],
    ids=["elsewhere", "entry", "truncated", "object file"],
)
def test_bzimage_as_it_is_where_the_vmlinux_would_not_start(tmp_path, content):
    path = tmp_path / "bzImage"
    path.write_bytes(packed_bzimage("gzip", content))
    entry, ram = place(path)
    assert entry.rip == 0x1000200
    assert ram.read(0x1000000, 1024) == path.read_bytes()[5 * 512 :][:1024]


def test_no_option(kernel, folder):
    from pyvmm.cli.boot import parser

    assert parser().parse_args(["k", "--no-extract"]).no_extract
    assert not parser().parse_args(["k"]).no_extract


WARM = """
import sys
import pyvmm.machine.build as build
build.System = lambda: (_ for _ in ()).throw(SystemExit(0))
from pyvmm.cli import main
try:
    main(["boot", sys.argv[1], "--no-input"])
finally:
    print("\\n".join(sys.modules))
"""


def test_a_boot_from_the_cache_imports_little(kernel):
    from test_start_up import FORBIDDEN

    take(kernel)
    done = subprocess.run(
        [sys.executable, "-S", "-c", WARM, kernel], capture_output=True, text=True, check=False, cwd=ROOT
    )
    modules = done.stdout.split()
    assert "pyvmm.kernel_cache" in modules and "loader.configurator.linux" in modules, done.stderr
    unwanted = (
        *FORBIDDEN,
        "hashlib",
        "zlib",
        "lzma",
        "pyvmm.kernel_cache_fill",
        "loader.payload",
        "loader.bzimage.load",
    )
    assert [name for name in unwanted if name in modules] == []
