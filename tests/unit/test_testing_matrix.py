"""pyvmm-test.toml: which cases it makes, and what it says of what it cannot take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.cli import cases as cli
from pyvmm.errors import UsageError
from pyvmm.testing import machines, matrix

SMALL = """\
[[kernel]]
path = "bzImage"

[[case]]
name = "boots"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "pyvmm-test.toml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def cases(text_or_words, folder=None, *words):
    """The cases of a file, or of a command line."""
    if folder is not None:
        words = (write(folder, text_or_words), *words)
    else:
        words = (*text_or_words, *words)
    return matrix_of(*words).cases


def matrix_of(*words):
    return cli.matrix(cli.parse([str(word) for word in words]))


def refused(folder, text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        cases(text, folder)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


class TestCases:
    def test_every_kernel_with_every_machine_with_every_case_in_order(self, folder):
        text = """
            kernel = [{path = "a"}, {path = "b"}]
            machine = [{name = "m"}, {name = "n"}]
            case = [{name = "x"}, {name = "y"}]
        """
        assert [case.id for case in cases(text, folder)] == [
            f"{kernel}/{machine}/{case}" for kernel in "ab" for machine in "mn" for case in "xy"
        ]

    def test_a_file_without_machines_has_one(self, folder):
        assert [case.id for case in cases(SMALL, folder)] == ["bzImage/default/boots"]

    def test_a_case_says_more_than_a_machine_and_a_machine_more_than_the_top(self, folder):
        text = """
            memory = "64M"
            cpus = 2
            timeout = 7
            cmdline = "top"
            devices = ["rng"]
            kernel = [{path = "k", cmdline = "kernel", allow_splat = ["one"]}]
            machine = [{name = "m", memory = 128, cmdline = "machine"}]
            case = [{name = "x", cpus = 4, cmdline = "case", devices = ["vsock=5"], allow_splat = "two"}, {name = "y"}]
        """
        x, y = cases(text, folder)
        assert (x.memory, x.cpus, x.timeout, x.cmdline) == ("131072k", 4, 7, "top kernel machine case")
        assert (y.memory, y.cpus, y.cmdline) == ("131072k", 2, "top kernel machine")
        assert (x.devices, y.devices) == (["rng", "vsock=cid=5"], ["rng"])
        assert (x.allow_splat, y.allow_splat) == (["one", "two"], ["one"])

    def test_filters_of_a_case(self, folder):
        text = """
            kernel = [{path = "linux-6.1"}, {path = "linux-6.6"}, {path = "other"}]
            machine = [{name = "m"}, {name = "n"}]
            case = [{name = "x", kernels = ["linux-*"], machines = "n"}, {name = "y", kernels = ["other"]}]
        """
        assert [case.id for case in cases(text, folder)] == [
            "linux-6.1/n/x", "linux-6.6/n/x", "other/m/y", "other/n/y",
        ]  # fmt: skip

    def test_a_pattern_finds_kernels_named_by_what_differs(self, folder):
        for version in ("linux-6.1", "linux-6.6"):
            write(folder, "", f"{version}/arch/x86/boot/bzImage")
        text = '[[kernel]]\npath = "*/arch/x86/boot/bzImage"\n[[case]]\nname = "x"\n'
        found = cases(text, folder)
        assert [case.kernel for case in found] == ["linux-6.1", "linux-6.6"]
        assert found[0].path == str(folder / "linux-6.1/arch/x86/boot/bzImage")
        named = cases(text.replace("path", 'name = "k"\npath'), folder)
        assert [case.kernel for case in named] == ["k-linux-6.1", "k-linux-6.6"]

    def test_paths_are_relative_to_the_file(self, folder, monkeypatch):
        text = """
            kernel = [{path = "k"}]
            devices = ["disk=root.img,overlay", "disk=/dev/null,ro"]
            case = [{name = "x", initrd = "sub/i", root = "."}]
        """
        path = write(folder, text, "deep/t.toml")
        monkeypatch.chdir("/")
        (case,) = matrix_of(path).cases
        assert (case.path, case.initrd) == (str(folder / "deep/k"), str(folder / "deep/sub/i"))
        assert case.root == str(folder / "deep")
        assert case.devices[0].startswith(f"disk=path={folder}/deep/root.img,overlay=")
        assert case.devices[1] == "disk=path=/dev/null,ro=on"

    def test_everything_a_case_can_say(self, folder):
        text = (
            SMALL
            + """
            expect = "login:"
            command = ["echo", "a b"]
            ktap = true
            status = 3
            cwd = "/tmp"
            skip-reason = "not today"
            lab = true
            [case.env]
            A = "1"
            N = 2
        """
        )
        (case,) = cases(text, folder)
        assert (case.expect, case.command, case.ktap, case.status) == (["login:"], ["echo", "a b"], True, 3)
        assert (case.cwd, case.skip_reason, case.lab) == ("/tmp", "not today", True)
        assert case.env == {"A": "1", "N": "2"}

    def test_a_machine_file_is_the_machine(self, folder):
        write(folder, 'memory = "96M"\ncpus = 3\nkaslr = false\nexpect = ["x"]\n[[rng]]\n', "vm.toml")
        text = SMALL + '[[machine]]\nname = "m"\nmachine = "vm.toml"\ncpus = 1\ndevices = ["vsock=9"]\n'
        (case,) = cases(text, folder)
        assert (case.memory, case.cpus, case.options) == (f"{96 << 10}k", 1, ["--no-kaslr"])
        assert case.devices == ["rng", "vsock=cid=9"]
        assert case.expect == [], "what the run is to do is the case's"


class TestComplaints:
    @pytest.mark.parametrize(
        ("text", "line", "words"),
        [
            ("retry = 1\n" + SMALL, 1, "unknown key 'retry'; perhaps you mean 'retries'"),
            (SMALL + "expct = ['x']\n", 6, "case has no key 'expct'; perhaps you mean 'expect'"),
            (SMALL + "status = 'one'\n", 6, "case: status is 'one', not a whole number"),
            (SMALL + "status = 256\n", 4, "status 256"),
            (SMALL + "timeout = 0\n", 6, "case: timeout is 0, not a number of seconds above 0"),
            (SMALL + "ktap = 1\n", 6, "case: ktap is 1, not true or false"),
            (SMALL + "env = {A = 'b'}\n", 4, "env without a command"),
            (SMALL + "memory = '1Q'\n", 6, "case: memory: '1Q' is not a size"),
            (SMALL + "devices = ['disc=x']\n", 6, "there is no device 'disc'; perhaps you mean 'disk'"),
            (SMALL + "devices = ['disk=x,rw=1']\n", 6, "disk has no 'rw'"),
            (SMALL + "kernels = ['bzImag']\n", 6, "there is no kernel 'bzImag'; perhaps you mean 'bzImage'"),
            (SMALL + "expect = ['']\n", 6, "case: expect is [''], not"),
            (SMALL + "command = ' '\n", 6, "case: command is ' ', not text"),
            (SMALL + "[[case]]\nname = 'boots'\n", 7, "there are two cases called 'boots'"),
            (SMALL + "[[case]]\nname = 'a/b'\n", 7, "'a/b' is no name"),
            (SMALL + "[[machine]]\ncpus = 1\n", 6, "machine without name"),
            (SMALL + "[[machine]]\nname = 'm'\nmachine = 'none.toml'\n", 8, "none.toml: No such file"),
            ("[[kernel]]\npath = 'nothing-*'\n[[case]]\nname = 'x'\n", 2, "nothing matches"),
            ("[case]\nname = 'x'\n", 1, "case is a table, not an array of tables"),
            (SMALL + "name = 'again'\n", 6, "cannot overwrite a value"),
            (SMALL + "x = [\n", 6, ""),
        ],
    )  # fmt: skip
    def test_one_line_that_says_where_and_what_was_meant(self, folder, text, line, words):
        error = refused(folder, text)
        assert error.message.startswith(f"{folder}/pyvmm-test.toml:{line}: "), error.message
        assert words in error.message

    def test_a_file_without_a_case(self, folder):
        assert "no [[case]]" in refused(folder, "name = 'x'\n").message

    def test_no_file_and_nothing_to_do(self, folder):
        with pytest.raises(UsageError, match=r"there is no pyvmm-test\.toml here"):
            matrix_of("bzImage")


class TestCommandLine:
    def test_the_file_of_the_directory_is_found(self, folder):
        write(folder, SMALL)
        assert [case.id for case in matrix_of().cases] == ["bzImage/default/boots"]

    def test_a_case_without_a_file(self, folder):
        write(folder, SMALL)  # not looked at
        found = matrix_of(
            "--kernel", "a/k", "b/k", "--memory", "1G", "--timeout", "3", "--", "uname", "-r"
        ).cases
        assert [case.id for case in found] == ["b/default/uname", "a/default/uname"]
        assert (found[0].command, found[0].memory, found[0].timeout) == (["uname", "-r"], f"{1 << 20}k", 3)

    def test_kernels_take_the_place_of_the_files(self, folder):
        path = write(folder, SMALL)
        write(folder, "", "mine")
        assert [case.kernel for case in matrix_of(path, "mine").cases] == ["mine"]
        assert [case.kernel for case in matrix_of(path, "--kernel", "mine").cases] == ["mine"]
        assert matrix_of(path, "./gone").cases[0].path == str(folder / "gone")

    @pytest.mark.parametrize(
        ("words", "ids"),
        [
            (("--case", "b*"), ["bzImage/default/boots"]),
            (("-k", "default/o"), ["bzImage/default/other"]),
            (("--kernel", "bz*", "--machine", "default", "--case", "other"), ["bzImage/default/other"]),
        ],
    )
    def test_filters(self, folder, words, ids):
        path = write(folder, SMALL + "[[case]]\nname = 'other'\n")
        assert [case.id for case in matrix_of(path, *words).cases] == ids

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--case", "boot"), "there is no case 'boot'; perhaps you mean 'boots'"),
            (("--kernel", "bzimage"), "there is no kernel 'bzimage'; perhaps you mean 'bzImage'"),
            (("-k", "nowhere"), "no case has 'nowhere' in its name"),
            (("--status", "x", "--expect", "y"), "--status x: not a whole number"),
            (("--timeout", "-1"), "--timeout -1: not a number of seconds"),
            (("--memory", "lots"), "'lots' is not a size"),
            (("other.toml",), "there are two test files"),
            (("k", "./k"), "/k is named twice"),
        ],
    )
    def test_complaints(self, folder, words, message):
        path = write(folder, SMALL)
        with pytest.raises(UsageError) as caught:
            matrix_of(path, *words)
        assert message in caught.value.message

    def test_a_timeout_on_the_command_line_is_that_of_every_case(self, folder):
        path = write(folder, SMALL + "timeout = 99\n")
        assert matrix_of(path, "--timeout", "2").cases[0].timeout == 2


def test_a_device_is_written_as_it_is_read(tmp_path):
    text = machines.device("disk=a,,b.img,ro,serial=x", str(tmp_path))
    assert text == f"disk=path={tmp_path}/a,,b.img,ro=on,serial=x"
    assert machines.device(text, "/elsewhere") == text


def test_every_key_reaches_the_case():
    """No key is read and then forgotten."""
    from dataclasses import fields

    from pyvmm.testing.case import CaseSpec

    known = {field.name for field in fields(CaseSpec)}
    used_up = {"name", "retries", "kernels", "machines", "machine"}
    for table in (matrix.TOP, matrix.KERNEL, matrix.MACHINE, matrix.CASE):
        assert set(table) - used_up <= known
    assert os.path.basename(matrix.FILE_NAME) == matrix.FILE_NAME
