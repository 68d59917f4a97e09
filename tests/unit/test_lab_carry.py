"""What goes into the lab: the files a command names, the project and its bytecode, a program's libraries."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyvmm
from pyvmm import cache
from pyvmm.errors import UsageError
from pyvmm.lab import bytecode, carry
from pyvmm.lab.transfer import DIRECTORY, FILE, Incoming, Outgoing


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path_factory.mktemp("cache")))


def paths(transfer: Outgoing) -> list[str]:
    return [str(path) for _, path, _, _ in transfer.entries]


def test_arguments_that_name_regular_files_are_found(tmp_path: Path) -> None:
    for name in ("kernel", "initrd", "odd=name"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    argv = [
        "boot",
        "kernel",
        f"--initrd={tmp_path}/initrd",
        "--other=absent",
        "folder",
        "",
        "/dev/null",
        "odd=name",
        "--x=",
    ]
    assert carry.named_files(argv, str(tmp_path)) == [
        str(tmp_path / name) for name in ("kernel", "initrd", "odd=name")
    ]


def test_this_python_is_not_carried(tmp_path: Path) -> None:
    alias = tmp_path / "python"
    alias.symlink_to(sys.executable)
    assert carry.named_files([sys.executable, str(alias), "-V"], "/") == []


def test_a_file_that_cannot_be_carried_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot carry absent into the lab: no such file"):
        carry.add_paths(Outgoing(), ["absent"], str(tmp_path))


def test_a_dynamic_program_brings_its_libraries_but_not_the_c_library() -> None:
    program = os.path.realpath("/bin/bash")
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libtinfo" in listed, "this test wants a program with a library of its own"
    transfer = Outgoing()
    carry.add_paths(transfer, [program], "/")
    names = [os.path.basename(path) for path in paths(transfer)]
    assert names[0] == "bash"
    assert any(name.startswith("libtinfo") for name in names)
    assert not any(name.startswith(("libc.", "ld-linux")) for name in names)


def test_the_project_goes_in_with_bytecode_that_is_never_out_of_date(tmp_path: Path) -> None:
    transfer = Outgoing()
    environment = carry.add_project(transfer, sys.version_info[:3])
    root = os.path.dirname(os.path.dirname(os.path.abspath(pyvmm.__file__)))
    assert root in environment["PYTHONPATH"].split(":")
    assert os.path.join(root, "loader", "__init__.py") in paths(transfer)
    errors = os.path.join(root, "pyvmm", "errors.py")
    assert errors in paths(transfer)
    assert importlib.util.cache_from_source(errors) in paths(transfer)
    assert len(paths(transfer)) == len(set(paths(transfer)))

    # Unpacked elsewhere, with every source newer than its bytecode and broken, the bytecode must serve.
    there = [
        [kind, str(tmp_path) + str(path), mode, extra]
        for kind, path, mode, extra in transfer.entries
        if kind in (FILE, DIRECTORY)
    ]
    incoming = Incoming(there)
    for piece in transfer.contents():
        incoming.feed(piece)
    copy = Path(str(tmp_path) + errors)
    assert copy.read_bytes() == Path(errors).read_bytes()
    copy.write_text("this is no Python\n")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import pyvmm.errors; print(pyvmm.errors.HostError.__name__, pyvmm.errors.__file__)",
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path) + root},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"HostError {copy}\n", done.stderr


def test_another_python_gets_no_bytecode() -> None:
    transfer = Outgoing()
    carry.add_project(transfer, (3, 99, 0))
    assert not any(path.endswith(".pyc") for path in paths(transfer))


def test_only_what_changed_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def noted(source: bytes, path: str, mode: str, **more: bool) -> object:
        compiled.append(path)
        return compile(source, path, mode, **more)

    monkeypatch.setattr(bytecode, "compile", noted, raising=False)
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(f"value = '{name}'\n")

    def codes() -> list[bytes | None]:
        compiled.clear()
        made = bytecode.Bytecode([str(tmp_path)])
        found = [made.of(str(tmp_path / name)) for name in ("a.py", "b.py")]
        made.keep()
        return found

    first = codes()
    assert len(compiled) == 2
    assert codes() == first
    assert compiled == []
    (tmp_path / "a.py").write_text("value = 'c.py'\n")
    changed = codes()
    assert compiled == [str(tmp_path / "a.py")]
    assert (changed[0] == first[0], changed[1] == first[1]) == (False, True)
    (kept,) = Path(cache.path("lab")).glob("bytecode-*")
    kept.write_bytes(b"damaged")
    assert codes() == changed
    (tmp_path / "a.py").write_text("no python here\n")
    assert codes() == [None, changed[1]]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/out", True), ("/out/a/b", True), ("/outer", False), ("/", False), ("/file", True), ("/file2", False)],
)
def test_only_what_was_asked_for_may_come_out(path: str, allowed: bool) -> None:
    assert carry.is_allowed(path, ["/out", "/file"]) is allowed


def test_a_slash_allows_everything() -> None:
    assert carry.is_allowed("/any/thing", carry.within(["/"], "/"))
