"""What a guest is given so that commands run in it with nothing but its kernel: an initramfs with pyvmm's agent as its
init, the drivers that the kernel has as modules, and what the agent has to know of roots and shares."""

from __future__ import annotations

from collections.abc import Sequence

from pyvmm.agent import Mount, agent_entries
from pyvmm.api.root import AGENT_DRIVERS, SHARE_DRIVERS, Root, Share
from pyvmm.initramfs import archive
from pyvmm.lab.choice import architecture_for
from pyvmm.modules import Module

__all__ = ["Guest"]


class Guest:
    """A guest for ``kernel``.

    ``root``: as of :class:`Root`, or its text.  ``modules``: where the kernel's modules are, None: where they are found
    by themselves.  ``drivers``: modules by name that are loaded too.  ``rodirs``, ``rwdirs``: directories, as of
    :class:`pyvmm.api.root.Share`.
    """

    def __init__(
        self,
        kernel: str,
        *,
        root: Root | str | None = None,
        modules: str | None = None,
        drivers: Sequence[str] = (),
        rodirs: Sequence[str] = (),
        rwdirs: Sequence[str] = (),
    ) -> None:
        self.root = root if isinstance(root, Root) else Root(root or "initramfs")
        self._kernel = kernel
        self._modules = modules
        self._drivers = list(drivers)
        texts = [*((text, False) for text in rodirs), *((text, True) for text in rwdirs)]
        self._shares = [Share(text, number, writable=may) for number, (text, may) in enumerate(texts)]

    def devices(self) -> list[str]:
        """The devices that the root and the shares need, as ``pyvmm boot`` takes them; the root's is the first."""
        return [*self.root.devices(), *(share.device() for share in self._shares)]

    @property
    def writes(self) -> bool:
        """Whether the guest can write to files of the host's, so that it has to end in order."""
        return (self.root.writable and self.root.kind != "initramfs") or any(
            each.writable for each in self._shares
        )

    def initramfs(self) -> bytes:
        """The archive.

        :raises UsageError: a module that is needed is not there
        """
        mounts = [Mount(share.tag, share.guest, read_only=not share.writable) for share in self._shares]
        entries = agent_entries(
            architecture_for(self._kernel),
            modules=[(module.name, module.data()) for module in self._load_order()],
            root=self.root.spec(), mounts=mounts,
        )  # fmt: skip
        return archive(entries)

    def _load_order(self) -> list[Module]:
        needed = [
            *AGENT_DRIVERS,
            *self.root.drivers(),
            *(SHARE_DRIVERS if self._shares else ()),
        ]
        from pyvmm.lab.kernel_modules import load_order

        return load_order(
            self._kernel, self._modules, needed, self._drivers
        )  # the agent says what is missing
