"""How much memory this process has resident, and how much of it is the guest's RAM."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory


def resident(memory: GuestMemory) -> dict[str, int | None]:
    """``resident_kib`` and ``guest_kib`` now, from /proc/self/smaps (proc_pid_smaps(5)); None without procfs.

    The difference is what pyvmm itself costs: interpreter, modules, buffers.
    """
    starts = [(region.host_address, region.host_address + region.size) for region in memory.regions]
    total = guest = 0
    try:
        with open("/proc/self/smaps", "rb") as file:
            inside = False
            for line in file:
                if line.startswith(b"Rss:"):
                    size = int(line.split()[1])
                    total += size
                    guest += size if inside else 0
                elif line[:1] in b"0123456789abcdef":
                    low, high = (int(part, 16) for part in line.split(None, 1)[0].split(b"-"))
                    inside = any(low < end and start < high for start, end in starts)
    except (OSError, ValueError):
        return {"resident_kib": None, "guest_kib": None}
    return {"resident_kib": total, "guest_kib": guest}
