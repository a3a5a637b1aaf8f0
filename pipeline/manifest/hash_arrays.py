"""Arrays of names that are hashes, which take a tenth of the memory of texts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 12
NAME_BYTES = HASH_BYTES + 2  # of a part: the chunk's name, which is a hash, and the generation
BLOCK_LENGTH = 2**16  # of what is compared, or made to objects, at once


def are_among(values: NDArray[np.bytes_], sorted_values: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """A mask of the values that are among the others, which are sorted."""
    found = np.zeros(len(values), bool)
    for start in range(0, len(values) if len(sorted_values) else 0, BLOCK_LENGTH):
        block = values[start : start + BLOCK_LENGTH]
        positions = np.minimum(np.searchsorted(sorted_values, block), len(sorted_values) - 1)
        found[start : start + len(block)] = sorted_values[positions] == block
    return found
