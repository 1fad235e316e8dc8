# Copyright 2026
"""The sizes that the CPU kernels and their callers share; nothing here imports anything."""

LANES = 32  # of a vector; in float32 two of the widest registers, so that a sum over lanes is paid for every second one
BLOCK = 256  # channels of a work item, a multiple of LANES; long rows are what memory is fast at
CHUNK = 16  # tokens of a row that are worked on at once; between two of its chunks the scan saves its state
MAX_GROUPS = 16  # groups of batch rows: bounds the memory of partial sums and sets the threads that can help


def whole_lanes(width: int) -> int:
    """Fill a width up to whole vectors."""
    return -(-width // LANES) * LANES
