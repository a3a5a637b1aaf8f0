"""Measures the sides of a comparison in turns, so that a slow minute hits all of them, and reports medians and ratios.

A benchmark prints a table for people and ends with one line of JSON for machines:
{"name": ..., "ratios": {...}, "figures": {...}}. Nothing here judges a figure.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any


def measure_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_in_turns(sides: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """The median seconds of each side, run in the order A B C A B C ...; the caller warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, work in sides.items():
            times[name].append(measure_seconds(work))
            print(f"  round {turn + 1}/{rounds} {name}: {times[name][-1]:.2f} s", file=sys.stderr)
    return {name: median(seconds) for name, seconds in times.items()}


def get_store_statistics() -> Any:
    """Statistics of this node's object store, which Ray exposes only in a private API."""
    import ray
    from ray._private.internal_api import node_stats

    node = ray.nodes()[0]
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats


def describe_machine(*packages: str) -> str:
    """One line about the machine and the versions."""
    versions = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    return f"{platform.machine()}, {os.cpu_count()} cores; {', '.join(versions)}"


def format_table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(format_cell(value) for value in row) + " |" for row in rows)


def format_cell(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def print_report(name: str, *, ratios: Mapping[str, float], figures: Mapping[str, float], where: str) -> None:
    """Print the last line, for machines."""
    rounded = [{key: round(value, 4) for key, value in part.items()} for part in (ratios, figures)]
    print(json.dumps({"name": name, "ratios": rounded[0], "figures": rounded[1], "machine": where}))
