"""What an architecture's probe of KVM found."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal


class ProbeResult:
    """Whether a stock kernel can run.

    ``kind`` is ``"hardware"`` or ``"software"``, ``failed`` names the instructions that did not work,
    ``detail`` is one line for people, ``elapsed`` the seconds it took.
    """

    __slots__ = ("detail", "elapsed", "failed", "kind")

    def __init__(
        self, kind: Literal["hardware", "software"], failed: tuple[str, ...], detail: str, elapsed: float
    ) -> None:
        self.kind = kind
        self.failed = failed
        self.detail = detail
        self.elapsed = elapsed

    def __repr__(self) -> str:
        return f"ProbeResult({self.kind!r}, {self.detail!r}, {self.elapsed * 1000:.1f} ms)"
