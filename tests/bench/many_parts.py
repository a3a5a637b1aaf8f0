"""What commands cost where an output has very many parts: planning, a run that finds all done, status, report, export.

    PYTHONPATH=. python tests/bench/many_parts.py [--parts 100000] [--steps run status ...] [--quick]

Parts have ten rows each, which match a manifest, on a local disk. Of every tenth part one row failed. The bytes of a
part are those of one that the pipeline wrote, with other ids: real ones, synced, would take hours. Each measurement is
a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.context import RunContext
from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.inspect.report import write_report
from pipeline.inspect.status import read_status
from pipeline.job import job_loader
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.manifest.row_keys import hash_row_keys, hash_rows
from pipeline.manifest.row_reader import RowReader
from pipeline.output.arrow_tables import build_tables
from pipeline.output.dataset import COMMIT_NOTE_KEY, Dataset, PartFooter
from pipeline.output.part_index import IndexWriter, read_footers
from pipeline.output.part_listing import get_part_of_dead_letters
from pipeline.output.store import OutputStore
from pipeline.run import preflight, resume
from pipeline.run.driver import RunOptions, run_job
from pipeline.types import Failure, Item, MediaInfo, Outcome, Row
from tests.bench import harness
from tests.bench.resume import write_manifest

JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, media: image}
prompt: {user: "What is it?"}
model: {weights: "builtin:tiny"}
engine: {kind: scripted}
output: {path: PLACE/out, chunk_rows: 10}
"""
ROWS, FAILING_PARTS = 10, 10  # of a part; every how many parts a row failed
SLOT = re.compile(rb"slot-(?:id|question|part)-[0-9]+x*")  # what is replaced in the bytes of a part
STEPS = ("plan", "footers", "list", "run", "summaries", "status", "report", "export")


def load_job(place: Path) -> Job:
    return job_loader.parse_job(JOB.replace("PLACE", str(place)))


def build_context(job: Job) -> RunContext:
    return preflight.build_run_context(job, list_manifest_files(job))


def write_output(place: Path, count: int) -> None:
    """What a run has written that was killed at its end."""
    job = load_job(place)
    context = build_context(job)
    dataset = Dataset(OutputStore(context.job.output.path), context.fingerprint)
    dataset.write_question(context.fingerprint_inputs)
    folders = [Path(dataset.store.path, kind, f"fp={context.fingerprint}") for kind in ("data", "errors")]
    for folder in folders:
        folder.mkdir(parents=True)
    templates = build_templates(context)
    (file,) = list_manifest_files(job)
    reader = RowReader(job, file, context.schema_prompt)
    for number, span in enumerate(reader.source.list_spans(ROWS)):
        keys = reader.compute_keys(reader.read_key_columns(span))
        values = {b"part-0": hash_rows(hash_row_keys(keys)).encode()}
        for row, (row_id, question) in enumerate(keys):
            values |= {b"id-%d" % row: row_id.encode(), b"question-%d" % row: question.encode()}
        part, has_failed = values[b"part-0"].decode(), number % FAILING_PARTS == 0
        (folders[0] / f"{part}.parquet").write_bytes(templates["failing" if has_failed else "whole"](values))
        if has_failed:
            (folders[1] / f"{part}-00000000.parquet").write_bytes(templates["letters"](values))


def build_templates(context: RunContext) -> dict[str, Callable[[Mapping[bytes, bytes]], bytes]]:
    """For a part of ten rows, one of nine, and the dead letter of the tenth."""
    media = (MediaInfo("image", "s3://bucket/scans/000/0000000000.jpg", 640, 480, 640, 480, 1, ()),)
    counts = {"vision_tokens": 300, "prompt_tokens": 320, "output_tokens": 60}
    outcomes: list[Outcome] = []
    for number in range(ROWS):
        row_id, question = name_slot(f"id-{number}", 15), name_slot(f"question-{number}", 32)
        row = Row(row_id, question, {}, "a picture of something", None, "stop", media, **counts, latency_s=1.0)
        outcomes.append((Item(row_id, question, ()), row))
    last_item, _ = outcomes[-1]
    failure = Failure(last_item.id, "fetch", "missing", "there is no such object")
    whole, _ = build_tables(outcomes, context)
    failing, letters = build_tables([*outcomes[:-1], (last_item, failure)], context)
    part = name_slot("part-0", 24)
    note = {"run": "20261129T000000-00000", "epoch": 0, "errors": None, "kinds": {}, "answered": ROWS, "failed": 0}
    failing_note = {**note, "errors": f"{part}-00000000.parquet", "kinds": {"fetch/missing": 1}, "failed": 1}
    return {
        "whole": build_template(whole, note),
        "failing": build_template(failing, {**failing_note, "answered": ROWS - 1}),
        "letters": build_template(letters, {"key": part}),
    }


def name_slot(name: str, length: int) -> str:
    return f"slot-{name}".ljust(length, "x")


def build_template(rows: pa.Table, note: Mapping[str, Any]) -> Callable[[Mapping[bytes, bytes]], bytes]:
    """A function that makes the bytes of a part with other values."""
    sink = pa.BufferOutputStream()
    table = rows.replace_schema_metadata({COMMIT_NOTE_KEY: json.dumps(note)})
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    data = bytes(sink.getvalue())
    pieces, names = SLOT.split(data), [name[5:].rstrip(b"x") for name in SLOT.findall(data)]

    def fill(values: Mapping[bytes, bytes]) -> bytes:
        filled = [values[name] for name in names]
        return b"".join(piece for pair in zip(pieces, [*filled, b""], strict=True) for piece in pair)

    return fill


def write_summaries(dataset: Dataset) -> None:
    """As runs do that commit the parts."""
    index = IndexWriter(dataset, "bench")
    files = {get_part_of_dead_letters(file): file for file in dataset.list_dead_letters()}
    note: dict[str, Any] = {"run": "20261129T000000-00000", "epoch": 0, "kinds": {}, "answered": ROWS, "failed": 0}
    for part, info in dataset.list_parts().items():
        failed = part in files
        kinds = {"fetch/missing": 1} if failed else {}
        own = {**note, "errors": files.get(part), "kinds": kinds, "answered": ROWS - failed, "failed": int(failed)}
        index.add_footer(part, info, PartFooter(ROWS - failed, own))
    index.flush_all()


def take_step(place: Path, step: str) -> object:
    """Do one of STEPS in this process. Returns what it found."""
    job = load_job(place)
    if step == "run":
        return run_job(job, RunOptions(runner="local"), say=lambda line: print(line, file=sys.stderr))
    if step == "status":
        status = read_status(job.output.path)
        return status.answered + status.wrong.total()
    if step == "report":
        return write_report(job.output.path, place / "report.html").card_count
    if step == "export":
        with tempfile.TemporaryDirectory(dir=place) as target:
            options = ExportOptions()
            return export_job(job, f"{target}/export", "jsonl", options, lambda line: print(line, file=sys.stderr))
    context = build_context(job)
    dataset = Dataset(OutputStore(context.job.output.path), context.fingerprint)
    if step == "plan":  # as if there were no parts
        manifest_files, empty = list_manifest_files(job), Dataset(OutputStore(str(place / "empty")), "f")
        return len(resume.build_resume_plan(context, manifest_files, empty).remaining_chunks)
    parts = dataset.list_parts()
    return len(parts) if step == "list" else sum(footer.row_count for _, footer in read_footers(dataset, parts))


def measure(place: Path, step: str) -> dict[str, float]:
    """In seconds, and MiB beside those that the imports take."""
    before, cpu_s, started = read_peak_mib(), time.process_time(), time.monotonic()
    found = take_step(place, step)
    print(f"{step}: {found}", file=sys.stderr)
    cpu_s, seconds = time.process_time() - cpu_s, time.monotonic() - started
    return {"cpu_s": cpu_s, "s": seconds, "mib": read_peak_mib() - before}


def read_peak_mib() -> float:
    """getrusage would count the parent's memory, too."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def measure_steps(place: Path, count: int, steps: Sequence[str]) -> dict[str, dict[str, float]]:
    results = {}
    if not (place / "out").exists():
        write_manifest(place / "manifest.parquet", ROWS * count)
        write_output(place, count)
    for step in steps:
        if step == "summaries":
            context = build_context(load_job(place))
            write_summaries(Dataset(OutputStore(context.job.output.path), context.fingerprint))
        command = [sys.executable, __file__, "--measure", str(place), step]
        results[step] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        print(f"  {step}: {results[step]}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=100_000)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--quick", action="store_true", help="2,000 parts")
    parser.add_argument("--place", type=Path, help="a folder that keeps the output, for steps that follow later")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "STEP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1])))
        return
    count = 2000 if args.quick else args.parts
    if args.place:
        args.place.mkdir(exist_ok=True)
        results = measure_steps(args.place, count, args.steps)
    else:
        with tempfile.TemporaryDirectory() as folder:
            results = measure_steps(Path(folder), count, args.steps)
    lines = [[step, *result.values(), 1e6 * result["cpu_s"] / count] for step, result in results.items()]
    print(harness.format_table(["step", "CPU s", "s", "MiB", "CPU us a part"], lines))
    figures = {f"{step}_{name}": value for step, result in results.items() for name, value in result.items()}
    pairs = [("summaries", "footers"), ("run", "plan"), ("export", "plan")]
    ratios = {f"{a}/{b}": results[a]["cpu_s"] / results[b]["cpu_s"] for a, b in pairs if {a, b} <= {*results}}
    where = harness.describe_machine("pyarrow", "numpy")
    harness.print_report("many_parts", ratios=ratios, figures=figures, where=where)


if __name__ == "__main__":
    main()
