"""Every export format over many synthetic rows of boxes: rows per CPU second, and how memory grows with the rows.

    python tests/bench/export.py [--quick] [--rows N] [--formats coco yolo ...]

The output is written without a model: each row has two boxes with confidences about a picture that is not there, so
nothing is fetched. Every export is a process of its own. Formats that write a file for each picture get a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.base import ExportOptions
from pipeline.export.chunk_rows import ChunkRowReader
from pipeline.export.export_job import export_job
from pipeline.job import job_loader
from pipeline.manifest.files import list_manifest_files
from pipeline.output.arrow_tables import build_tables
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.registry import EXPORTERS, load_registered
from pipeline.run import preflight, resume
from pipeline.types import Item, MediaInfo, Row
from tests.bench import harness

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, media: image}
model: {weights: "builtin:tiny"}
engine: {kind: scripted}
answer: {schema: boxes}
output: {path: PLACE/out, chunk_rows: 1000}
"""
FILE_FORMATS = ("yolo", "voc")  # a file for each picture
BOXES = [{"bbox_2d": [10, 20, 200, 300], "label": label, "image": None} for label in ("dog", "cat")]
SURENESS = [{"bbox_2d": [0.9] * 4, "label": 0.8, "image": None, "score": 0.5} for _ in BOXES]


def write_output(folder: Path, row_count: int) -> None:
    folder.mkdir()
    ids = [f"row-{number:07}" for number in range(row_count)]
    uris = [f"pics/{number // 1000}/{number}.jpg" for number in range(row_count)]
    pq.write_table(pa.table({"id": ids, "image": uris}), folder / "manifest.parquet")
    job = job_loader.parse_job(JOB.replace("PLACE", str(folder)))
    manifest_files = list_manifest_files(job)
    context = preflight.build_run_context(job, manifest_files)
    dataset = Dataset(OutputStore(job.output.path), context.fingerprint)
    dataset.write_question(context.fingerprint_inputs)
    reader = ChunkRowReader(context)
    template: pa.Table | None = None
    for chunk in resume.build_resume_plan(context, manifest_files, dataset).remaining_chunks:
        rows = reader.read_rows(chunk)
        if template is None or template.num_rows != len(rows):
            template, _ = build_tables([build_outcome() for _ in rows], context)
        table = template
        for name, values in {"id": [row.id for row in rows], "question": [row.question for row in rows]}.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))
        dataset.commit_part(chunk.part_name, table, {"failed": 0, "run": "bench", "errors": None}, lambda: None)


def build_outcome() -> tuple[Item, Row]:
    row = Row(
        id="",
        question="",
        kept_values={},
        text=json.dumps({"boxes": BOXES}),
        answer={"boxes": BOXES},
        confidence={"boxes": SURENESS},
        finish="stop",
        **{"vision_tokens": 300, "prompt_tokens": 320, "output_tokens": 60},
        media=(MediaInfo("image", "file:///data/pics/picture.jpg", 640, 480, 640, 480, 1, ()),),
    )
    return Item("", "", ()), row


def export_in_this_process(folder: Path, format_name: str) -> None:
    """Prints what the export cost."""
    job = job_loader.parse_job(JOB.replace("PLACE", str(folder)))
    choices = load_registered(EXPORTERS, format_name, "--to").media_choices
    options = ExportOptions(media=next((choice for choice in reversed(choices) if choice != "copy"), None))
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="vlbatch-") as target:
        export_job(job, f"{target}/export", format_name, options, lambda line: None)
        size = sum(path.stat().st_size for path in Path(target).rglob("*") if path.is_file())
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory, too
    peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024
    print(json.dumps({"cpu_s": time.process_time() - started, "peak_mib": peak, "mib": size / 2**20}))


def measure(folder: Path, format_name: str) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--child", str(folder), format_name]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        print(f"  {format_name}: left out: {reason}", file=sys.stderr)
        return None
    figures: dict[str, float] = json.loads(done.stdout)
    print(f"  {folder.name} rows, {format_name}: {figures}", file=sys.stderr)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--formats", nargs="*", default=list(EXPORTERS))
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        export_in_this_process(Path(options.child[0]), options.child[1])
        return 0
    most = options.rows or (20_000 if options.quick else 1_000_000)
    counts = [most // 100, most // 10, most]
    lines, figures, ratios = [], dict[str, float](), dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="vlbatch-") as place:
        folders = {count: Path(place, str(count)) for count in counts}
        for count, folder in folders.items():
            write_output(folder, count)
        for name in options.formats:
            few, many = counts[:2] if name in FILE_FORMATS else counts[1:]
            small, large = measure(folders[few], name), measure(folders[many], name)
            if small and large:
                rate = (many - few) / max(large["cpu_s"] - small["cpu_s"], 1e-9)
                lines.append([name, many, rate, large["peak_mib"], large["peak_mib"] - small["peak_mib"], large["mib"]])
                figures |= {f"{name}, rows/CPU s": rate}
                ratios[f"{name} peak"] = large["peak_mib"] / small["peak_mib"]
    header = ["format", "rows", "rows per CPU second", "peak MiB", "more than with a tenth", "MiB written"]
    print(harness.format_table(header, lines))
    harness.print_report("export", ratios=ratios, figures=figures, where=harness.describe_machine("pyarrow"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
