"""The console: nothing lost, texts found however the stream is cut, readers that stall or go away."""

from __future__ import annotations

import os
import threading

import pytest

from pyvmm.console import FULL_BYTES, TAIL_BYTES, Console, Watch
from pyvmm.terminal import OutputClosed


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            pass


def feed(console: Console, data: bytes) -> list[Watch]:
    for byte in data:
        console.put(byte)
    return console.collect()


def test_bytes_come_out_as_they_went_in(pipe):
    read, write = pipe
    console = Console([(write, "a pipe")])
    data = bytes(range(256)) * 8
    feed(console, data)
    console.flush()
    assert os.read(read, 65536) == data
    assert console.total == len(data)
    console.close()


def test_the_event_loop_is_woken_once_for_a_burst():
    console = Console()
    for byte in b"burst":
        console.put(byte)
    assert os.eventfd_read(console.wake_fd) == 1
    console.collect()
    console.put(1)
    assert os.eventfd_read(console.wake_fd) == 1
    console.close()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_text_is_found_across_any_cut(cut):
    watch = Watch("expect", b"login: ")
    console = Console(watches=[watch])
    text = b"Debian\nhost login: "
    at = len(text) - cut
    assert feed(console, text[:at]) == []
    assert feed(console, text[at:]) == [watch]
    assert console.line_with(watch) == "host login:"
    assert feed(console, text) == []  # once is enough
    console.close()


def test_a_text_one_byte_at_a_time():
    watch = Watch("expect", b"abcabd")
    console = Console(watches=[Watch("other", b"z"), watch])
    found = [feed(console, bytes([byte])) for byte in b"abcabcabd"]
    assert found[:-1] == [[]] * 8
    assert found[-1] == [watch]
    console.close()


def test_the_tail_is_bounded_and_is_the_end():
    console = Console()
    for number in range(8):
        feed(console, bytes([48 + number]) * TAIL_BYTES)
    assert console.tail() == "7" * TAIL_BYTES
    console.close()


def test_a_reader_that_stalls_loses_nothing_and_holds_the_guest(pipe):
    read, write = pipe
    console = Console([(write, "a pipe")])
    size = FULL_BYTES + 200_000
    feed(console, b"x" * size)
    console.flush()
    assert console.full, "the guest has to wait now"
    assert console.blocked() == [write]
    got = 0
    while got < size:
        got += len(os.read(read, 1 << 20))
        console.flush()
    assert not console.full
    assert console.blocked() == []
    console.close()


def test_a_guest_that_waits_is_let_go_at_the_end():
    console = Console()
    console.full = True
    ends: list[object] = []
    waiting = threading.Thread(target=console.wait_for_room, args=(ends,))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    ends.append(object())
    waiting.join(5)
    assert not waiting.is_alive()
    console.close()


def test_a_reader_that_goes_away_is_told(pipe):
    read, write = pipe
    console = Console([(write, "a pipe")])
    os.close(read)
    feed(console, b"x")
    with pytest.raises(OutputClosed):
        console.flush()
    feed(console, b"yz")
    console.flush()  # told once
    assert console.lost() == {"a pipe": 3}
    assert console.blocked() == []
    console.close()


def test_an_output_that_fails_does_not_take_the_others_down(pipe, tmp_path):
    read, write = pipe
    os.close(read)
    with (tmp_path / "log").open("wb") as log:
        console = Console([(write, "a pipe"), (log.fileno(), "the log")])
        feed(console, b"all of it")
        with pytest.raises(OutputClosed):
            console.flush()
    assert (tmp_path / "log").read_bytes() == b"all of it"
    assert console.lost() == {"a pipe": 9}
    console.close()


def test_a_line_quoted_in_a_message_is_bounded():
    watch = Watch("panic", b"panic")
    console = Console(watches=[watch])
    feed(console, b"x" * 5000 + b"panic" + b"y" * 5000)
    assert len(console.line_with(watch)) == 200
    console.close()


def test_threads_lose_nothing():
    console = Console([])
    count = 200_000
    seen = 0

    def guest() -> None:
        for number in range(count):
            console.put(number & 0xFF)

    thread = threading.Thread(target=guest)
    thread.start()
    while thread.is_alive():
        console.collect()
    console.collect()
    seen = console.total
    assert seen == count
    console.close()


def test_blocks_and_single_bytes_keep_their_order(pipe):
    read, write = pipe
    watch = Watch("expect", b"login:")
    console = Console([(write, "a pipe")], [watch])
    console.put(ord("l"))
    console.put_bytes(memoryview(b"ogi"))
    assert os.eventfd_read(console.wake_fd) == 1, "woken once"
    console.put(ord("n"))
    console.put_bytes(b": ")
    assert console.collect() == [watch]
    console.flush()
    assert os.read(read, 100) == b"login: "
    console.close()


def test_whoever_waits_for_room_is_told_once_there_is_some():
    console = Console()
    told: list[str] = []
    console.put_bytes(b"x" * (FULL_BYTES + 1))
    assert console.full
    console.when_room(lambda: told.append("a"))
    console.when_room(lambda: told.append("b"))
    console.flush()
    assert told == [], "nothing has been collected yet"
    console.collect()
    console.flush()
    assert sorted(told) == ["a", "b"]
    os.eventfd_read(console.wake_fd)
    console.when_room(lambda: told.append("c"))
    assert os.eventfd_read(console.wake_fd), "there is room already: the loop has to come by"
    console.flush()
    console.flush()
    assert sorted(told) == ["a", "b", "c"]
    console.close()
