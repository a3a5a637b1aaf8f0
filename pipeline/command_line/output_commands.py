"""Runs the commands that look at an output: status, report and neighbours. Functions import what they need when they
run."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_text import format_command, format_program
from pipeline.errors import ExitCode, PipelineError

if TYPE_CHECKING:
    from pipeline.job.spec import InputSection


def show_status(options: argparse.Namespace) -> int:
    from pipeline.inspect.status import format_status, read_status, to_json_dict

    status = read_status(options.output, options.question)
    print(json.dumps(to_json_dict(status), indent=2) if options.json else "\n".join(format_status(status)))
    return ExitCode.ALL_ANSWERED


def write_report(options: argparse.Namespace) -> int:
    from pipeline.inspect import report as reporting
    from pipeline.inspect.report.statistics import ReportOptions
    from pipeline.run.progress import format_count

    folder = Path() if "://" in options.output else Path(options.output)
    if missing := [root for root in options.roots if not Path(root.removeprefix("file://")).is_dir()]:
        raise PipelineError(f"--roots {missing[0]}: there is no such folder")
    report_options = ReportOptions(
        options.random,
        options.worst,
        tuple(options.id),
        roots=tuple(options.roots),
        hosts=tuple(options.hosts),
        stores=tuple(options.stores),
        truth=options.truth,
        truth_id_column=options.truth_id,
        schema_spec=options.schema,
        against=options.against,
    )
    if options.serve is not None:
        return follow_output(
            options.output, reporting.build_media_access(options.output, report_options), options.serve
        )
    target = Path(options.to or folder / "report.html")
    report = reporting.write_report(options.output, target, options=report_options, question=options.question)
    rows, mebibytes = format_count(report.card_count, "row"), report.size_bytes / 2**20
    print(f"{report.path}: {rows}, {mebibytes:.1f} MiB; open it in a browser")
    if report.withheld_media:
        places = f"the output says it read them with: {report.claimed_places}" if report.claimed_places else ""
        print(
            f"media that are not shown: {report.withheld_media}, because no option allows to read them. "
            f"If the output is yours, add --roots, --hosts or --stores; {places}".rstrip("; ")
        )
    if options.truth is None:
        print(f"next: {format_command('sample', options.output)}  # how good are they?")
    else:
        compare = format_command("compare", options.output, "--truth", options.truth)
        print(f"next: ask with another prompt or model (run --on-change add), then {compare}")
    return ExitCode.ALL_ANSWERED


def follow_output(output_path: str, access: InputSection, port: int) -> int:
    from pipeline.inspect.live.live_output import LiveOutput
    from pipeline.inspect.live.live_server import serve_live_page

    with serve_live_page(LiveOutput(output_path, access), port, say=print):
        while True:  # until Ctrl-C
            time.sleep(3600)


def find_neighbours(options: argparse.Namespace) -> int:
    from pipeline.inspect import neighbours
    from pipeline.inspect.neighbours.neighbours_page import write_page
    from pipeline.inspect.neighbours.progress_line import ProgressLine
    from pipeline.inspect.output_reader import open_output_reader
    from pipeline.inspect.report.statistics import ReportOptions

    file, page = Path(options.to), options.page
    for option, name in (("--to", options.to), ("--vectors", options.vectors)):
        if name and not name.endswith(".parquet"):
            raise PipelineError(f"{option} {name}: the table is Parquet, so give a name that ends in .parquet")
    search = neighbours.NeighbourOptions(
        column=options.column,
        above=options.above,
        whiten=options.whiten,
        near_ids=tuple(options.near),
        nearest=options.count,
        diverse=options.diverse,
        approximate=options.approximate,
    )
    reader = open_output_reader(options.output, options.question)
    found = neighbours.find_neighbours(reader, search, ProgressLine().report_share, print)
    found.write(file)
    print(f"{file}: {found.describe(search)}")
    if options.vectors:
        found.write_vectors(Path(options.vectors))
        print(f"{options.vectors}: the vectors that were compared")
    if page:
        access = ReportOptions(roots=tuple(options.roots), hosts=tuple(options.hosts), stores=tuple(options.stores))
        withheld = write_page(reader, found.rows, Path(page), found.describe(search), access)
        more = f"; media that are not shown: {withheld}, see --roots, --hosts and --stores" if withheld else ""
        print(f"{page}: open it in a browser{more}")
    print(f"next: {format_next_search(options, search.least_cosine, found.rows)}")
    return ExitCode.ALL_ANSWERED


def format_next_search(options: argparse.Namespace, least_cosine: float, found_rows: Sequence[object]) -> str:
    if options.diverse is not None:
        return format_command("sample", options.output, "--from", options.to)
    given = [
        ("--question", options.question),
        ("--column", options.column),
        *(("--near", name) for name in options.near),
    ]
    search = ["neighbours", options.output, *(word for option, value in given if value for word in (option, value))]
    search += ["--whiten"] * options.whiten
    if not found_rows:
        lower = f"{max(0.01, least_cosine - 0.05):.2f}"
        return f"{format_command(*search, '--above', lower)}  # no two rows are as alike as {least_cosine:g}"
    if not options.page:
        above = f"{least_cosine:g}"
        page = format_command(*search, "--above", above, "--page", "neighbours.html")
        return f"{page}  # look at them; --roots shows pictures"
    return f"{format_program()} run JOB --except {shlex.quote(options.to)}  # in a job about these rows: without them"
