"""Our pipeline compared with what a user would write: transformers in a loop, Ray Data as documented, Daft.

    python tests/bench/alternatives.py [--quick] [--rows N] [--daft PYTHON]

One manifest of drawn scenes as JPEG files: sides log-uniform from 100 to 3,000 px, one broken file in a hundred.
Every side runs the built-in model at its own sizes on one core, as its own command. It runs first on the manifest
without broken rows, so that all sides can finish, and then on all rows, which shows what one broken file costs. Rates
start at a side's first batch, so start-up does not count. Memory is the sum of the proportional shares (PSS) of all its
processes; beside it stands Ray Data with an actor that does nothing. `--daft` names a Python that has Daft.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.builtin.scenes import create_scene
from tests.bench import harness

PEERS = Path(__file__).with_name("peers.py")
NAMES = {"ours": "ours", "one": "transformers one by one", "ray": "Ray Data pattern", "daft": "Daft UDF class"}


@dataclass(frozen=True)
class Run:
    """The result of one command."""

    texts: dict[str, str]
    seconds: float
    rate: float
    peak_mib: float
    store_mib: float


def write_pictures(folder: Path, row_count: int, longest_side: int) -> Path:
    """Write pictures and two manifests; return the one with all rows."""
    rng, rows = np.random.default_rng(1), []
    for number in range(row_count):
        name = f"{number:05}.jpg"
        width, height = (int(side) for side in np.exp(rng.uniform(math.log(100), math.log(longest_side), 2)))
        picture = create_scene("evaluate", "caption", 200_000 + number).draw_frame(0).convert("RGB")
        picture.resize((width, height)).save(folder / name, quality=92)
        rows.append({"id": name, "media": name})
        if is_broken(number):
            (folder / name).write_bytes((folder / name).read_bytes()[:200])
    pq.write_table(pa.Table.from_pylist(rows), folder / "all.parquet")
    intact_rows = [row for number, row in enumerate(rows) if not is_broken(number)]
    pq.write_table(pa.Table.from_pylist(intact_rows), folder / "intact.parquet")
    return folder


def is_broken(number: int) -> bool:
    return number % 100 == 60


def run_side(side: str, python: str, manifest: Path, out: Path) -> Run:
    out.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(PEERS.parents[2]),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    started, stopped, peak = time.time(), Event(), [0.0]
    with open(out / "log", "w") as log:
        command = [python, str(PEERS), side, str(manifest), str(out)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        watcher = Thread(target=watch_memory, args=(process.pid, stopped, peak))
        watcher.start()
        process.wait()
        stopped.set()
        watcher.join()
    tables = [pq.read_table(path, columns=["id", "text"], partitioning=None) for path in list_parts(out)]
    texts = {row["id"]: row["text"] for table in tables for row in table.to_pylist()}
    store_file = out / "store_bytes"
    return Run(
        texts,
        time.time() - started,
        compute_rate(out, side),
        peak[0] / 2**20,
        int(store_file.read_text()) / 2**20 if store_file.exists() else 0.0,
    )


def list_parts(out: Path) -> list[Path]:
    return [path for path in out.glob("**/*.parquet") if "errors" not in path.parts]


def compute_rate(out: Path, side: str) -> float:
    """Rows/s from the end of the first batch to the end of the last."""
    if side == "ours":
        marks = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in list_parts(out))
    elif (out / "marks").exists():
        marks = [(float(when), int(rows)) for when, rows in map(str.split, (out / "marks").read_text().splitlines())]
    else:
        return 0.0
    seconds = marks[-1][0] - marks[0][0]
    return sum(rows for _, rows in marks[1:]) / seconds if seconds else 0.0


def watch_memory(pid: int, stopped: Event, peak: list[float]) -> None:
    """Record the peak memory of all processes of a side, sampled twice a second."""
    while not stopped.wait(0.5):
        total = 0
        try:
            for process in (root := psutil.Process(pid)), *root.children(recursive=True):
                with open(f"/proc/{process.pid}/smaps_rollup") as file:
                    total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, StopIteration):
            continue  # the process ended meanwhile
        peak[0] = max(peak[0], total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--most", type=int, default=3000, help="pixels of the longest side")
    parser.add_argument("--daft", help="the Python of an environment with Daft")
    options = parser.parse_args()
    rows = 300 if options.quick else options.rows
    pythons = {"ours": sys.executable, "one": sys.executable, "ray": sys.executable}
    pythons |= {"daft": options.daft} if options.daft else {}
    intact_runs: dict[str, Run] = {}
    lost_rows: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        data_folder = write_pictures(Path(folder), rows, options.most)
        for side, python in pythons.items():
            intact_runs[side] = run_side(side, python, data_folder / "intact.parquet", data_folder / side)
            print(
                f"  {side}: {intact_runs[side].rate:.1f} rows/s, {len(intact_runs[side].texts)} rows", file=sys.stderr
            )
        bare_mib = run_side("bare", sys.executable, data_folder / "intact.parquet", data_folder / "bare").peak_mib
        intact_count = len(intact_runs["ours"].texts)
        for side, python in pythons.items():
            lost_rows[side] = intact_count - len(
                run_side(side, python, data_folder / "all.parquet", data_folder / f"{side}-all").texts
            )
    our_texts = intact_runs["ours"].texts
    lines = []
    for side, result in intact_runs.items():
        same_share = sum(our_texts[row] == text for row, text in result.texts.items()) / max(1, len(result.texts))
        store = result.store_mib if side in ("ours", "ray") else "-"
        lines.append(
            [
                NAMES[side],
                result.rate,
                result.seconds,
                result.peak_mib,
                store,
                f"{lost_rows[side]} of {intact_count}",
                f"{same_share:.0%}",
            ]
        )
    header = ["side", "rows/s", "seconds in all", "peak MiB", "MiB through the store", "rows lost", "same answers"]
    print(harness.format_table(header, lines))
    print(f"Ray Data with an actor that does nothing: {bare_mib:,.0f} MiB")
    ours, other_runs = intact_runs["ours"], {side: result for side, result in intact_runs.items() if side != "ours"}
    harness.print_report(
        "alternatives",
        ratios={f"rate/{side}": ours.rate / result.rate for side, result in other_runs.items() if result.rate}
        | {f"memory/{side}": ours.peak_mib / result.peak_mib for side, result in other_runs.items()}
        | {"memory beyond bare Ray/ray": (ours.peak_mib - bare_mib) / (intact_runs["ray"].peak_mib - bare_mib)}
        | {f"seconds/{side}": ours.seconds / result.seconds for side, result in other_runs.items()},
        figures={f"rows_s, {side}": result.rate for side, result in intact_runs.items()}
        | {f"peak_mib, {side}": result.peak_mib for side, result in intact_runs.items()}
        | {f"lost, {side}": float(count) for side, count in lost_rows.items()}
        | {"peak_mib, bare Ray": bare_mib, "rows": float(intact_count)},
        where=harness.describe_machine("ray", "torch", "transformers"),
    )


if __name__ == "__main__":
    main()
