"""A FUSE client in this process, for tests of shared directories: a few requests of Linux <linux/fuse.h>."""

from __future__ import annotations

import os
import struct

from virtio_driver import Driver

LOOKUP, MKDIR, OPEN, READ, INIT = 1, 9, 14, 15, 26  # linux/fuse.h


class Guest:
    """A FUSE client on the first request queue; INIT is done."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        error, answer = self.ask(INIT, 0, struct.pack("<IIII", 7, 31, 0, 0), 64)
        assert error == 0 and struct.unpack_from("<I", answer) == (7,)

    def ask(self, operation: int, node: int, body: bytes, room: int) -> tuple[int, bytes]:
        """(errno, answer) of a request about inode ``node``."""
        header = struct.pack("<IIQQIIII", 40 + len(body), operation, 1, node, 0, 0, 1, 0)
        (answer,) = self.driver.request(1, [header + body], [16 + room])
        length, error, _ = struct.unpack_from("<IiQ", answer)
        return -error, answer[16:length]

    def read(self, name: bytes) -> bytes:
        error, entry = self.ask(LOOKUP, 1, name + b"\0", 128)
        assert error == 0
        (node,) = struct.unpack_from("<Q", entry)
        error, opened = self.ask(OPEN, node, struct.pack("<II", os.O_RDONLY, 0), 16)
        assert error == 0
        (handle,) = struct.unpack_from("<Q", opened)
        error, data = self.ask(READ, node, struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0), 4096)
        assert error == 0
        return data

    def mkdir(self, name: bytes) -> int:
        return self.ask(MKDIR, 1, struct.pack("<II", 0o755, 0) + name + b"\0", 128)[0]
