"""Whitens vectors: moves them to their common center, and gives all directions the same spread.

Features that were trained for other ends than comparison have a few directions that vary much and say little. They
decide the cosine of such vectors, and what tells two rows apart is lost in it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import OutputError

ROWS_AT_ONCE = 2**16
LEAST_SPREAD = 0.03  # added to each direction's, as a share of the mean: some directions hold noise alone
UNKNOWN_SPREAD = 0.3  # the same for each number that a row has, divided by the rows: few tell little about directions


def whiten_vectors(vectors: NDArray[np.float32]) -> None:
    """Changes them in place. Their lengths are 1 before and after."""
    whole = torch.from_numpy(vectors)
    center, variances, directions = measure_spread(whole)
    if not variances.sum():
        raise OutputError("--whiten: all vectors are equal")
    mean_variance = variances.sum() / min(len(whole) - 1, len(variances))
    added_share = LEAST_SPREAD + UNKNOWN_SPREAD * whole.shape[1] / len(whole)
    scaled = directions / (variances + added_share * mean_variance).sqrt()
    for part in torch.split(whole, ROWS_AT_ONCE):
        part.copy_(torch.nn.functional.normalize((part.double() - center) @ scaled, dim=1))


def measure_spread(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean, and the variances along the main directions."""
    parts = torch.split(whole, ROWS_AT_ONCE)
    center = torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0) / len(whole)
    products = torch.zeros(whole.shape[1], whole.shape[1], dtype=torch.float64)
    for part in parts:
        offsets = part.double() - center
        products.addmm_(offsets.T, offsets)
    variances, directions = torch.linalg.eigh(products / max(1, len(whole) - 1))
    return center, variances.clamp(min=0), directions
