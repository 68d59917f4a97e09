"""Splats found on a console: each kind by the kernel's text, what is none, whole reports, and any cut of the log."""

from __future__ import annotations

import doctest
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvmm.splats
from pyvmm.errors import UsageError
from pyvmm.splats import MOST_LINES, Splat, SplatWatcher, find

#: Boots, and then goes wrong in several ways; with the marks of printk as a console has them.
LOG = b"""\
[    0.000000] Linux version 6.12.0 (builder@host) #1 SMP PREEMPT_DYNAMIC\r
[    0.100000] Kernel command line: console=ttyS0 panic=-1\r
DEBUG: starting\r
there is no BUG: here\r
[    1.000000] ------------[ cut here ]------------\r
[    1.000001] refcount_t: underflow; use-after-free.\r
[    1.000002] WARNING: CPU: 0 PID: 1 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110\r
[    1.000003] Modules linked in:\r
[    1.000004] Call Trace:\r
[    1.000005]  <TASK>\r
[    1.000006]  do_one_initcall+0x5b/0x300\r
[    1.000007]  </TASK>\r
[    1.000008] ---[ end trace 0000000000000000 ]---\r
[    1.100000] systemd[1]: Started something.\r
[    2.000000] ==================================================================\r
[    2.000001] BUG: KASAN: slab-use-after-free in kfree_test+0x12/0x40\r
[    2.000002] Write of size 8 at addr ffff888003a4c000 by task insmod/77\r
[    2.000003] Call Trace:\r
[    2.000004]  kasan_report+0xc7/0x100\r
[    2.000005] Allocated by task 77:\r
[    2.000006] ==================================================================\r
[    2.000007] Disabling lock debugging due to kernel taint\r
[    3.000000] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585\r
[    3.000001] in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 77, name: insmod\r
[    4.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008\r
[    4.000001] #PF: supervisor read access in kernel mode\r
[    4.000002] Oops: Oops: 0000 [#1] PREEMPT SMP KASAN\r
[    4.000003] RIP: 0010:crash+0x8/0x10\r
[    4.000004] ---[ end trace 0000000000000000 ]---\r
[    4.000005] Kernel panic - not syncing: Fatal exception\r
[    4.000006] Kernel Offset: disabled\r
[    4.000007] ---[ end Kernel panic - not syncing: Fatal exception ]---\r
"""

KINDS = ["refcount", "KASAN", "BUG", "Oops", "panic"]


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("panic", "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"),
        ("WARNING", "WARNING: CPU: 1 PID: 77 at net/core/dev.c:123 dev_close+0x1/0x2 [veth]"),
        ("WARNING", "WARNING: net/core/dev.c:123 at dev_close+0x1/0x2, CPU#1: insmod/77"),
        ("WARNING", "WARNING: kernel stack frame pointer at ffff in swapper/0:1 has bad value ffff"),
        ("BUG", "kernel BUG at mm/slub.c:4433!"),
        ("BUG", "BUG: scheduling while atomic: insmod/77/0x00000002"),
        ("BUG", "BUG: sleeping function called from invalid context at mm/slab.h:1"),
        ("BUG", "BUG: Bad page state in process insmod  pfn:03a4c"),
        ("BUG", "BUG: using smp_processor_id() in preemptible [00000000] code: insmod/77"),
        ("BUG", "BUG kmalloc-64 (Not tainted): Poison overwritten"),
        ("Oops", "BUG: unable to handle page fault for address: ffffffffdeadbeef"),
        ("Oops", "BUG: kernel NULL pointer dereference, address: 0000000000000000"),
        ("Oops", "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008"),
        ("Oops", "Unable to handle kernel paging request at virtual address dead000000000108"),
        ("Oops", "Internal error: Oops: 0000000096000004 [#1] PREEMPT SMP"),
        ("Oops", "Internal error: Oops - BUG: 00000000f2000800 [#1] SMP"),
        ("Oops", "general protection fault: 0000 [#1] SMP"),
        (
            "Oops",
            "general protection fault, probably for non-canonical address 0xdead00000108: 0000 [#1] PREEMPT SMP",
        ),
        (
            "Oops",
            "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#2] SMP NOPTI",
        ),
        ("Oops", "invalid opcode: 0000 [#1] PREEMPT SMP"),
        ("Oops", "divide error: 0000 [#1] SMP"),
        ("Oops", "Oops [#1]"),
        ("KASAN", "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2"),
        ("KMSAN", "BUG: KMSAN: uninit-value in f+0x1/0x2"),
        ("KCSAN", "BUG: KCSAN: data-race in f / g"),
        ("KFENCE", "BUG: KFENCE: use-after-free read in f+0x1/0x2"),
        ("UBSAN", "UBSAN: array-index-out-of-bounds in drivers/x/y.c:12:3"),
        ("UBSAN", "UBSAN: Undefined behaviour in lib/a.c:1:2"),
        ("soft lockup", "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [insmod:77]"),
        ("soft lockup", "NMI watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [insmod:77]"),
        ("hard lockup", "watchdog: Watchdog detected hard LOCKUP on cpu 1"),
        ("hard lockup", "NMI watchdog: Watchdog detected hard LOCKUP on cpu 1"),
        ("hard lockup", "watchdog: CPU1: Watchdog detected hard LOCKUP on cpu 0"),
        ("workqueue lockup", "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 43s!"),
        ("RCU stall", "rcu: INFO: rcu_preempt self-detected stall on CPU"),
        ("RCU stall", "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"),
        (
            "RCU stall",
            "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 0-... } 65 jiffies s: 1 root: 0x1/.",
        ),
        ("RCU stall", "INFO: rcu_tasks detected stalls on tasks:"),
        ("RCU stall", "rcu: rcu_preempt kthread starved for 2104 jiffies! g1 f0x0 RCU_GP_WAIT_FQS(5)"),
        ("hung task", "INFO: task insmod:77 blocked for more than 120 seconds."),
        ("hung task", "INFO: task kworker/u8:1:12 blocked in I/O wait for more than 120 seconds."),
        ("lockdep", "WARNING: possible circular locking dependency detected"),
        ("lockdep", "WARNING: possible recursive locking detected"),
        ("lockdep", "WARNING: possible irq lock inversion dependency detected"),
        ("lockdep", "WARNING: inconsistent lock state"),
        ("lockdep", "WARNING: suspicious RCU usage"),
        ("lockdep", "WARNING: bad unlock balance detected!"),
        ("lockdep", "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected"),
        ("lockdep", "WARNING: lock held when returning to user space!"),
        ("lockdep", "INFO: trying to register non-static key."),
        ("lockdep", "[ BUG: Invalid wait context ]"),
        ("lockdep", "BUG: MAX_LOCKDEP_CHAINS too low!"),
        ("refcount", "refcount_t: addition on 0; use-after-free."),
        ("netdevice", "unregister_netdevice: waiting for lo to become free. Usage count = 2"),
        ("kmemleak", "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)"),
        ("irq", 'irq 9: nobody cared (try booting with the "irqpoll" option)'),
    ],
)
def test_each_kind_by_the_kernels_text(kind: str, line: str) -> None:
    for before in (
        "",
        "[    1.234567] ",
        "<4>[    1.234567][   T77] ",
        "[   12.345678][    C0] ",
        "\x1b[31m",
    ):
        (splat,) = find(f"quiet\n{before}{line}\r\nmore\n".encode())
        assert (splat.kind, splat.line, splat.offset) == (kind, line, 6)
    (splat,) = find(f"login: [   12.345678] {line}\n".encode())
    assert (splat.kind, splat.line) == (kind, line)


@pytest.mark.parametrize(
    "line",
    [
        "DEBUG: something",
        "there is no BUG: here",
        "echo 'BUG: nothing'",
        "[    1.234567] mydriver: DEBUG: all well",
        "[    1.234567] audit: no BUG: here",
        "WARNING: this option is deprecated",
        "WARNING: CPU frequency scaling is on",
        "Oops: I forgot",
        "[    1.234567] Call Trace:",
        "[    1.234567] sysrq: Show backtrace of all active CPUs",
        "[    1.234567] traps: app[77] general protection fault ip:55 sp:7f error:0 in app[55+1]",
        "[    1.234567] app[77]: segfault at 0 ip 55 sp 7f error 4 in app[55+1]",
        "[    1.234567] lockdep: debug info enabled",
        "[    1.234567] rcu: Hierarchical RCU implementation.",
        "[    1.234567] INFO: lockdep is turned off.",
        "[    1.234567] panic_on_warn set ...",
        "[    1.234567] Kernel command line: panic=-1 debug",
        "[    1.234567] NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
        "[    1.234567] task insmod:77 blocked for more than 120 seconds",
        "[    0.000000] kmemleak: Kernel memory leak detector initialized",
        "not ok 1 BUG: a test's name",
        "# refcount_t: underflow",
    ],
)
def test_what_is_no_splat(line: str) -> None:
    assert find(line.encode() + b"\r\n") == []


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(pyvmm.splats) == (0, 1)


def test_a_log_with_several_kinds_of_them() -> None:
    found = find(LOG)
    assert [splat.kind for splat in found] == KINDS
    refcount, kasan, sleeping, oops, panic = found
    assert refcount.text.startswith(
        "------------[ cut here ]------------\nrefcount_t: underflow; use-after-free.\nWARN"
    )
    assert refcount.text.endswith("---[ end trace 0000000000000000 ]---")
    assert refcount.line == "refcount_t: underflow; use-after-free."
    assert LOG[refcount.offset :].startswith(b"[    1.000000] ------------[ cut here")
    assert kasan.text.splitlines()[-1].startswith("=====")
    assert len(kasan.lines) == 6
    assert sleeping.lines[1].startswith("in_atomic(): 1")
    assert [line.partition(":")[0] for line in oops.lines[:3]] == ["BUG", "#PF", "Oops"]
    assert panic.text.endswith("---[ end Kernel panic - not syncing: Fatal exception ]---")


def test_a_log_cut_everywhere_gives_the_same() -> None:
    whole = find(LOG)
    for cut in range(len(LOG) + 1):
        watcher = SplatWatcher()
        assert watcher.feed(LOG[:cut]) + watcher.feed(LOG[cut:]) + watcher.end() == whole, cut
    watcher = SplatWatcher()
    found: list[Splat] = []
    for index in range(len(LOG)):
        found += watcher.feed(LOG[index : index + 1])
    assert found + watcher.end() == whole


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from(LOG.splitlines(keepends=True)), max_size=30),
    st.lists(st.integers(1, 90), max_size=60),
)
def test_any_lines_in_any_pieces_give_the_same(lines: list[bytes], sizes: list[int]) -> None:
    log = b"".join(lines)
    watcher = SplatWatcher()
    found: list[Splat] = []
    position = 0
    for size in sizes:
        found += watcher.feed(log[position : position + size])
        position += size
    assert found + watcher.feed(log[position:]) + watcher.end() == find(log)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=2000))
def test_no_bytes_are_refused(data: bytes) -> None:
    for splat in find(b"BUG: x\n" + data):
        assert splat.text


def test_a_splat_is_given_out_as_soon_as_it_is_whole() -> None:
    watcher = SplatWatcher()
    end = LOG.index(b"---[ end trace")
    assert watcher.feed(LOG[:end]) == []
    assert watcher.current is not None
    assert watcher.current.kind == "refcount"
    (splat,) = watcher.feed(LOG[end : end + 60])
    assert splat.kind == "refcount"
    assert watcher.current is None


def test_the_allow_list_sees_the_whole_text_of_a_splat_and_nothing_else() -> None:
    found = find(LOG, [r"refcount_warn_saturate", re.compile("PREEMPT SMP KASAN")])
    assert [splat.kind for splat in found if splat.allowed] == ["refcount", "Oops"]
    assert [splat.allowed for splat in find(LOG, ["systemd", "Linux version", "DEBUG"])] == [False] * 5


def test_an_allowed_bug_does_not_swallow_the_oops_behind_it() -> None:
    log = b"BUG: scheduling while atomic: a/1/2\nBUG: unable to handle page fault\nOops: 0000 [#1] SMP\n"
    found = find(log, ["scheduling while atomic"])
    assert [(splat.kind, splat.allowed) for splat in found] == [("BUG", True), ("Oops", False)]
    died = b"BUG: scheduling while atomic: a/1/2\nOops: 0000 [#1] SMP\n"
    assert [splat.allowed for splat in find(died, ["scheduling while atomic"])] == [True, False]


def test_two_cpus_that_die_are_two_splats() -> None:
    log = b"Oops: 0000 [#1] SMP\nRIP: 0010:a\nOops: 0002 [#2] SMP\nRIP: 0010:b\n"
    assert [splat.text.split()[2] for splat in find(log)] == ["[#1]", "[#2]"]


def test_a_report_without_an_end_ends_with_its_trace_or_a_silence() -> None:
    task = "[  240.000000] INFO: task a:7 blocked for more than 120 seconds.\n"
    trace = "[  240.000001] Call Trace:\n[  240.000002]  <TASK>\n[  240.000003]  schedule+0x1/0x2\n"
    ended = find((task + trace + "[  240.000004]  </TASK>\n[  240.000005] eth0: link up\n").encode())
    assert [len(splat.lines) for splat in ended] == [5]
    silent = find((task + "[  241.000000] more of it\n[  250.000000] eth0: link up\n").encode())
    assert [len(splat.lines) for splat in silent] == [2]
    twice = find((task + task.replace("240.0", "360.0")).encode())
    assert len(twice) == 2
    assert len(find(b"BUG: x\n" + b"and more\n" * 10_000)[0].lines) == MOST_LINES


def test_what_a_program_prints_meanwhile_is_no_part_of_it() -> None:
    log = b"[    1.0] x\n[    1.000000] BUG: Bad page state\nhello\n[    1.000001] page:ffff\n"
    (splat,) = find(log)
    assert splat.lines == ["BUG: Bad page state", "page:ffff"]


def test_a_cut_with_nothing_known_behind_it_is_a_warning() -> None:
    (splat,) = find(b"------------[ cut here ]------------\nsomething new\n---[ end trace 0 ]---\n")
    assert (splat.kind, splat.line) == ("WARNING", "something new")


def test_a_bad_pattern_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no regular expression"):
        find(b"", ["(unclosed"])


def test_a_line_without_end_costs_no_memory() -> None:
    watcher = SplatWatcher()
    for _ in range(1000):
        assert watcher.feed(b"x" * 10_000) == []
    assert len(watcher._rest) == 4096
    (splat,) = watcher.feed(b"\nBUG: late\n") + watcher.end()
    assert splat.offset == 10_000_001


def test_a_big_quiet_console_is_looked_through_at_once() -> None:
    log = b"[    1.234567] usb 1-1: new high-speed device number 2, all quiet\n" * 400_000
    started = time.perf_counter()
    assert find(log) == []
    assert time.perf_counter() - started < 2.0, "25 MB"


def test_a_program_that_goes_on_printing_ends_a_splat_at_last() -> None:
    watcher = SplatWatcher()
    found = watcher.feed(b"[    1.000000] BUG: Bad page state\n" + b"hello\n" * (MOST_LINES + 1))
    assert [splat.lines for splat in found] == [["BUG: Bad page state"]]
