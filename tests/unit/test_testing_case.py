"""What is thought of a case: run_case with a machine that only says what it is told to."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from pyvmm.api.console import Console
from pyvmm.arch import DEFAULT_CMDLINE
from pyvmm.errors import CommandTimeout, ExpectTimeout, HostError, ImageError, UnexpectedExit
from pyvmm.splats import MOST_SPLATS
from pyvmm.testing import factory
from pyvmm.testing.case import CaseSpec
from pyvmm.testing.run_case import KEPT, run_case

WARNING = (
    b"[    1.000000] WARNING: CPU: 0 PID: 1 at kernel/x.c:12 f+0x1/0x2\n[    1.1] ---[ end trace 0 ]---\n"
)
GOOD = b"KTAP version 1\n1..2\nok 1 a\nok 2 b\n"
BAD = b"KTAP version 1\n1..2\nok 1 a\nnot ok 2 b\n"


class FakeConsole:
    forgotten = 0

    def __init__(self, log: bytes) -> None:
        self.log = log
        self.at = 0

    def tail(self, count):
        return self.log[-count:].decode("utf-8", "replace")

    def expect_exact(self, texts, timeout):
        found = [(self.log.find(text.encode(), self.at), n) for n, text in enumerate(texts)]
        found = [each for each in found if each[0] >= 0]
        if not found:
            raise UnexpectedExit("the console never showed it")
        at, index = min(found)
        self.at = at + len(texts[index])
        return SimpleNamespace(index=index)


class FakeMachine:
    """Prints ``log``, runs a command that ends with ``command`` (status, stdout, stderr) or raises it, and ends."""

    def __init__(
        self,
        log=b"[    0.0] Linux\n",
        outcome="shutdown",
        status=None,
        command=None,
        detail="",
        start=None,
        report=(),
    ):
        self.console = FakeConsole(log)
        self._end = SimpleNamespace(
            outcome=outcome, status=status, detail=detail, panic=detail, report=list(report),
            exits={"total": 3, "by_device": {"serial": 3}}, describe=lambda: f"it ended: {outcome}",
        )  # fmt: skip
        self._command = command
        self._start = start
        self.end = None
        self.closed = False
        self.guest_writes = False

    def __enter__(self):
        if self._start is not None:
            raise self._start
        return self

    def __exit__(self, *_):
        self.closed = True

    def wait_ready(self, timeout):
        pass

    def run(self, command, *, timeout, env, cwd):
        if isinstance(self._command, Exception):
            raise self._command
        status, stdout, stderr = self._command
        return SimpleNamespace(returncode=status, stdout=stdout, stderr=stderr)

    def wait(self, timeout=None):
        self.end = self._end
        return self.end

    def kill(self):
        self._end.outcome, self._end.status = "interrupted", 1


@pytest.fixture
def case(tmp_path):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"x")

    def run(machine=None, factory=None, **values):
        spec = CaseSpec("k", "m", "c", str(kernel), **values)
        found = run_case(spec, factory or (lambda spec, log: machine))
        assert "\n" not in found.reason
        assert found.reason or found.status == "pass"
        assert machine is None or machine.closed or machine._start is not None
        return found

    return run


def verdict(found):
    return found.status, found.exit_code


class TestEnds:
    @pytest.mark.parametrize(
        ("machine", "expected", "words"),
        [
            ({}, ("pass", 0), ""),
            ({"outcome": "reset"}, ("pass", 0), ""),
            ({"outcome": "exit", "status": 0}, ("pass", 0), ""),
            ({"outcome": "exit", "status": 42}, ("fail", 42), "ended with status 42"),
            ({"outcome": "exit", "status": 124}, ("fail", 119), "ended with status 124"),
            (
                {"outcome": "panic", "detail": "Kernel panic - not syncing: no init"},
                ("fail", 120),
                "kernel panic: no init",
            ),
            ({"outcome": "triple-fault", "report": ["RIP 0x10"]}, ("fail", 122), "RIP 0x10"),
            ({"outcome": "internal-error"}, ("fail", 122), "internal-error"),
            ({"outcome": "timeout"}, ("timeout", 124), "the guest did not end within 120 s"),
            ({"outcome": "error"}, ("error", 125), "error"),
            ({"outcome": "interrupted"}, ("error", 125), "interrupted"),
        ],
    )
    def test_each_end_has_its_verdict(self, case, machine, expected, words):
        found = case(FakeMachine(**machine))
        assert verdict(found) == expected
        assert words in found.reason
        assert found.outcome == machine.get("outcome", "shutdown")
        assert found.exits == {"total": 3, "by_device": {"serial": 3}}

    @pytest.mark.parametrize("log", [b"", b" \r\n"])
    @pytest.mark.parametrize("values", [{}, {"status": 3}])
    def test_what_printed_nothing_never_passes(self, case, log, values):
        found = case(FakeMachine(log, outcome="exit", status=values.get("status", 0)), **values)
        assert verdict(found) == ("fail", 1)
        assert "nothing was printed" in found.reason

    def test_a_wanted_status(self, case):
        assert verdict(case(FakeMachine(outcome="exit", status=3), status=3)) == ("pass", 0)
        assert verdict(case(FakeMachine(outcome="exit", status=0), status=3)) == ("fail", 1)
        assert verdict(case(FakeMachine(outcome="exit", status=4), status=3)) == ("fail", 4)

    def test_expected_texts(self, case):
        assert verdict(case(FakeMachine(b"a login: b", outcome="expected"), expect=["login:"])) == ("pass", 0)
        assert verdict(case(FakeMachine(b"end of a long log", outcome="expected"), expect=["x"])) == (
            "pass",
            0,
        )
        found = case(FakeMachine(b"a login: b"), expect=["login:", "root"])
        assert verdict(found) == ("fail", 121)
        assert "'root'" in found.reason
        assert "login" not in found.reason
        found = case(FakeMachine(outcome="timeout"), expect=["root"])
        assert (verdict(found), found.reason) == (
            ("timeout", 124),
            "the console did not show 'root' within 120 s",
        )


class TestLongConsoles:
    """Consoles of which the first part is not kept."""

    @staticmethod
    def machine(*pieces, outcome="shutdown"):
        vm = FakeMachine(outcome=outcome)
        vm.console = Console(lambda data: 0, UnexpectedExit, None)
        wait = vm.wait

        def print_and_wait(timeout=None):
            while pieces:
                vm.console.feed(pieces[0])
                del pieces[0]
            vm.console.end()
            return wait(timeout)

        pieces = list(pieces)
        vm.wait = print_and_wait
        return vm

    def test_a_splat_in_it_is_found(self, case):
        before = b"x" * 99 + b"\n"
        found = case(self.machine(before + WARNING, *[b"y" * (8 << 20) + b"\n"] * 9))
        assert verdict(found) == ("fail", 120)
        assert found.splats[0]["offset"] == len(before)

    def test_test_results_are_not_judged_by_a_part(self, case):
        found = case(
            self.machine(b"KTAP version 1\n1..1\nnot ok 1 a\n", b"y" * (40 << 20), b"\n1..1\nok 1 b\n"),
            ktap=True,
        )
        assert verdict(found) == ("error", 125)

    def test_splats_without_end_are_not_all_kept(self, case):
        line = b"[    1.000000] kmemleak: 1 new suspected memory leaks\n"
        found = case(FakeMachine(line * 500 + WARNING), allow_splat=("kmemleak",))
        assert len(found.splats) == MOST_SPLATS + 1
        assert verdict(found) == ("fail", 120)


class TestSplats:
    def test_fail(self, case):
        found = case(FakeMachine(WARNING))
        assert verdict(found) == ("fail", 120)
        assert "WARNING: CPU: 0 PID: 1 at kernel/x.c:12" in found.reason
        assert [splat["kind"] for splat in found.splats] == ["WARNING"]

    def test_even_where_the_text_came_and_the_command_passed(self, case):
        assert verdict(case(FakeMachine(WARNING, outcome="expected"), expect=["CPU"])) == ("fail", 120)
        assert verdict(case(FakeMachine(WARNING, command=(0, b"fine", b"")), command="x")) == ("fail", 120)

    def test_unless_allowed(self, case):
        found = case(FakeMachine(WARNING), allow_splat=[r"at kernel/x\.c"])
        assert verdict(found) == ("pass", 0)
        assert [splat["allowed"] for splat in found.splats] == [True]
        assert verdict(case(FakeMachine(WARNING), allow_splat=["y.c"])) == ("fail", 120)

    def test_a_panic_can_be_allowed(self, case):
        log = b"[    1.000000] Kernel panic - not syncing: on purpose\n"
        machine = {"outcome": "panic", "detail": log.decode()}
        assert verdict(case(FakeMachine(log, **machine))) == ("fail", 120)
        assert verdict(case(FakeMachine(log, **machine), allow_splat=["on purpose"])) == ("pass", 0)

    def test_a_timeout_names_the_splat_before_it(self, case):
        found = case(FakeMachine(WARNING, outcome="timeout"))
        assert verdict(found) == ("timeout", 124)
        assert "WARNING" in found.reason

    def test_a_pattern_that_is_none_cannot_be_tested_and_boots_nothing(self, case):
        found = case(factory=lambda spec, log: pytest.fail("booted"), allow_splat=["("])
        assert verdict(found) == ("error", 125)
        assert "no regular expression" in found.reason


class TestCommands:
    def test_pass(self, case):
        found = case(FakeMachine(command=(0, b"6.1.0\n", b"")), command=["uname", "-r"])
        assert verdict(found) == ("pass", 0)
        assert (found.stdout, found.guest_status, found.outcome) == ("6.1.0\n", 0, "exit")
        assert [event for _, event in found.timeline][:3] == ["start", "the guest runs", "the agent is ready"]

    @pytest.mark.parametrize(
        ("status", "wanted", "expected"),
        [
            (7, None, ("fail", 7)),
            (125, None, ("fail", 119)),
            (-9, None, ("fail", 119)),
            (7, 7, ("pass", 0)),
            (0, 7, ("fail", 1)),
        ],
    )
    def test_its_status_is_the_exit_code(self, case, status, wanted, expected):
        found = case(FakeMachine(command=(status, b"", b"no such thing\n")), command="x", status=wanted)
        assert verdict(found) == expected
        assert found.guest_status == status
        if expected[0] == "fail":
            assert "no such thing" in found.reason

    def test_a_silent_command_that_ended_well_has_said_so(self, case):
        assert verdict(case(FakeMachine(b"", command=(0, b"", b"")), command="true")) == ("pass", 0)

    def test_too_slow(self, case):
        late = CommandTimeout("late", "", returncode=None, stdout=b"so far", stderr=b"")
        found = case(FakeMachine(command=late), command="x", timeout=5)
        assert (verdict(found), found.reason) == (("timeout", 124), "the command did not end within 5 s")
        assert found.stdout == "so far"

    def test_a_guest_that_ends_meanwhile(self, case):
        class Ends(FakeMachine):
            def run(self, *arguments, **keywords):
                self.wait()
                raise UnexpectedExit("the command did not end: it ended")

        assert verdict(case(Ends(outcome="reset"), command="x")) == ("fail", 1)
        assert verdict(case(Ends(outcome="panic", detail="p"), command="x")) == ("fail", 120)

    def test_an_agent_that_gives_up_is_no_verdict(self, case):
        class NoDriver(FakeMachine):
            def wait_ready(self, timeout):
                self.wait()
                raise UnexpectedExit("the agent never answered")

        found = case(NoDriver(b"agent: no virtio console driver\n"), command="x")
        assert verdict(found) == ("error", 125)
        assert "no virtio console driver" in found.reason

    def test_an_agent_that_never_answers(self, case):
        class Deaf(FakeMachine):
            def wait_ready(self, timeout):
                raise ExpectTimeout("no answer")

        found = case(Deaf(), command="x", timeout=5)
        assert (verdict(found), found.reason) == (
            ("timeout", 124),
            "the guest's agent did not answer within 5 s",
        )

    def test_expected_texts_besides(self, case):
        machine = {"log": b"one two", "command": (0, b"", b"")}
        assert verdict(case(FakeMachine(**machine), command="x", expect=["two", "one"])) == ("pass", 0)
        assert verdict(case(FakeMachine(**machine), command="x", expect=["three"])) == ("fail", 121)


class TestTests:
    @pytest.mark.parametrize(
        ("log", "expected", "words"),
        [
            (GOOD, ("pass", 0), ""),
            (BAD, ("fail", 1), "1 of 2 tests failed: b"),
            (b"nothing of the kind\n", ("fail", 1), "no test results"),
            (b"KTAP version 1\n1..1\nok 1 a # SKIP\n", ("skip", 0), "skipped"),
            (b"KTAP version 1\n1..2\nok 1 a\n", ("fail", 1), "failed"),
        ],
    )
    def test_console(self, case, log, expected, words):
        found = case(FakeMachine(log), ktap=True)
        assert verdict(found) == expected
        assert words in found.reason

    def test_output_of_a_command(self, case):
        found = case(FakeMachine(BAD, command=(0, GOOD, b"")), command="x", ktap=True)
        assert verdict(found) == ("pass", 0)
        assert [test["name"] for test in found.subtests] == ["a", "b"]
        found = case(FakeMachine(command=(3, BAD, b"")), command="x", ktap=True)
        assert (verdict(found), found.reason) == (("fail", 3), "1 of 2 tests failed: b")
        assert verdict(case(FakeMachine(command=(3, GOOD, b"")), command="x", ktap=True)) == ("fail", 3)


class TestErrors:
    @pytest.mark.parametrize("error", [ImageError("no kernel"), HostError("no KVM"), ZeroDivisionError("x")])
    def test_what_does_not_start_cannot_be_tested(self, case, error):
        found = case(FakeMachine(start=error))
        assert verdict(found) == ("error", 125)
        assert str(error) in found.reason

    def test_what_to_do_about_it_is_said_too(self, case):
        found = case(FakeMachine(start=HostError("no KVM", "add --lab")))
        assert found.reason == "no KVM; add --lab"

    def test_a_kernel_that_is_not_there(self, tmp_path):
        found = run_case(CaseSpec("k", "m", "c", str(tmp_path / "gone")))
        assert verdict(found) == ("error", 125)
        assert "no such file" in found.reason

    def test_skipped_on_purpose(self, case):
        found = case(factory=lambda *_: pytest.fail("it must not start"), skip_reason="not here")
        assert (found.status, found.reason) == ("skip", "not here")


@pytest.mark.parametrize(
    ("values", "cmdline"),
    [
        ({}, None),
        ({"cmdline": "quiet"}, f"{DEFAULT_CMDLINE} quiet"),
        ({"cmdline": "console=hvc0 quiet"}, "console=hvc0 quiet"),
        ({"ktap": True}, f"{DEFAULT_CMDLINE} kunit_shutdown=poweroff"),
        ({"ktap": True, "cmdline": "kunit_shutdown=reboot"}, f"{DEFAULT_CMDLINE} kunit_shutdown=reboot"),
        ({"ktap": True, "expect": ["x"]}, None),
    ],
)
def test_command_line_of_the_kernel(values, cmdline):
    assert factory._cmdline(CaseSpec("k", "m", "c", "/p", **values)) == cmdline


def test_a_guest_without_a_root_is_advised(case):
    panic = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
    found = case(FakeMachine(outcome="panic", detail=panic))
    assert found.reason.endswith("unknown-block(0,0); give it an initrd")


def test_only_the_end_of_a_long_console_is_kept(case):
    found = case(FakeMachine(WARNING + b"x" * (KEPT * 2) + b"\nend\n"))
    assert len(found.console) == KEPT
    assert found.console.endswith("end\n")
    assert found.splats, "those before it are found all the same"


def test_logs_have_names_of_their_own(case, tmp_path):
    logs = []

    def factory(spec, log):
        logs.append(log)
        return FakeMachine()

    found = case(factory=factory, log_dir=str(tmp_path))
    case(factory=factory, log_dir=str(tmp_path), attempt=2)
    assert logs == [f"{tmp_path}/k--m--c.log", f"{tmp_path}/k--m--c--2.log"]
    assert found.console_log == logs[0]


def test_spec_and_result_can_be_sent(case):
    spec = CaseSpec("k", "m", "c", "/p", command=["a"], env={"A": "1"})
    assert pickle.loads(pickle.dumps(spec)) == spec
    found = case(FakeMachine())
    assert pickle.loads(pickle.dumps(found)) == found
