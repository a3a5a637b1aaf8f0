"""Bounds the cosines of many pairs of unit vectors from above, by products of short vectors.

A short vector holds the coordinates along the main directions of all vectors, and the length of what is left: the
product of two is never less than the cosine. On CPUs that multiply bytes fast, short vectors are rounded to bytes, and
the threshold is lowered by the most that rounding can change.
"""

from __future__ import annotations

import time

import torch

SHORT_NUMBERS = 96  # more cost more time, and fewer let more pairs pass
SAMPLE_ROWS = 4096
ROWS_AT_ONCE = 2**16
FLOAT_ROUNDING = 1e-5  # of a product, in float32
GREATEST_BYTE = 127
TIMED_PRODUCTS = 5


class CosineBounds:
    def __init__(self, vectors: torch.Tensor, *, in_bytes: bool):
        self.slack, self.unit = FLOAT_ROUNDING, 1.0
        directions, turn = find_directions(vectors)
        parts = torch.split(vectors, ROWS_AT_ONCE)
        if in_bytes:
            greatest = max((shorten(part, directions) @ turn).abs().max().item() for part in parts)
            self.unit = greatest / GREATEST_BYTE
        short, errors = [], [0.0]
        for part in parts:
            exact = shorten(part, directions) @ turn
            if in_bytes:
                rounded = (exact / self.unit).round()
                errors.append((exact - self.unit * rounded).norm(dim=1).max().item())
            short.append(rounded.to(torch.int8) if in_bytes else exact)
        error = max(errors)
        self.slack += 2 * error + error**2  # |x·y - x'·y'| for vectors of length 1 that each change by the error
        self.short = torch.cat(short)

    def create_product(self) -> torch.Tensor:
        """Memory for the products of one thread, which is faster if it is used again."""
        dtype = torch.int32 if self.short.dtype == torch.int8 else torch.float32
        return torch.empty(0, dtype=dtype, device=self.short.device)

    def find_candidates(
        self, rows: slice, columns: slice, least_cosine: float, product: torch.Tensor
    ) -> torch.Tensor | None:
        """Which pairs may have at least this cosine; None if no pair has it."""
        multiply(self.short[rows], self.short[columns], product)
        least_product = (least_cosine - self.slack) / self.unit**2
        return product >= least_product if product.amax() >= least_product else None


def multiply(rows: torch.Tensor, columns: torch.Tensor, product: torch.Tensor) -> None:
    product.resize_(len(rows), len(columns))
    if product.dtype == torch.int32:
        torch._int_mm(rows, columns.T, out=product)
    else:
        torch.mm(rows, columns.T, out=product)


def find_directions(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The main directions, and a random rotation of short vectors, after which no number is much larger than others."""
    sample = vectors[torch.linspace(0, len(vectors) - 1, min(len(vectors), SAMPLE_ROWS)).long()]
    directions = torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1)[:, : SHORT_NUMBERS - 1]
    size = directions.shape[1] + 1
    turn = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0))).Q
    return directions, turn.to(vectors.device)


def shorten(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """The coordinates along the directions, and the length of the rest."""
    coordinates = vectors @ directions
    rest = (1 - coordinates.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([coordinates, rest], 1)


def are_bytes_faster(row_count: int, column_count: int) -> bool:
    """Not all CPUs have instructions for products of bytes."""
    numbers = torch.randint(-GREATEST_BYTE, GREATEST_BYTE, (row_count + column_count, SHORT_NUMBERS))

    def measure(dtype: torch.dtype, product: torch.Tensor) -> float:
        rows, columns = torch.tensor_split(numbers.to(dtype), [row_count])
        times = []
        for _ in range(TIMED_PRODUCTS):
            start = time.perf_counter()
            multiply(rows, columns, product)
            times.append(time.perf_counter() - start)
        return min(times)

    in_bytes = measure(torch.int8, torch.empty(0, dtype=torch.int32))
    return in_bytes < measure(torch.float32, torch.empty(0))
