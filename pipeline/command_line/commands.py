"""Runs each command with its options and returns the exit code.

Functions import what they need when they run, so that `--help` and small commands start fast.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from pipeline.command_text import format_command, shorten_path, wrap_line
from pipeline.errors import ExitCode, PipelineError

INIT_PLAN_ROWS = 200

if TYPE_CHECKING:
    from pipeline.inspect.plan import JobPlan
    from pipeline.job.spec import Job


def run_job(options: argparse.Namespace) -> int:
    from pipeline.run import driver, log
    from pipeline.run.shards import Shard

    run_options = driver.RunOptions(
        row_limit=options.limit,
        shard=Shard(*options.shard) if options.shard else None,
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
        shards=options.shards,
    )
    return submit_to_cluster(submission, follow=options.follow)


def plan_job(options: argparse.Namespace) -> int:
    from pipeline.inspect import plan as planning
    from pipeline.run.run_report import format_report_command

    job = load_job(options)
    plan = planning.plan_job(
        job,
        sample_rows=None if options.all else options.sample,
        row_limit=options.limit,
        answer_tokens=options.answer_tokens,
        gpu_names=options.gpu,
        price_per_hour=options.price,
    )
    if options.json:
        print(json.dumps(planning.to_json_dict(plan), indent=2))
        return ExitCode.ALL_ANSWERED
    print_plan(plan)
    next_command = format_job_command("run", options, "--limit", "20") if plan.rows_left else format_report_command(job)
    print(f"\nnext: {next_command}")
    return ExitCode.ALL_ANSWERED


def print_plan(plan: JobPlan) -> None:
    from pipeline.inspect.plan.plan_text import LABEL_WIDTH, format_plan

    for line in format_plan(plan):
        is_shown = sys.stdout.isatty()
        print(wrap_line(line, shutil.get_terminal_size().columns, indent=LABEL_WIDTH) if is_shown else line)


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
    job = load_job(options)
    code = export_job(
        job,
        options.target,
        options.to,
        export_options,
        say=print,
        require_complete=options.require_complete,
    )
    output = shorten_path(job.output.path)
    next_commands = {
        ExitCode.INCOMPLETE: format_job_command("run", options),
        ExitCode.FAILED_ROWS: format_command("status", output),
    }
    print(f"next: {next_commands.get(code) or format_command('sample', output)}")
    return ExitCode.ALL_ANSWERED if code == ExitCode.FAILED_ROWS and options.allow_errors else code


def write_new_job(options: argparse.Namespace) -> int:
    from pipeline.inspect import plan as planning
    from pipeline.new_job.questions import complete_answers
    from pipeline.new_job.write_job import write_job

    wanted = complete_answers(vars(options))
    job = write_job(wanted, say=print)
    try:
        print()
        print_plan(planning.plan_job(job, sample_rows=INIT_PLAN_ROWS))
    except (PipelineError, ImportError, OSError) as error:  # the job is written; it may be meant for another machine
        print(f"\nnot planned here: {error}")
    print(f"\nnext: {format_command('run', str(wanted.path), '--limit', '20')}")
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
    preflight.require_rows(job, files)
    if problems := preflight.find_job_problems(context, files):
        raise PipelineError("\n".join([f"{options.job}:", *(f"  {problem}" for problem in problems)]))
    for warning in preflight.find_warnings(context):
        print(f"careful: {warning}")
    print(f"{options.job} is valid: {job.name}, {len(files)} manifest file(s), fingerprint {context.fingerprint}")
    print(f"next: {format_job_command('plan', options)}")
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
    return format_command(command, options.job, *changes, *day, *more)


def load_job(options: argparse.Namespace) -> Job:
    from pipeline.job import job_loader

    return job_loader.load_job(options.job, changes=options.set, date=options.date)
