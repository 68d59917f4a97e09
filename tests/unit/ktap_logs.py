"""Logs as kselftest and KUnit print them, written from the formats (Documentation/dev-tools/ktap.rst)."""

from __future__ import annotations

#: A kernel with CONFIG_KUNIT: time stamps, a suite with a parameterised test, a failure, and messages in between.
KUNIT = """\
[    0.512345] pci 0000:00:01.0: vgaarb: bridge control possible
[    0.600000] KTAP version 1
[    0.600100] 1..2
[    0.600200]     KTAP version 1
[    0.600300]     # Subtest: list_ops
[    0.600400]     # module: list_ops_test
[    0.600500]     1..4
[    0.600600]     # list_ops_init: initializing
[    0.600700]     ok 1 list_ops_init
[    0.600800] random: crng init done
[    0.600900]     # list_ops_splice: EXPECTATION FAILED at lib/list_ops_test.c:65
[    0.601000]     Expected count == 3, but
[    0.601100]         count == 2 (0x2)
[    0.601200]     not ok 2 list_ops_splice
[    0.601300]     ok 3 list_ops_rcu # SKIP needs CONFIG_RCU_TORTURE
[    0.601400]         KTAP version 1
[    0.601500]         # Subtest: list_ops_sizes
[    0.601600]         ok 1 one entry
[    0.601700]         ok 2 many entries
[    0.601800]     # list_ops_sizes: pass:2 fail:0 skip:0 total:2
[    0.601900]     ok 4 list_ops_sizes
[    0.602000] # list_ops: pass:2 fail:1 skip:1 total:4
[    0.602100] # Totals: pass:3 fail:1 skip:1 total:5
[    0.602200] not ok 1 list_ops
[    0.602300]     KTAP version 1
[    0.602400]     # Subtest: hash_ops
[    0.602500]     1..1
[    0.602600]     ok 1 hash_ops_empty
[    0.602700] ok 2 hash_ops
[    0.700000] Freeing unused kernel image (initmem) memory: 2048K
"""

#: KUnit of kernels before 6.0: "TAP version 14", no version line for a suite, " - " before the names.
OLD_KUNIT = """\
TAP version 14
1..2
    # Subtest: sort
    1..2
    ok 1 - sort_empty
    ok 2 - sort_many
ok 1 - sort
    # Subtest: bits
    1..1
    not ok 1 - bits_set
not ok 2 - bits
"""

#: run_kselftest.sh on a console, with the kernel talking in between.
KSELFTEST = """\
TAP version 13
1..5
# timeout set to 45
# selftests: timers: posix_timers
# TAP version 13
# 1..3
# # Testing posix timers. False negative may happen on CPU execution
# ok 1 check itimer virtual
# not ok 2 check itimer prof
[   12.345678] hrtimer: interrupt took 1234567 ns
# ok 3 # XFAIL clock too coarse
# # Totals: pass:1 fail:1 xfail:1 xpass:0 skip:0 error:0
not ok 1 selftests: timers: posix_timers # exit=1
# timeout set to 45
# selftests: size: get_size
# TAP version 13
# 1..1
# ok 1 get runtime memory use
ok 2 selftests: size: get_size
# timeout set to 45
# selftests: net: slow.sh
# working ...
not ok 3 selftests: net: slow.sh # TIMEOUT 45 seconds
# timeout set to 45
# selftests: sgx: test_sgx
# TAP version 13
# 1..0 # SKIP no SGX here
ok 4 selftests: sgx: test_sgx # SKIP
# timeout set to 45
# selftests: cgroup: test_core
# ok 1 test_populated
# ok 2 test_nsdelegate # SKIP
ok 5 selftests: cgroup: test_core
"""

#: A kernel that died in the second test of the first of two suites.
CRASHED = """\
[    1.000000][    T1] KTAP version 1
[    1.000100][    T1] 1..2
[    1.000200][    T1]     KTAP version 1
[    1.000300][    T1]     # Subtest: ring
[    1.000400][    T1]     1..4
[    1.000500][    T1]     ok 1 ring_make
[    1.000600][    T1] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    1.000700][    T1] Kernel panic - not syncing: Fatal exception
"""
