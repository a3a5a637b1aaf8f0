"""Runs each command with its options and returns the exit code.

Functions import what they need when they run, so that `--help` and small commands start fast.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ExitCode, PipelineError

INIT_PLAN_ROWS = 200

if TYPE_CHECKING:
    from pipeline.job.spec import InputSection, Job


def run_job(options: argparse.Namespace) -> int:
    from pipeline.run import driver, log

    run_options = driver.RunOptions(
        row_limit=options.limit,
        runner="local" if options.local else "ray",
        allow_other_questions=options.on_change == "add",
        take_over=options.take_over,
        retry_kind=options.retry_errors,
        show_ray_log=options.ray_log,
        labelled_rows=options.labelled_rows,
    )
    job = load_job(options)
    with serve_while_running(job.output.path, options.serve):
        code = driver.run_job(job, run_options, say=log.get_line_sink())
    return ExitCode.ALL_ANSWERED if code == ExitCode.FAILED_ROWS and options.allow_errors else code


def serve_while_running(output_path: str, port: int | None) -> AbstractContextManager[object]:
    """Media are read from where the job itself may read them."""
    if port is None:
        return nullcontext()
    from pipeline.inspect.live.live_output import LiveOutput
    from pipeline.inspect.live.live_server import serve_live_page

    return serve_live_page(LiveOutput(output_path, None), port, say=print)


def stop_ray_job() -> None:
    from pipeline.cluster.submit import stop_this_job

    stop_this_job()


def submit_job(options: argparse.Namespace) -> int:
    from pipeline.cluster.submission import Submission
    from pipeline.cluster.submit import submit_job as submit_to_cluster

    run_arguments = [f"--set={change}" for change in options.set]
    run_arguments += [f"--limit={options.limit}"] if options.limit else []
    run_arguments += [f"--on-change={options.on_change}", *(["--allow-errors"] if options.allow_errors else [])]
    run_arguments += ["--take-over"] * options.take_over + ["--ray-log"] * options.ray_log
    run_arguments += [f"--except={options.labelled_rows}"] if options.labelled_rows else []
    run_arguments += [] if options.retry_errors is None else [f"--retry-errors={options.retry_errors}"]
    submission = Submission(
        job_path=options.job,
        overrides=options.set,
        date=options.date,
        run_arguments=run_arguments,
        address=options.address,
        grace_s=options.grace,
    )
    return submit_to_cluster(submission, follow=options.follow)


def plan_job(options: argparse.Namespace) -> int:
    from pipeline.inspect import plan as planning
    from pipeline.inspect.plan.plan_text import format_plan

    plan = planning.plan_job(
        load_job(options),
        sample_rows=None if options.all else options.sample,
        row_limit=options.limit,
        answer_tokens=options.answer_tokens,
        gpu_names=options.gpu,
        price_per_hour=options.price,
    )
    if options.json:
        print(json.dumps(planning.to_json_dict(plan), indent=2))
        return ExitCode.ALL_ANSWERED
    print("\n".join(format_plan(plan)))
    if plan.rows_left:
        print(f"\nnext: {format_job_command('run', options, '--limit', '20')}")
    return ExitCode.ALL_ANSWERED


def export_answers(options: argparse.Namespace) -> int:
    from pipeline.export.base import ExportOptions
    from pipeline.export.export_job import export_job
    from pipeline.export.splits import parse_splits

    export_options = ExportOptions(
        options.rows_per_file,
        tuple(options.partition_by),
        options.calibrated,
        where=options.where,
        splits=parse_splits(options.split) if options.split else (),
        media=options.media,
        push=options.push,
        truth=options.prefer_truth,
    )
    code = export_job(
        load_job(options),
        options.target,
        options.to,
        export_options,
        say=print,
        require_complete=options.require_complete,
    )
    return ExitCode.ALL_ANSWERED if code == ExitCode.FAILED_ROWS and options.allow_errors else code


def write_new_job(options: argparse.Namespace) -> int:
    from pipeline.inspect import plan as planning
    from pipeline.inspect.plan.plan_text import format_plan
    from pipeline.new_job.questions import complete_answers
    from pipeline.new_job.write_job import write_job

    wanted = complete_answers(vars(options))
    job = write_job(wanted, say=print)
    try:
        print("\n".join(["", *format_plan(planning.plan_job(job, sample_rows=INIT_PLAN_ROWS))]))
    except (PipelineError, ImportError, OSError) as error:  # the job is written; it may be meant for another machine
        print(f"\nnot planned here: {error}")
    print(f"\nnext: python -m pipeline run {wanted.path} --limit 20")
    return ExitCode.ALL_ANSWERED


def check_job(options: argparse.Namespace) -> int:
    from pipeline.job import editor_schema, reference, spec, variables
    from pipeline.manifest.files import list_manifest_files
    from pipeline.run import preflight

    if options.explain:
        print("\n".join([*reference.format_reference(spec.Job), "", variables.VARIABLES_HELP]))
        return ExitCode.ALL_ANSWERED
    if options.json_schema:
        print(json.dumps(editor_schema.build_job_schema(), indent=1))
        return ExitCode.ALL_ANSWERED
    if options.job is None:
        raise PipelineError("check needs a job file, --explain or --json-schema")
    job = load_job(options)
    files = list_manifest_files(job, print)
    context = preflight.build_run_context(job, files)
    if problems := preflight.find_job_problems(context, files):
        raise PipelineError("\n".join([f"{options.job}:", *(f"  {problem}" for problem in problems)]))
    for warning in preflight.find_warnings(context):
        print(f"careful: {warning}")
    print(f"{options.job} is valid: {job.name}, {len(files)} manifest file(s), fingerprint {context.fingerprint}")
    print(f"next: {format_job_command('plan', options)}")
    return ExitCode.ALL_ANSWERED


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
        print(f"next: {shlex.join(['python', '-m', 'pipeline', 'sample', options.output])}  # how good are they?")
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

    file = Path(options.to)
    if file.suffix != ".parquet":
        raise PipelineError(f"--to {file}: the table is Parquet, so give a name that ends in .parquet")
    search = neighbours.NeighbourOptions(
        options.column, options.above, tuple(options.near), options.count, options.diverse, options.approximate
    )
    reader = open_output_reader(options.output, options.question)
    found = neighbours.find_neighbours(reader, search, ProgressLine().report_share, print)
    found.write(file)
    print(f"{file}: {found.describe(search)}")
    if options.page:
        access = ReportOptions(roots=tuple(options.roots), hosts=tuple(options.hosts), stores=tuple(options.stores))
        withheld = write_page(reader, found.rows, Path(options.page), found.describe(search), access)
        more = f"; media that are not shown: {withheld}, see --roots, --hosts and --stores" if withheld else ""
        print(f"{options.page}: open it in a browser{more}")
    return ExitCode.ALL_ANSWERED


def run_demo(options: argparse.Namespace) -> int:
    from pipeline.builtin import demo

    return demo.run_demo(options.folder)


def print_completion(options: argparse.Namespace) -> int:
    from pipeline.command_line.shell_completion import build_completion_script

    print(build_completion_script(options.parser, options.shell))
    return ExitCode.ALL_ANSWERED


def format_job_command(command: str, options: argparse.Namespace, *more: str) -> str:
    """Another command for the same job, with the same changes."""
    changes = [word for change in options.set for word in ("--set", change)]
    day = ["--date", options.date] if options.date else []
    return shlex.join(["python", "-m", "pipeline", command, options.job, *changes, *day, *more])


def load_job(options: argparse.Namespace) -> Job:
    from pipeline.job import job_loader

    return job_loader.load_job(options.job, changes=options.set, date=options.date)
