"""python -m pipeline COMMAND: a manifest of pictures and videos in, typed Parquet out."""

from __future__ import annotations

import argparse
import json
import os
import sys

from pipeline import cli as command_line
from pipeline.errors import PipelineError, StoppedError, Terminated
from pipeline.job import reference
from pipeline.job.spec import Job
from pipeline.run import log


def main(arguments: list[str] | None = None) -> int:
    options = command_line.build_parser(__doc__).parse_args(arguments)
    try:
        code = COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if options.command in PRINT_LAST_COMMANDS else 141
    except PipelineError as error:
        if options.debug:
            raise
        log.write_exit_reason(f"error: {error}")
        return 4 if isinstance(error, StoppedError) else 2
    except KeyboardInterrupt:
        log.write_exit_reason(
            "interrupted; what was committed stays, the same command goes on from there", level="warning"
        )
        return 130
    except Terminated:
        log.write_exit_reason(
            "terminated; what was committed stays, the same command goes on from there", level="warning"
        )
        return 143


def handle_run(options: argparse.Namespace) -> int:
    from pipeline.job import job_loader
    from pipeline.run import driver

    taker = log.get_line_sink()
    job = job_loader.load_job(options.job, changes=options.set, date=options.date)
    wish = driver.RunOptions(
        row_limit=options.limit,
        in_process=options.local,
        allow_other_questions=options.on_change == "add",
        take_over=options.take_over,
        retry_kind=options.retry_errors,
        show_ray_log=options.ray_log,
    )
    code = driver.run_job(job, wish, say=taker)
    return 0 if code == driver.EXIT_FAILED_ROWS and options.allow_errors else code


def handle_submit(options: argparse.Namespace) -> int:
    from pipeline.cluster.submit import Submission
    from pipeline.cluster.submit import submit_job as send

    words = [f"--set={change}" for change in options.set]
    words += [f"--limit={options.limit}"] if options.limit else []
    words += [f"--on-change={options.on_change}", *(["--allow-errors"] if options.allow_errors else [])]
    words += ["--take-over"] * options.take_over + ["--ray-log"] * options.ray_log
    words += [] if options.retry_errors is None else [f"--retry-errors={options.retry_errors}"]
    order = Submission(
        job_path=options.job,
        overrides=options.set,
        date=options.date,
        run_arguments=words,
        address=options.address,
        grace_s=options.grace,
    )
    return send(order, follow=options.follow)


def handle_plan(options: argparse.Namespace) -> int:
    from pipeline.inspect.plan import plan_job, to_json_dict
    from pipeline.inspect.plan.format import format_plan
    from pipeline.job import job_loader

    made = plan_job(
        job_loader.load_job(options.job, changes=options.set, date=options.date),
        sample_rows=None if options.all else options.sample,
        row_limit=options.limit,
        answer_tokens=options.answer_tokens,
        gpu_names=options.gpu,
        price_per_hour=options.price,
    )
    print(json.dumps(to_json_dict(made), indent=2) if options.json else "\n".join(format_plan(made)))
    return 0


def handle_export(options: argparse.Namespace) -> int:
    from pipeline.export import table
    from pipeline.job import job_loader

    job = job_loader.load_job(options.job, changes=options.set, date=options.date)
    per_file, by = options.rows_per_file, options.partition_by
    table.export_table(job, options.target, rows_per_file=per_file, partition_by=by, say=print)
    return 0


def handle_check(options: argparse.Namespace) -> int:
    from pipeline.job import job_loader, variables
    from pipeline.manifest.files import list_manifest_files
    from pipeline.run import preflight

    if options.explain:
        print("\n".join([*reference.format_reference(Job), "", variables.VARIABLES_HELP]))
        return 0
    if options.job is None:
        raise PipelineError("check needs a job file, or --explain")
    job = job_loader.load_job(options.job, changes=options.set, date=options.date)
    found = list_manifest_files(job)
    shared = preflight.build_run_context(job, found)
    problems = preflight.find_job_problems(shared, found)
    if problems:
        raise PipelineError("\n".join([f"{options.job}:", *(f"  {problem}" for problem in problems)]))
    if caution := preflight.format_warnings(shared):
        print(f"careful: {caution}")
    print(f"{options.job} is right: {job.name}, {len(found)} manifest file(s), fingerprint {shared.fingerprint}")
    return 0


def handle_status(options: argparse.Namespace) -> int:
    from pipeline.inspect import status

    found = status.read_status(options.output, options.question)
    print(json.dumps(status.to_json_dict(found), indent=2) if options.json else "\n".join(status.format_status(found)))
    return 0


def handle_report(options: argparse.Namespace) -> int:
    from pathlib import Path

    from pipeline.inspect.report import write_report
    from pipeline.inspect.report.gather import ReportOptions

    folder = Path() if "://" in options.output else Path(options.output)
    wish = ReportOptions(options.random, options.worst, tuple(options.id))
    written = write_report(
        options.output, Path(options.to or folder / "report.html"), options=wish, question=options.question
    )
    print(f"{written.path}: {written.card_count} rows, {written.size_bytes / 2**20:.1f} MiB; open it in a browser")
    return 0


def handle_demo(options: argparse.Namespace) -> int:
    from pipeline.builtin.demo import run_demo

    return run_demo(options.folder)


COMMANDS = {
    "run": handle_run,
    "submit": handle_submit,
    "plan": handle_plan,
    "status": handle_status,
    "report": handle_report,
    "export": handle_export,
}
COMMANDS |= {"check": handle_check, "demo": handle_demo}
PRINT_LAST_COMMANDS = ("plan", "status", "report", "check")  # what they print is the last that they do

if __name__ == "__main__":
    sys.exit(main())
