"""KTAP read from consoles' logs: nesting of each kind, noise, what is missing, and statuses that are honest."""

from __future__ import annotations

import doctest

import ktap_logs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvmm.ktap
from pyvmm.ktap import Ktap, Test, parse


def tree(tests: list[Test]) -> list[object]:
    """Names and statuses alone."""
    return [
        (test.title, test.status, tree(test.children)) if test.children else (test.title, test.status)
        for test in tests
    ]


def counts(found: Ktap) -> dict[str, int]:
    return {status: number for status, number in found.counts().items() if number}


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(pyvmm.ktap) == (0, 2)


def test_kunit_with_time_stamps_and_messages_between() -> None:
    found = parse(ktap_logs.KUNIT)
    assert tree(found.tests) == [
        (
            "list_ops",
            "fail",
            [
                ("list_ops_init", "pass"),
                ("list_ops_splice", "fail"),
                ("list_ops_rcu", "skip"),
                ("list_ops_sizes", "pass", [("one entry", "pass"), ("many entries", "pass")]),
            ],
        ),
        ("hash_ops", "pass", [("hash_ops_empty", "pass")]),
    ]
    assert (found.status, found.plan, found.errors) == ("fail", 2, [])
    assert counts(found) == {"pass": 4, "fail": 1, "skip": 1, "total": 6}
    splice = found.tests[0].children[1]
    assert splice.diagnostics == [
        "random: crng init done",
        "list_ops_splice: EXPECTATION FAILED at lib/list_ops_test.c:65",
        "    Expected count == 3, but",
        "        count == 2 (0x2)",
    ]
    assert found.tests[0].children[2].reason == "needs CONFIG_RCU_TORTURE"
    assert found.tests[0].children[3].diagnostics == ["list_ops_sizes: pass:2 fail:0 skip:0 total:2"]


@pytest.mark.parametrize("ending", ["\r\n", "\r\r\n", "\n\r"])
def test_line_ends_of_serial_ports_change_nothing(ending: str) -> None:
    assert parse(ktap_logs.KUNIT.replace("\n", ending)) == parse(ktap_logs.KUNIT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[    ", "[   "),  # another width
        ("] ", "][    T1] "),  # CONFIG_PRINTK_CALLER
        ("] ", "][   C12] "),
        ("[    0.", "<6>[    0."),  # the level, as in /dev/kmsg
        ("[    0.", "Nov 25 07:05:58 host kernel: [    0."),
        ("[    0.", "\x1b[32m[    0."),  # colours
    ],
)
def test_what_the_console_puts_before_a_line(old: str, new: str) -> None:
    lines = [line.replace(old, new, 1) for line in ktap_logs.KUNIT.splitlines()]
    assert parse("\n".join(lines)) == parse(ktap_logs.KUNIT)


def test_levels_and_dates_instead_of_time_stamps() -> None:
    bare = "\n".join(line[15:] for line in ktap_logs.KUNIT.splitlines())
    dated = "\n".join(f"[Wed Nov 25 07:05:58 2026] {line}" for line in bare.splitlines())
    levels = "\n".join(f"<6>{line}" for line in bare.splitlines())
    assert tree(parse(bare).tests) == tree(parse(dated).tests) == tree(parse(levels).tests)
    assert tree(parse(bare).tests) == tree(parse(ktap_logs.KUNIT).tests)


def test_kunit_of_older_kernels() -> None:
    found = parse(ktap_logs.OLD_KUNIT)
    assert tree(found.tests) == [
        ("sort", "pass", [("sort_empty", "pass"), ("sort_many", "pass")]),
        ("bits", "fail", [("bits_set", "fail")]),
    ]
    assert found.errors == []


def test_kselftest_with_its_programs_nested_by_hashes() -> None:
    found = parse(ktap_logs.KSELFTEST)
    assert tree(found.tests) == [
        (
            "selftests: timers: posix_timers",
            "fail",
            [
                ("check itimer virtual", "pass"),
                ("check itimer prof", "fail"),
                ("clock too coarse", "todo"),
            ],
        ),
        ("selftests: size: get_size", "pass", [("get runtime memory use", "pass")]),
        ("selftests: net: slow.sh", "fail"),
        ("selftests: sgx: test_sgx", "skip"),
        ("selftests: cgroup: test_core", "pass", [("test_populated", "pass"), ("test_nsdelegate", "skip")]),
    ]
    assert found.errors == []
    timers, _, slow = found.tests[:3]
    assert timers.reason == "exit=1"
    assert timers.children[2].diagnostics == ["hrtimer: interrupt took 1234567 ns"]
    assert timers.diagnostics[-1] == "Totals: pass:1 fail:1 xfail:1 xpass:0 skip:0 error:0"
    assert (slow.directive, slow.reason, slow.diagnostics[-1]) == ("TIMEOUT", "45 seconds", "working ...")


def test_a_kernel_that_dies_leaves_crashed_and_missing_tests() -> None:
    found = parse(ktap_logs.CRASHED)
    assert tree(found.tests) == [
        (
            "ring",
            "crashed",
            [("ring_make", "pass"), ("test 2", "crashed"), ("test 3", "missing"), ("test 4", "missing")],
        ),
        ("test 2", "missing"),
    ]
    assert "NULL pointer" in found.tests[0].children[1].diagnostics[0]
    assert found.status == "fail"


@pytest.mark.parametrize("lines", range(2, len(ktap_logs.KUNIT.splitlines()) - 1))
def test_a_log_cut_anywhere_is_never_a_pass(lines: int) -> None:
    text = "\n".join(line for line in ktap_logs.KUNIT.splitlines()[:lines])
    found = parse(text.replace("not ok", "ok").replace("fail:1", "fail:0"))
    assert found.status == "fail" or lines == 2, found


def test_the_test_of_kselftest_that_was_running_has_its_name() -> None:
    found = parse("TAP version 13\n1..3\nok 1 a\n# timeout set to 45\n# selftests: mm: hugetlb\n# working\n")
    assert tree(found.tests) == [("a", "pass"), ("selftests: mm: hugetlb", "crashed"), ("test 3", "missing")]


def test_a_line_lost_in_the_middle_is_a_missing_test() -> None:
    found = parse("KTAP version 1\n1..4\nok 1 a\nok 2 b\nok 4 d\n")
    assert tree(found.tests) == [("a", "pass"), ("b", "pass"), ("test 3", "missing"), ("d", "pass")]
    assert found.status == "fail"
    without_plan = parse("KTAP version 1\nok 1 a\nok 2 b\nok 4 d\n")
    assert tree(without_plan.tests) == tree(found.tests)


def test_numbers_that_are_wrong_are_an_error_and_the_results_count() -> None:
    found = parse("TAP version 13\n1..4\nok 1 a\nok 1 b\nok 1 c\nok 7 d\n")
    assert (found.status, found.counts()["pass"], found.counts()["total"]) == ("pass", 4, 4)
    assert [error.partition(":")[0] for error in found.errors] == ["line 4", "line 5", "line 6"]


def test_more_results_than_planned_are_an_error() -> None:
    for text in ("1..1\nok 1 a\nok 2 b\n", "KTAP version 1\nok 1 a\nok 2 b\n1..1\n"):
        found = parse(text)
        assert found.counts()["pass"] == 2
        assert any("more results than the plan" in error for error in found.errors)


def test_the_plan_may_come_at_the_end() -> None:
    found = parse("TAP version 13\nok 1 a\nok 2 b\n1..3\n")
    assert (found.plan, counts(found)) == (3, {"pass": 2, "crashed": 1, "total": 3})
    assert parse("TAP version 13\nok 1 a\nok 2 b\n1..2\n").status == "pass"


def test_no_plan_is_an_error_at_the_top_only() -> None:
    found = parse("KTAP version 1\n  KTAP version 1\n  ok 1 a\nok 1 suite\n")
    assert (found.status, found.plan) == ("pass", None)
    assert [error for error in found.errors if "no plan" in error] == found.errors


def test_a_suite_that_says_ok_over_a_failed_test_has_failed() -> None:
    found = parse("KTAP version 1\n1..1\n  KTAP version 1\n  1..2\n  ok 1 a\n  not ok 2 b\nok 1 suite\n")
    assert found.tests[0].status == "fail"
    assert any("says ok, but not all" in error for error in found.errors)
    skipped = parse("KTAP version 1\n1..1\n# TAP version 13\n# 1..1\n# not ok 1 b\nok 1 suite # SKIP\n")
    assert skipped.status == "fail"


def test_a_suite_that_says_ok_with_tests_missing_has_failed() -> None:
    found = parse("KTAP version 1\n1..1\n  KTAP version 1\n  1..3\n  ok 1 a\nok 1 suite\n")
    assert tree(found.tests) == [
        ("suite", "fail", [("a", "pass"), ("test 2", "missing"), ("test 3", "missing")])
    ]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "empty"),
        ("hello\n", "empty"),
        ("KTAP version 1\n", "empty"),
        ("KTAP version 1\n1..0\n", "skip"),
        ("1..0 # SKIP no such device\n", "skip"),
        ("KTAP version 1\n1..1\nok 1 a # SKIP\n", "skip"),
        ("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 a # SKIP\nok 1 suite\n", "skip"),
        ("KTAP version 1\n1..1\n  KTAP version 1\nok 1 suite\n", "skip"),
        ("KTAP version 1\n1..1\n", "fail"),
        ("KTAP version 1\n1..1\nok 1 a\n", "pass"),
        ("KTAP version 1\n1..1\nnot ok 1 a # TODO\n", "pass"),
    ],
)
def test_nothing_that_ran_is_not_a_pass(text: str, status: str) -> None:
    assert parse(text).status == status


@pytest.mark.parametrize(
    ("line", "status", "directive", "reason"),
    [
        ("ok 1 a # SKIP no device", "skip", "SKIP", "no device"),
        ("not ok 1 a # SKIP", "skip", "SKIP", ""),
        ("ok 1 a #skip", "skip", "SKIP", ""),
        ("not ok 1 a # TODO later", "todo", "TODO", "later"),
        ("ok 1 a # TODO later", "pass", "TODO", "later"),
        ("ok 1 a # XFAIL", "todo", "XFAIL", ""),
        ("not ok 1 a # XFAIL", "todo", "XFAIL", ""),
        ("not ok 1 a # TIMEOUT 30 seconds", "fail", "TIMEOUT", "30 seconds"),
        ("ok 1 a # TIMEOUT 30 seconds", "fail", "TIMEOUT", "30 seconds"),
        ("not ok 1 a # error: no memory", "fail", "", "error: no memory"),
        ("not ok 1 a # skipped 3 of 9 checks", "fail", "", "skipped 3 of 9 checks"),
        ("ok 1 a # rcode=0", "pass", "", "rcode=0"),
        ("not ok 1 a # exit=139", "fail", "", "exit=139"),
        ("ok 1 - a", "pass", "", ""),
    ],
)
def test_directives(line: str, status: str, directive: str, reason: str) -> None:
    (test,) = parse(f"TAP version 13\n1..1\n{line}\n").tests
    assert (test.name, test.status, test.directive, test.reason) == ("a", status, directive, reason)


def test_a_name_may_hold_a_hash() -> None:
    names = ["queue #3", "C# binding", "a\\#b"]
    found = parse("TAP version 13\n1..3\nok 1 queue \\#3\nok 2 C# binding\nok 3 a\\\\#b\n")
    assert [test.name for test in found.tests][:2] == names[:2]


def test_results_without_numbers_count_in_a_document_and_nowhere_else() -> None:
    found = parse("TAP version 13\n1..2\nok - a\nnot ok - b\n")
    assert tree(found.tests) == [("a", "pass"), ("b", "fail")]
    assert len(found.errors) == 2
    assert parse("ok\nnot ok whatever\nok then\n").tests == []


def test_bailing_out_fails_and_leaves_the_rest_missing() -> None:
    found = parse("TAP version 13\n1..3\nok 1 a\nBail out! no memory\n")
    assert (found.status, found.bail_out) == ("fail", "no memory")
    assert tree(found.tests) == [("a", "pass"), ("test 2", "missing"), ("test 3", "missing")]
    assert parse("TAP version 13\nok 1 a\nBail out!\n").status == "fail"
    nested = parse(
        "TAP version 13\n1..1\n# TAP version 13\n# ok 1 a\n# Bail out! broken\nok 1 selftests: x\n"
    )
    assert (nested.status, nested.tests[0].diagnostics) == ("fail", ["bailed out: broken"])


def test_documents_one_after_another_are_all_read() -> None:
    module = (
        "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: {0}\n    1..1\n    ok 1 {0}_a\nok 1 {0}\n"
    )
    found = parse(module.format("first") + "modprobe: done\n" + module.format("second"))
    assert [test.title for test in found.tests] == ["first", "second"]
    assert (found.plan, found.status, found.errors) == (2, "pass", [])


def test_a_document_that_another_one_cuts_off_is_crashed() -> None:
    found = parse("KTAP version 1\n1..2\nok 1 a\nKTAP version 1\n1..1\nok 1 b\n")
    assert tree(found.tests) == [("a", "pass"), ("test 2", "crashed"), ("b", "pass")]


def test_a_suite_without_a_result_is_a_crashed_one_beside_the_next() -> None:
    found = parse(
        "KTAP version 1\n1..2\n    KTAP version 1\n    # Subtest: one\n    1..2\n    ok 1 a\n"
        "    KTAP version 1\n    # Subtest: two\n    1..1\n    ok 1 b\nok 2 two\n"
    )
    assert tree(found.tests) == [
        ("one", "crashed", [("a", "pass"), ("test 2", "crashed")]),
        ("two", "pass", [("b", "pass")]),
    ]


def test_programs_of_one_kselftest_that_each_print_a_document() -> None:
    found = parse(
        "TAP version 13\n1..1\n# TAP version 13\n# 1..1\n# ok 1 a\n# TAP version 13\n# 1..2\n# ok 1 b\n"
        "# ok 2 c\nok 1 selftests: two programs\n"
    )
    assert tree(found.tests) == [
        ("selftests: two programs", "pass", [("a", "pass"), ("b", "pass"), ("c", "pass")])
    ]
    assert found.errors == []


def test_kunit_in_the_kernel_while_a_program_of_kselftest_runs() -> None:
    kunit = ktap_logs.KUNIT.splitlines()
    program = (
        "TAP version 13\n1..2\n# selftests: lib: modprobe\n"
        + "ok 1 selftests: lib: modprobe\nok 2 selftests: lib: b\n"
    )
    lines = program.splitlines()
    mixed = parse("\n".join([*lines[:3], *kunit[:9], lines[3], *kunit[9:], lines[4]]))
    alone = parse(ktap_logs.KUNIT)
    assert tree(mixed.tests)[2:] == tree(alone.tests)
    assert tree(mixed.tests)[:2] == [("selftests: lib: modprobe", "pass"), ("selftests: lib: b", "pass")]
    assert mixed.errors == []


def test_a_line_that_the_kernel_printed_into() -> None:
    found = parse(
        "TAP version 13\n1..2\nok 1 first[   12.345678] random: crng init done\n test\nok 2 b\n"
        "login: [   13.000000] KTAP version 1\n[   13.000001] 1..1\n[   13.000002] ok 1 kernel\n"
    )
    assert tree(found.tests) == [("first", "pass"), ("b", "pass"), ("kernel", "pass")]
    assert found.tests[1].diagnostics == ["random: crng init done", " test"]


def test_a_log_whose_beginning_is_lost() -> None:
    found = parse("    ok 3 c\n    ok 4 d\nok 1 suite\nok 2 b\n")
    assert tree(found.tests) == [
        ("suite", "fail", [("test 1", "missing"), ("test 2", "missing"), ("c", "pass"), ("d", "pass")]),
        ("b", "pass"),
    ]


def test_yaml_after_a_result_belongs_to_it() -> None:
    found = parse("TAP version 13\n1..2\nnot ok 1 a\n  ---\n  got: 1\n  ...\nok 2 b\n")
    assert found.tests[0].diagnostics == ["got: 1"]
    assert found.tests[1].diagnostics == []


def test_plans_and_numbers_out_of_all_proportion_cost_nothing() -> None:
    found = parse("KTAP version 1\n1..999999999\nok 1 a\n")
    assert found.status == "fail"
    assert len(found.tests) == 1001
    assert "999998998 more" in found.tests[-1].diagnostics[-1]
    assert len(parse("KTAP version 1\nok 999999999 a\n").tests) == 1
    assert parse("KTAP version 1\nok " + "9" * 5000 + "\n").counts()["pass"] == 1


def test_an_endless_talker_is_cut_in_its_middle() -> None:
    found = parse("KTAP version 1\n1..1\n" + "".join(f"line {n}\n" for n in range(50_000)) + "ok 1 a\n")
    kept = found.tests[0].diagnostics
    assert (kept[0], kept[-1]) == ("line 0", "line 49999")
    assert len(kept) < 4000
    assert any("lines left out" in line for line in kept)


def test_nesting_without_end_is_read_as_remarks() -> None:
    text = "KTAP version 1\n" + "".join(f"{'  ' * n}ok 1 deep\n" for n in range(500))
    found = parse(text)
    assert found.counts()["total"] >= 1
    assert str(found)
    assert str(parse("".join(f"{'# ' * n}KTAP version 1\n" for n in range(500))))


FRAGMENTS = st.sampled_from(
    [
        "ok",
        "not ok",
        " 1",
        " 2",
        " 77",
        " name",
        " # SKIP",
        " # TODO",
        "KTAP version 1",
        "TAP version 13",
        "1..2",
        "1..0",
    ]
    + [
        "# ",
        "  ",
        "    ",
        "\n",
        "\r\n",
        "Bail out!",
        "# Subtest: x",
        "[    1.234567] ",
        "<6>",
        "\x1b[1m",
        "---",
        "...",
    ]
)


@settings(deadline=None, max_examples=100)
@given(st.binary() | st.lists(FRAGMENTS, max_size=60).map(lambda parts: "".join(parts).encode()))
def test_no_bytes_are_refused_and_what_is_found_can_be_written(data: bytes) -> None:
    found = parse(data)
    again = parse(str(found))
    assert again.counts() == found.counts()
    assert again.status == found.status or found.status in ("skip", "empty")
    assert str(again) == str(found)


def test_only_the_last_program_of_a_kselftest_that_failed_is_taken_for_crashed() -> None:
    found = parse(
        "TAP version 13\n1..1\n# TAP version 13\n# 1..2\n# ok 1 a\n# TAP version 13\n# 1..2\n# ok 1 b\n"
        "not ok 1 selftests: two programs # exit=139\n"
    )
    assert [child.status for child in found.tests[0].children] == ["pass", "missing", "pass", "crashed"]


def test_a_suite_whose_first_part_has_its_name_keeps_both_parts() -> None:
    part = "    KTAP version 1\n    # Subtest: {0}\n    1..1\n    ok 1 {1}\n"
    found = parse(
        "KTAP version 1\n1..1\n" + part.format("both", "a") + part.format("inner", "b") + "ok 1 both\n"
    )
    assert tree(found.tests) == [("both", "pass", [("a", "pass"), ("b", "pass")])]


def test_the_larger_of_two_plans_counts() -> None:
    found = parse("TAP version 13\n1..3\nok 1 a\n1..1\n")
    assert (found.plan, found.status) == (3, "fail")
    assert any("second plan" in error for error in found.errors)


def test_what_is_said_before_a_suites_plan_is_said_of_the_suite() -> None:
    suite = parse(ktap_logs.KUNIT).tests[0]
    assert suite.diagnostics[0] == "module: list_ops_test"
    assert suite.children[0].diagnostics == ["list_ops_init: initializing"]


def test_the_kernels_lines_after_its_own_tests_are_remarks_on_a_programs() -> None:
    kernel = "[    1.000000] KTAP version 1\n[    1.000001] 1..1\n[    1.000002] ok 1 a\n"
    found = parse("TAP version 13\n1..1\n" + kernel + "[    2.000000] eth0: link down\nnot ok 1 b\n")
    assert [test.diagnostics for test in found.tests if test.name == "b"] == [["eth0: link down"]]


def test_a_suite_of_an_older_kernel_without_a_result() -> None:
    found = parse(
        "TAP version 14\n1..2\n    # Subtest: one\n    1..2\n    ok 1 - a\n"
        "    # Subtest: two\n    1..1\n    ok 1 - b\nok 2 - two\n"
    )
    assert tree(found.tests) == [
        ("one", "crashed", [("a", "pass"), ("test 2", "crashed")]),
        ("two", "pass", [("b", "pass")]),
    ]
