"""A long indirect table, read in one go where it looks as drivers usually write it.

virtio 1.2, section 2.7.5.3.  A disk's request of 1 MiB has some 256 buffers, and following them one by one costs more
than the transfer.  Linux and others write such a table in order: each descriptor goes on with the next one, and all
are for the device to read but the last (a write), or to write but the first (a read).  For a table like that, lists
do the work; whatever looks different, right or wrong, is for :meth:`pyvmm.devices.virtio.queue.Queue.pop` to follow.
"""

from __future__ import annotations

from functools import cache
from operator import add
from struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    Buffers = list[tuple[int, int]]

#: Tables with fewer descriptors are followed one by one, which is as quick.
FEWEST = 18

_NEXT, _WRITE = 1, 2
#: The most descriptors in a table that is looked at; longer ones are followed one by one.
_MOST = 1024


@cache
def _tails(flags: int) -> memoryview:
    """What descriptor n of a table with these ``flags`` says after its length: flags | next << 16."""
    return memoryview(pack(f"{_MOST}I", *(flags | follower << 16 for follower in range(1, _MOST + 1)))).cast(
        "I"
    )


def usual(table: memoryview, start: int, end: int) -> tuple[Buffers, Buffers, int, int] | None:
    """The buffers to read, those to write, and the sizes of both together; None if ``table`` is unusual.

    All buffers lie in guest addresses from ``start`` to ``end`` (exclusive).  What is returned was read once.
    """
    words = table.cast("I")
    tails = words[3::4]
    count = len(tails)
    if count > _MOST or tails[count - 1] & 0xFFFF != _WRITE or tails[0] != _NEXT | 1 << 16:
        return None
    if tails[1 : count - 1] == _tails(_NEXT | _WRITE)[1 : count - 1]:
        first = 1
    elif tails[1 : count - 1] == _tails(_NEXT)[1 : count - 1]:
        first = count - 1
    else:
        return None
    addresses, sizes = table.cast("Q")[::2].tolist(), words[2::4].tolist()
    if not min(sizes) or min(addresses) < start or max(map(add, addresses, sizes)) > end:
        return None
    buffers = list(zip(addresses, sizes, strict=True))
    return buffers[:first], buffers[first:], sum(sizes[:first]), sum(sizes[first:])
