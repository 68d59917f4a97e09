"""The errors of boot parameters: lists of them, and the configurators for the zero page, PVH and FDT."""

from __future__ import annotations

from loader.errors import LoaderError


class BootParamsError(LoaderError):
    """Something is wrong with a list of boot parameters."""


class MissingStartAddress(BootParamsError):
    """An element was added to a list that has no start address yet."""


class BootParamsOverflow(BootParamsError):
    """A list would end past the 64-bit address space (``Overflow`` of the crate)."""


class InvalidAddress(BootParamsError):
    """An element was added in front of its list."""


class BootParamsGap(BootParamsError):
    """An element was added so far from its list that the gap would be all the list is. (ours)"""


class ConfiguratorError(LoaderError):
    """The boot parameters cannot be made or written."""


class LinuxConfiguratorError(ConfiguratorError):
    """Something is wrong with a zero page."""


class ZeroPagePastRamEnd(LinuxConfiguratorError):
    """The zero page does not lie in RAM."""


class ZeroPageSetup(LinuxConfiguratorError):
    """A value does not fit its field of the zero page, or it cannot be written."""


class InvalidE820(LinuxConfiguratorError):
    """The memory map has too few or too many entries, or an impossible one. (ours)"""


class SetupDataPastRamEnd(LinuxConfiguratorError):
    """The setup_data list does not lie in RAM. (ours)"""


class PvhConfiguratorError(ConfiguratorError):
    """Something is wrong with the PVH start_info and its tables."""


class MemmapTableMissing(PvhConfiguratorError):
    """A PVH guest needs a memory map."""


class MemmapTableAddressMissing(PvhConfiguratorError):
    """No address was given for the memory map."""


class MemmapTablePastRamEnd(PvhConfiguratorError):
    """The memory map does not lie in RAM."""


class MemmapTableSetup(PvhConfiguratorError):
    """The memory map has too many entries, an impossible one, or cannot be written."""


class StartInfoPastRamEnd(PvhConfiguratorError):
    """The start_info does not lie in RAM."""


class StartInfoSetup(PvhConfiguratorError):
    """A value does not fit the start_info, or it cannot be written."""


class ModulesAddressMissing(PvhConfiguratorError):
    """No address was given for the module list."""


class ModulesSetup(PvhConfiguratorError):
    """The module list is not in RAM, or cannot be written."""


class FdtConfiguratorError(ConfiguratorError):
    """The device tree blob cannot be handed to the kernel."""


class FDTPastRamEnd(FdtConfiguratorError):
    """The blob would end past the last address of RAM."""


class WriteFDTToMemory(FdtConfiguratorError):
    """The blob would lie in a hole of RAM."""
