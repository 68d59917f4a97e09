"""The identification registers of ARM's PrimeCells: eight bytes at the end of their page (ARM DDI 0183, 3.3.14).

The peripheral's ID is a number of 32 bits: part (12), designer (8; 0x41 is ARM), revision (4), configuration (8).
"""

from __future__ import annotations

CELL_ID = 0xB105_F00D
FIRST_ID, FIRST_CELL_ID, END = 0xFE0, 0xFF0, 0x1000


def identification(peripheral_id: int, offset: int) -> int:
    """The register at ``offset``: a byte of either ID in its place, and zero elsewhere."""
    if offset < FIRST_ID or offset >= END or offset & 3:
        return 0
    number = CELL_ID if offset >= FIRST_CELL_ID else peripheral_id
    return number >> (offset & 0xC) * 2 & 0xFF
