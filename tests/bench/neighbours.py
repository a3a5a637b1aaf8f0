"""Near duplicates among many vectors: processor time and memory of the exact search, and how many pairs it finds.

    python tests/bench/neighbours.py [--rows 1000000] [--width 256] [--quick]

The vectors are random, and one row in a hundred has a near duplicate at the other end. The other side computes every
cosine in full, for as many rows as it takes to tell its speed. One thread, and processor time, so that other work on
the machine does not count.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.inspect.neighbours import vector_search
from tests.bench import harness

LEAST_COSINE = 0.95
FULL_ROWS = 20_000
ROWS_AT_ONCE = 65_536


def draw_vectors(count: int, width: int) -> tuple[vector_search.Vectors, int]:
    """And how many near duplicates there are."""
    rng, planted = np.random.default_rng(0), count // 100
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    vectors[-planted:] = vectors[:planted] + 0.05 * rng.standard_normal((planted, width), dtype=np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        vectors[start : start + ROWS_AT_ONCE] /= np.linalg.norm(vectors[start : start + ROWS_AT_ONCE], axis=1)[:, None]
    return vectors, planted


def measure_cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare_in_full(vectors: vector_search.Vectors) -> None:
    whole = torch.from_numpy(vectors)
    for top in range(0, len(vectors), vector_search.BLOCK_ROWS):
        for left in range(top, len(vectors), vector_search.BLOCK_COLUMNS):
            block = (
                slice(top, top + vector_search.BLOCK_ROWS),
                slice(left, left + vector_search.BLOCK_COLUMNS),
            )
            (whole[block[0]] @ whole[block[1]].T >= LEAST_COSINE).any()


def show_share(share: float) -> None:
    print(f"  {share:.1%}", file=sys.stderr, end="\r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    count = 30_000 if options.quick else options.rows
    torch.set_num_threads(1)
    vectors, planted = draw_vectors(count, options.width)
    groups: list[object] = []

    def group() -> None:
        pairs = vector_search.find_similar_pairs(vectors, LEAST_COSINE, show_share)
        groups.extend(vector_search.group_similar(pairs, count))

    seconds = measure_cpu_seconds(group)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    full_seconds = measure_cpu_seconds(lambda: compare_in_full(vectors[:FULL_ROWS]))
    rate, full_rate = count**2 / 2 / seconds / 1e6, min(FULL_ROWS, count) ** 2 / 2 / full_seconds / 1e6
    lines = [
        ["processor seconds", seconds],
        ["million pairs a second", rate],
        ["the same, in full", full_rate],
        ["peak memory, GiB", peak],
        ["the vectors, GiB", vectors.nbytes / 2**30],
        ["duplicates found", f"{len(groups):,} of {planted:,}"],
    ]
    print(harness.format_table([f"{count:,} vectors of {options.width}", ""], lines))
    harness.print_report(
        "neighbours",
        ratios={"pairs_per_second_against_full": rate / full_rate, "found": len(groups) / planted},
        figures={"cpu_seconds": seconds, "peak_gib": peak},
        where=harness.describe_machine("torch", "numpy"),
    )


if __name__ == "__main__":
    main()
