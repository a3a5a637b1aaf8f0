"""What it takes to list the parts of an output and to count their rows, with summaries of them and from their footers.

    PYTHONPATH=. python tests/bench/listing.py [--parts 100000] [--quick]

The parts are copies of one small file under other names, on a local disk. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from pipeline.output.dataset import Dataset, PartFooter, encode_parquet
from pipeline.output.part_index import IndexWriter, read_footers
from pipeline.output.store import OutputStore
from tests.bench import harness

ROWS = 89  # of a part
NOTE = {"run": "bench", "epoch": 1, "errors": None, "kinds": {}, "answered": ROWS, "failed": 0}
STEPS = ("list", "summaries", "footers")


def write_parts(folder: Path, count: int) -> None:
    """Synced files would take hours."""
    text = ["a picture of something"] * ROWS
    data = encode_parquet(pa.table({"id": [str(row) for row in range(ROWS)], "text": text}), NOTE)
    (folder / "data/fp=f").mkdir(parents=True)
    for _ in range(count):
        (folder / f"data/fp=f/{os.urandom(12).hex()}.parquet").write_bytes(data)


def write_summaries(dataset: Dataset) -> None:
    index = IndexWriter(dataset, "bench")
    for part, info in dataset.list_parts().items():
        index.add_footer(part, info, PartFooter(ROWS, NOTE))
    index.flush_all()


def measure(folder: str, step: str) -> dict[str, float]:
    """In CPU seconds, and MiB beside those that the imports take."""
    dataset = Dataset(OutputStore(folder), "f")
    dataset.list_dead_letters()
    started, before = time.process_time(), read_peak_mib()
    parts = dataset.list_parts()
    rows = ROWS * len(parts) if step == "list" else sum(footer.row_count for _, footer in read_footers(dataset, parts))
    assert rows == ROWS * len(parts)
    return {"cpu_s": time.process_time() - started, "mib": read_peak_mib() - before}


def read_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="2,000 parts")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "STEP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    count = 2000 if args.quick else args.parts
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_parts(Path(folder), count)
        for step in ("footers", "list", "summaries"):
            if step == "summaries":
                write_summaries(Dataset(OutputStore(folder), "f"))
            command = [sys.executable, __file__, "--measure", folder, step]
            results[step] = json.loads(subprocess.check_output(command, text=True))
    lines = [[step, *results[step].values(), 1e6 * results[step]["cpu_s"] / count] for step in STEPS]
    print(harness.format_table(["step", "CPU s", "MiB", "us a part"], lines))
    figures = {f"{step}_{name}": value for step in STEPS for name, value in results[step].items()}
    ratios = {"summaries/footers": results["summaries"]["cpu_s"] / results["footers"]["cpu_s"]}
    harness.print_report("listing", ratios=ratios, figures=figures, where=harness.describe_machine("pyarrow", "numpy"))


if __name__ == "__main__":
    main()
