"""``python -m pyvmm.lab.agent``: greet, store, run, fetch; one request after the other."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import time
import traceback

from pyvmm.lab import protocol
from pyvmm.lab.agent.channel import Channel, open_port, power_off
from pyvmm.lab.agent.job import Job
from pyvmm.lab.protocol import COUNT, Kind, frame, message
from pyvmm.lab.transfer import READ_SIZE, Incoming, Outgoing, send_contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAILBOX = "/dev/vda"
RNDADDENTROPY = 0x40085203  # <linux/random.h>
RNDRESEEDCRNG = 0x5207
TIMER_ABSTIME = 1  # <linux/time.h>


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def set_timers_anew() -> None:
    """Have every processor's timer set for what it waits for.

    QEMU saves the timers of EL1 but not those of EL2 (its target/arm/machine.c), where an Arm kernel with KVM lives.
    A kernel takes a timer that it has set for granted and only sets it anew for something that is due earlier; so here
    each processor sleeps until a time long past.
    """
    sleep = ctypes.CDLL(None).clock_nanosleep
    processors = os.sched_getaffinity(0)
    for processor in sorted(processors):
        os.sched_setaffinity(0, {processor})
        sleep(time.CLOCK_MONOTONIC, TIMER_ABSTIME, ctypes.byref(_Timespec(0, 1)), None)
    os.sched_setaffinity(0, processors)


class Agent:
    """Answers the host's requests, one after the other."""

    def __init__(self) -> None:
        self._channel = Channel(open_port())
        self._incoming: Incoming | None = None
        wakeup, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = wakeup
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer requests until the host goes away."""
        while True:
            kind, payload = self._channel.receive()
            try:
                self._answer(kind, payload)
            except (OSError, protocol.ProtocolError, ValueError) as error:
                if self._incoming is not None and kind in (Kind.PUT, Kind.CONTENT):
                    self._incoming.abandon()
                self._incoming = None
                text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
                self._channel.send(message(Kind.FAILED, {"message": text}))
            self._channel.flush()

    def _answer(self, kind: int, payload: bytes) -> None:
        if kind == Kind.HELLO:
            self._hello(json.loads(payload))
        elif kind == Kind.PUT:
            self._incoming = Incoming(json.loads(payload))
            self._stored()
        elif kind == Kind.CONTENT:
            if self._incoming is not None:
                self._take(self._incoming, COUNT.unpack(payload)[0])
            self._channel.send(frame(Kind.TAKEN))
            self._stored()
        elif kind == Kind.RUN:
            self._run(json.loads(payload))
        elif kind == Kind.GET:
            self._get(json.loads(payload)["paths"])
        # Late STDIN, ACK, SIGNAL and RESIZE frames of a command that has ended need no answer.

    @staticmethod
    def _take(incoming: Incoming, count: int) -> None:
        """Feed a transfer what is in the mailbox, read past the page cache, which knows an older content."""
        mailbox = os.open(MAILBOX, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, READ_SIZE) as buffer, memoryview(buffer) as view:
                for position in range(0, count, READ_SIZE):
                    if os.preadv(mailbox, [buffer], position) < min(READ_SIZE, count - position):
                        raise protocol.ProtocolError("the mailbox is too small")
                    with view[: min(READ_SIZE, count - position)] as piece:
                        incoming.feed(piece)
        finally:
            os.close(mailbox)

    def _stored(self) -> None:
        if self._incoming is not None and self._incoming.done:
            self._incoming = None
            self._channel.send(frame(Kind.STORED))

    def _hello(self, hello: dict[str, Any]) -> None:
        """Take over what must not be the same in every lab started from one saved state."""
        set_timers_anew()
        time.clock_settime_ns(time.CLOCK_REALTIME, hello["time_ns"])
        seed = bytes.fromhex(hello["entropy"])
        with open("/dev/urandom", "wb") as random:
            fcntl.ioctl(random, RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
            fcntl.ioctl(random, RNDRESEEDCRNG)
        self._channel.send(
            message(Kind.READY, {"version": protocol.VERSION, "python": list(sys.version_info[:3])})
        )

    def _run(self, request: dict[str, Any]) -> None:
        os.makedirs(request["cwd"], exist_ok=True)
        job = Job(self._channel, self._wakeup, request)
        status = job.run()
        if job.failure:
            number, _, text = job.failure.partition(":")
            status = 127 if int(number) in (errno.ENOENT, errno.ENOTDIR) else 126
            self._channel.send(message(Kind.EXIT, {"status": status, "error": text}))
        else:
            self._channel.send(message(Kind.EXIT, {"status": status, "error": ""}))

    def _get(self, paths: list[str]) -> None:
        transfer = Outgoing()
        for path in paths:
            if os.path.lexists(path):
                transfer.add_tree(path)
        self._channel.send(message(Kind.FILES, transfer.entries))
        mailbox = os.open(MAILBOX, os.O_WRONLY | os.O_CLOEXEC)
        try:
            send_contents(transfer, mailbox, lambda count: self._announce(mailbox, count))
        finally:
            os.close(mailbox)

    def _announce(self, mailbox: int, count: int) -> None:
        """Say that so many bytes are in the mailbox, and wait until they are taken."""
        os.fsync(mailbox)
        self._channel.send(frame(Kind.CONTENT, COUNT.pack(count)))
        while self._channel.receive()[0] != Kind.TAKEN:
            pass


def main() -> None:
    """Serve for ever; an error on our side is shown on the lab's console and ends the lab."""
    try:
        Agent().serve()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        power_off()


if __name__ == "__main__":
    main()
