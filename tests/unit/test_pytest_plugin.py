"""The pytest plugin without KVM: options, marker, kernels, splats, results and reports, with made-up machines."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import pyvmm
from pyvmm.api.console import Console
from pyvmm.api.end import End
from pyvmm.errors import CommandFailed, ImageError, KvmMissing, UsageError
from pyvmm.pytest_plugin import machines, marker, reports
from pyvmm.pytest_plugin.archives import Initramfs

pytest_plugins = "pytester"

WARNING = b"[    1.000000] WARNING: CPU: 0 PID: 1 at mm/slab.c:1 init+0x1/0x2\n[    1.000001] ---[ end trace 0 ]---\n"
KTAP = """\
KTAP version 1
1..5
ok 1 adds
# 1 is not 2
not ok 2 divides # by zero
ok 3 hardware # SKIP there is none
not ok 4 known # TODO later
    KTAP version 1
    1..1
    not ok 1 inner
not ok 5 suite
"""


class Fake:
    """A machine that prints what its ``cmdline`` says, and ends at once."""

    made: list[dict]

    def __init__(self, kernel: str, **arguments: object) -> None:
        self.kernel = kernel
        self.log = arguments["log"]
        self.arguments = {"kernel": kernel, **arguments}
        self.end: End | None = None
        self.closed = False

    def start(self) -> None:
        self.console = Console(lambda data: 0, lambda what: None, self.log)
        if self.arguments.get("memory") == "lots":
            raise UsageError("'lots' is not a size", "write it as 512M")
        if self.kernel.endswith("nokvm"):
            raise KvmMissing("there is no /dev/kvm", "load its module")
        self.console.feed(str(self.arguments.get("cmdline") or "").encode())
        Fake.made.append(self.arguments)

    def wait(self) -> None:
        self.end = End({
            "outcome": "shutdown", "guest_status": None, "exit_code": 0, "detail": "", "elapsed_s": 1.0, "report": [],
            "exits": {}, "console_tail": "",
        })  # fmt: skip

    def complain(self) -> None:
        raise CommandFailed(
            "'false' ended with status 1", "look", returncode=1, stdout=b"out\n", stderr=b"err\n",
            console_tail="the tail", log=self.log,
        )  # fmt: skip

    def ktap(self):
        from pyvmm.ktap import parse

        return parse(self.console.log)

    def close(self) -> None:
        self.console.feed(b"bye\n" + (WARNING if "late" in self.kernel else b""))
        self.console.close()
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(machines, "Machine", Fake)
    monkeypatch.setattr(reports, "_PACKAGE", (reports._PACKAGE, __file__))  # it stands for a part of pyvmm
    Fake.made = []
    return Fake


@pytest.fixture
def files(pytester: pytest.Pytester) -> pytest.Pytester:
    """Two files that pass for kernels."""
    for name in ("one", "two"):
        (pytester.path / name).write_bytes(b"kernel")
    return pytester


def logs(pytester: pytest.Pytester) -> list[str]:
    return sorted(path.name for path in (pytester.path / "logs").glob("*"))


class TestStart:
    PRINT = "import sys\ndef test(): print('modules', *(n for n in sys.modules if n.startswith(('pyvmm', 'loader'))))"

    def test_nothing_is_imported_that_no_test_needs(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(self.PRINT)
        for options, expected in (((), ["pyvmm", "pyvmm.pytest_plugin"]), (("-p", "no:pyvmm"), [])):
            done = pytester.runpytest_subprocess("-s", *options)
            done.assert_outcomes(passed=1)
            line = next(line for line in done.outlines if "modules" in line)
            assert line.partition("modules")[2].split()[: len(expected) or None] == expected
            assert re.findall(r"\bpyvmm[.\w]*|\bloader[.\w]*", line) == expected

    def test_without_the_plugin_there_are_no_options(self, pytester: pytest.Pytester) -> None:
        assert (
            pytester.runpytest_subprocess("-p", "no:pyvmm", "--vmm-keep").ret == pytest.ExitCode.USAGE_ERROR
        )
        done = pytester.runpytest_subprocess("--help")
        done.stdout.fnmatch_lines(["kernels booted by pyvmm:", "*--vmm-kernel*"])

    @pytest.mark.parametrize("option", ["--vmm-kernel=none", "--vmm-timeout=0"])
    def test_options_that_are_no_use(self, pytester: pytest.Pytester, option: str) -> None:
        pytester.makepyfile("def test(): pass")
        done = pytester.runpytest(option)
        assert done.ret == pytest.ExitCode.USAGE_ERROR
        done.stderr.fnmatch_lines([f"ERROR: {option.partition('=')[0]}*"])

    def test_a_build_tree_is_no_image(self, pytester: pytest.Pytester) -> None:
        done = pytester.runpytest("--vmm-kernel=.")
        assert done.ret == pytest.ExitCode.USAGE_ERROR
        done.stderr.fnmatch_lines(["ERROR: --vmm-kernel .: a directory; *"])

    def test_the_marker_is_registered(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile("import pytest\n@pytest.mark.vm(memory='1G')\ndef test(): pass")
        pytester.runpytest("--strict-markers").assert_outcomes(passed=1)
        pytester.runpytest("--markers").stdout.fnmatch_lines(["@pytest.mark.vm(*"])


class TestMarker:
    def test_keywords_are_those_of_a_machine(self) -> None:
        known = {*marker.MACHINE_KEYWORDS, *marker.CALL_KEYWORDS}
        assert known == set(inspect.signature(pyvmm.Machine).parameters)

    @pytest.mark.parametrize(
        ("written", "message"),
        [
            ("memroy='1G'", "*no 'memroy'; perhaps you mean 'memory'*"),
            ("'one'", "*takes keywords only, not 'one'*"),
        ],
    )
    def test_mistakes_are_found_at_collection(self, files, written: str, message: str) -> None:
        files.makepyfile(f"import pytest\n@pytest.mark.vm({written})\ndef test(vm): pass")
        done = files.runpytest("--collect-only")
        done.assert_outcomes(errors=1)
        done.stdout.fnmatch_lines([message])
        assert "Traceback" not in done.stdout.str() and "pytest_plugin" not in done.stdout.str()

    def test_the_nearest_counts_and_splats_are_allowed_together(self, files, fake) -> None:
        files.makepyfile(
            """
            import pytest
            @pytest.mark.vm(memory="1G", cpus=2, allow_splat=["a"])
            class TestIt:
                @pytest.mark.vm(memory="2G", allow_splat="b")
                def test(self, vmm):
                    vmm(cpus=3, allow_splat=["c"])
                    assert vmm.booted[0].allow == ["b", "a", "c"]
            """
        )
        files.runpytest("--vmm-kernel", "one", "--vmm-timeout", "7").assert_outcomes(passed=1)
        (made,) = fake.made
        assert (made["memory"], made["cpus"], made["timeout"], made["expect_timeout"]) == ("2G", 3, 7, 7)
        assert made["kernel"] == str(files.path / "one")
        assert made["lab"] is False


class TestKernels:
    TESTS = """
        import pytest
        def test_vm(vm): print("booted", vm.kernel)
        def test_kernel(kernel): assert kernel.is_file()
        def test_vmm(vmm): vmm()
        @pytest.mark.vm(kernel="one")
        def test_named(vm): assert vm.kernel.endswith("one")
        def test_none(): pass
        """

    def test_each_in_turn(self, files, fake) -> None:
        files.makepyfile(self.TESTS)
        done = files.runpytest("-v", "--vmm-kernel", "one", "--vmm-kernel", "two")
        done.assert_outcomes(passed=6, failed=1)
        done.stdout.fnmatch_lines_random(
            [f"*::{test} {how}*" for test, how in (
                ("test_vm[[]one]", "PASSED"), ("test_vm[[]two]", "PASSED"), ("test_kernel[[]two]", "PASSED"),
                ("test_vmm", "FAILED"), ("test_named*", "PASSED"), ("test_none", "PASSED"),
            )] + ["which of the 2 kernels*", "hint: take the fixture kernel*"]
        )  # fmt: skip
        assert [Path(made["kernel"]).name for made in fake.made] == ["one", "one", "two"], (
            "one kernel after the other"
        )

    def test_a_skip_without_one_or_a_failure_if_that_is_asked(self, files, fake) -> None:
        files.makepyfile(self.TESTS)
        done = files.runpytest("-rs")
        done.assert_outcomes(passed=2, skipped=3)
        done.stdout.fnmatch_lines(["*there is no kernel to boot: give one with --vmm-kernel"])
        files.runpytest("--vmm-require-kvm").assert_outcomes(passed=2, failed=1, errors=2)

    def test_a_fixture_of_that_name_is_the_users(self, files, fake) -> None:
        files.makeconftest("import pytest\n@pytest.fixture(scope='module')\ndef kernel(): return 'two'")
        files.makepyfile(
            "def test(vm): assert vm.kernel == 'two'\ndef test_vmm(vmm): assert vmm().kernel == 'two'"
        )
        files.runpytest("--vmm-kernel", "one", "--vmm-kernel", "two").assert_outcomes(passed=2)

    @pytest.mark.parametrize("indirect", [True, False])
    def test_parametrised_by_the_test(self, files, fake, indirect: bool) -> None:
        files.makepyfile(
            f"""
            import os, pytest
            @pytest.mark.parametrize("kernel", ["one", "two"], indirect={indirect})
            def test(vm, kernel): assert os.fspath(kernel) == vm.kernel
            """
        )
        files.runpytest("--vmm-kernel", "one").assert_outcomes(passed=2)
        assert [Path(made["kernel"]).name for made in fake.made] == ["one", "two"]

    def test_without_kvm(self, files, fake) -> None:
        files.makepyfile("def test(vmm): vmm('nokvm')")
        done = files.runpytest("-rs")
        done.assert_outcomes(skipped=1)
        done.stdout.fnmatch_lines(["*there is no /dev/kvm (--vmm-lab boots without)"])
        files.runpytest("--vmm-require-kvm").assert_outcomes(failed=1)

    @pytest.mark.parametrize(("kind", "in_lab"), [("hardware", False), ("software", True), (None, True)])
    def test_the_lab_where_there_is_no_real_kvm(self, files, fake, monkeypatch, kind, in_lab) -> None:
        monkeypatch.setattr(machines, "kvm_kind", lambda: kind)
        monkeypatch.setattr(machines, "_missing_for_lab", lambda architecture: "")
        files.makepyfile("def test(vmm): vmm('one'); vmm('one', lab=False); vmm('one', lab=True)")
        files.runpytest("--vmm-lab").assert_outcomes(passed=1)
        assert [made["lab"] for made in fake.made] == [in_lab, False, True]

    def test_without_what_the_lab_needs(self, files, fake, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machines, "kvm_kind", lambda: "software")
        monkeypatch.setattr(machines, "_missing_for_lab", lambda architecture: "qemu-system-x86_64")
        files.makepyfile("def test(vmm): vmm('one')")
        files.runpytest("--vmm-lab").assert_outcomes(skipped=1)
        files.runpytest("--vmm-lab", "--vmm-require-kvm").assert_outcomes(failed=1)


class TestSplats:
    @pytest.mark.parametrize(("allowed", "outcome"), [("()", "failed"), ("['mm/slab.c']", "passed")])
    def test_fail_a_test_that_passed(self, files, fake, allowed: str, outcome: str) -> None:
        files.makepyfile(f"def test(vmm): vmm('one', cmdline={WARNING.decode()!r}, allow_splat={allowed})")
        done = files.runpytest()
        done.assert_outcomes(**{outcome: 1})
        if outcome == "failed":
            done.stdout.fnmatch_lines(
                ["one printed a splat (WARNING):", "    WARNING: CPU: 0*", "hint: *allow_splat*"]
            )
            done.stdout.fnmatch_lines(["*- console of one -*", "*WARNING: CPU*", "outcome: none*", "log: *"])

    def test_that_come_after_it_are_told_at_its_end(self, files, fake) -> None:
        files.makepyfile("def test(vmm): vmm('late')")
        done = files.runpytest()
        done.assert_outcomes(passed=1, errors=1)
        done.stdout.fnmatch_lines(["late printed a splat*"])

    def test_are_told_once(self, files, fake) -> None:
        files.makepyfile(f"def test(vmm): vmm('one', cmdline={WARNING.decode()!r})")
        files.runpytest().assert_outcomes(failed=1)

    def test_are_no_second_failure(self, files, fake) -> None:
        files.makepyfile(f"def test(vmm): assert vmm('one', cmdline={WARNING.decode()!r}) is None")
        done = files.runpytest()
        done.assert_outcomes(failed=1)
        done.stdout.fnmatch_lines(["splat: WARNING: WARNING: CPU: 0 *"])

    def test_of_a_discarded_machine_do_not_count(self, files, fake) -> None:
        files.makepyfile(
            f"def test(vmm):\n    vm = vmm('one', cmdline={WARNING.decode()!r})\n    vmm.discard(vm)\n"
            "    assert vm.closed and vmm.booted == []"
        )
        files.runpytest("--vmm-log-dir=logs", "--vmm-keep").assert_outcomes(passed=1)
        assert logs(files) == []

    def test_may_be_expected_to_fail(self, files, fake) -> None:
        body = f"def test(vmm): vmm('one', cmdline={WARNING.decode()!r})"
        files.makepyfile(f"import pytest\n@pytest.mark.xfail\n{body}")
        files.runpytest().assert_outcomes(xfailed=1)


class TestReports:
    def test_an_error_is_its_own_text(self, files, fake) -> None:
        files.makepyfile("def test(vmm):\n    vmm('one', memory='lots')")
        done = files.runpytest("--vmm-log-dir=logs")
        assert logs(files) == [], "nothing was started that could have printed anything"
        done.stdout.fnmatch_lines(
            [
                ">*vmm('one', memory='lots')",
                "E *UsageError: 'lots' is not a size",
                "E *hint: write it as 512M",
            ]
        )
        assert "machines.py" not in done.stdout.str()
        files.runpytest("--full-trace").stdout.fnmatch_lines(["*machines.py*"])

    def test_an_error_of_a_fixture_too(self, files, fake) -> None:
        files.makepyfile("import pytest\n@pytest.mark.vm(memory='lots')\ndef test(vm): pass")
        done = files.runpytest("--vmm-kernel=one")
        done.assert_outcomes(errors=1)
        done.stdout.fnmatch_lines(["pyvmm.errors.UsageError: 'lots' is not a size", "hint: write it as 512M"])
        assert "machines.py" not in done.stdout.str() and "hidden" not in done.stdout.str()

    def test_the_error_is_as_it_was_for_who_catches_it(self, files, fake) -> None:
        files.makepyfile(
            "import pytest, pyvmm\ndef test(vmm):\n  with pytest.raises(pyvmm.UsageError): vmm(memory='lots')"
        )
        files.runpytest("--vmm-kernel=one", "--vmm-log-dir=logs").assert_outcomes(passed=1)
        assert logs(files) == []

    def test_the_console_is_shown_once(self, files, fake) -> None:
        files.makepyfile(
            "def test(vmm):\n    vm = vmm('one', cmdline='hello\\x1b[2J')\n    vm.wait()\n    vm.complain()"
        )
        done = files.runpytest("--vmm-log-dir=logs")
        done.stdout.fnmatch_lines([
            "E *CommandFailed: 'false' ended with status 1", "E *hint: look",
            "*- stdout of the command -*", "out", "*- stderr of the command -*", "err",
            "*- console of one -*", r"hello\x1b[[]2J", "outcome: shutdown (*)", f"log: {files.path}/logs/*.log",
        ])  # fmt: skip
        assert "the tail" not in done.stdout.str() and done.stdout.str().count("console of one") == 1

    def test_logs_of_failed_tests_stay(self, files, fake) -> None:
        files.makepyfile(
            """
            import pytest
            def test_pass(vmm): vmm("one"); vmm("two")
            def test_fail(vmm): vmm("one", cmdline="text"); assert not vmm("two")
            @pytest.fixture
            def bad():
                yield
                assert False
            def test_teardown(bad, vmm): vmm("one")
            @pytest.mark.parametrize("x", ["a/b", "a b"])
            def test_names(vmm, x): vmm("one"); assert not x
            """
        )
        files.runpytest("--vmm-log-dir", "logs").assert_outcomes(passed=2, failed=3, errors=1)
        module = "test_logs_of_failed_tests_stay.py--test"
        kept = logs(files)
        assert f"{module}_pass.log" not in kept
        assert {f"{module}_fail.log", f"{module}_fail-2.log", f"{module}_teardown.log"} <= set(kept)
        assert (files.path / "logs" / f"{module}_fail.log").read_bytes() == b"textbye\n"
        assert len(kept) == 5, "two tests whose names differ in nothing that a file's may have have two logs"
        files.runpytest("--vmm-log-dir", "logs", "--vmm-keep")
        assert f"{module}_pass-2.log" in logs(files)

    def test_a_log_directory_that_cannot_be(self, files, fake) -> None:
        files.makepyfile("def test(vmm): vmm('one')")
        done = files.runpytest("--vmm-log-dir", "one/logs")
        done.assert_outcomes(failed=1)
        done.stdout.fnmatch_lines(["cannot make the directory for logs *"])


class TestResults:
    @pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="this pytest has no subtests")
    def test_are_subtests(self, files, fake) -> None:
        files.makepyfile(f"def test(vmm): vmm.ktap(vmm('one', cmdline={KTAP!r}))")
        done = files.runpytest("-v")
        done.stdout.fnmatch_lines([
            "*SUBPASSED[[]adds]*", "*SUBFAILED[[]divides]*", "*SUBSKIPPED[[]hardware]*", "*SUBXFAIL[[]known]*",
            "*SUBFAILED[[]suite: inner]*", "*::test FAILED*",
            "divides failed: by zero", "    1 is not 2", "suite: inner failed",
            "2 of 5 tests failed:", "divides", "suite: inner", "*- console of one -*",
        ])  # fmt: skip
        assert done.ret == 1 and done.stdout.str().count("console of one") == 1

    def test_all_good(self, files, fake) -> None:
        files.makepyfile(
            "def test(vmm): assert vmm.ktap(b'TAP version 13\\n1..1\\nok 1 a\\n').counts()['pass'] == 1"
        )
        assert files.runpytest("--vmm-log-dir=logs").ret == 0

    @pytest.mark.parametrize(
        ("text", "outcome", "line"),
        [("", "failed", "there are no test results*"), ("KTAP version 1\n1..1\n", "failed", "1 of 1 tests failed:"),
         ("KTAP version 1\n1..1\nok 1 a # SKIP b\n", "skipped", "*"),
         ("KTAP version 1\n1..2\nok 1 a\nBail out! no memory\n", "failed", "the tests bailed out: no memory")],
    )  # fmt: skip
    def test_nothing_is_never_a_pass(self, files, fake, text: str, outcome: str, line: str) -> None:
        files.makepyfile(f"def test(vmm): vmm.ktap({text!r})")
        done = files.runpytest("-rs")
        assert done.ret == (1 if outcome == "failed" else 0)
        assert done.parseoutcomes().get("passed", 0) == 0
        done.stdout.fnmatch_lines([line])

    def test_without_subtests_one_assertion_is_about_all(self, files, fake) -> None:
        files.makepyfile(
            f"def test_bad(vmm): vmm.ktap({KTAP!r})\ndef test(vmm): vmm.ktap('KTAP version 1\\n1..1\\nok 1 a\\n')"
        )
        done = files.runpytest("-p", "no:subtests")
        done.assert_outcomes(passed=1, failed=1)
        done.stdout.fnmatch_lines(["2 of 5 tests failed:", "divides failed: by zero", "suite: inner failed"])


def test_with_xdist(files) -> None:
    """Two workers: kernels and options arrive, sections and subtests come back, no log is another's."""
    files.makeconftest(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from pyvmm.pytest_plugin import machines\nfrom test_pytest_plugin import Fake\n"
        "machines.Machine = Fake\nFake.made = []\n"
    )
    files.makepyfile(
        "def test_pass(vm): pass\ndef test_fail(vm): assert 0\n"
        f"def test_ktap(vmm): vmm.ktap(vmm('one', cmdline={KTAP!r}))"
    )
    done = files.runpytest_subprocess(
        "-n", "2", "-p", "xdist", "--vmm-kernel", "one", "--vmm-kernel", "two", "--vmm-log-dir", "logs",
        "--junitxml=junit.xml",
    )  # fmt: skip
    done.stdout.fnmatch_lines_random(
        [
            "*- console of one -*",
            "*- console of two -*",
            "log: *logs/*test_fail_two.log",
            "suite: inner failed",
        ]
    )
    assert done.parseoutcomes()["passed"] >= 2 and done.ret == 1
    assert len(logs(files)) == 3
    assert "divides" in (files.path / "junit.xml").read_text()


class TestInitramfs:
    def test_a_script(self, tmp_path: Path) -> None:
        tool = tmp_path / "tool"
        tool.write_bytes(b"tool")
        box = tmp_path / "busybox"
        box.write_bytes(elf(interpreter=False))
        made = Initramfs()("echo hi", files={"etc/a": b"A", "bin/tool": tool}, busybox=box)
        assert made == Initramfs()("echo hi", files={"bin/tool": str(tool), "etc/a": b"A"}, busybox=str(box))
        for text in (b"echo hi", b"#!/bin/busybox sh", b"bin/tool\0", b"etc/a\0", b"dev/console\0"):
            assert text in made

    def test_busybox_has_to_be_static(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        box = tmp_path / "busybox"
        for content in (elf(interpreter=True), b"#!/bin/sh\n", b"\x7fELF\x02", elf(interpreter=False)[:40]):
            box.write_bytes(content)
            with pytest.raises(UsageError):
                Initramfs()("echo hi", busybox=box)
        monkeypatch.setenv("PATH", str(tmp_path / "none"))
        with pytest.raises(UsageError):
            Initramfs()("echo hi")
        with pytest.raises(UsageError):
            Initramfs()("echo hi", init=b"x")
        with pytest.raises(ImageError):
            Initramfs()(init=tmp_path / "none")


def elf(*, interpreter: bool) -> bytes:
    """The headers of a 64-bit program."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    header[32] = 64  # e_phoff
    header[54], header[56] = 56, 1  # e_phentsize, e_phnum
    return bytes(header) + bytes([3 if interpreter else 1]) + bytes(55)
