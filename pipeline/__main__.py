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
    options = command_line.parser(__doc__).parse_args(arguments)
    try:
        code = COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if options.command in LOOKS else 141
    except PipelineError as error:
        if options.debug:
            raise
        log.last(f"error: {error}")
        return 4 if isinstance(error, StoppedError) else 2
    except KeyboardInterrupt:
        log.last("interrupted; what was committed stays, the same command goes on from there", level="warning")
        return 130
    except Terminated:
        log.last("terminated; what was committed stays, the same command goes on from there", level="warning")
        return 143


def run(options: argparse.Namespace) -> int:
    from pipeline.job import load_job
    from pipeline.run import driver

    taker = log.taker()
    job = load_job.load(options.job, changes=options.set, date=options.date)
    wish = driver.Options(
        limit=options.limit,
        here=options.local,
        add=options.on_change == "add",
        take_over=options.take_over,
        retry=options.retry_errors,
        loud=options.ray_log,
    )
    code = driver.run(job, wish, say=taker)
    return 0 if code == driver.FAILED_ROWS and options.allow_errors else code


def submit(options: argparse.Namespace) -> int:
    from pipeline.cluster.submit import Order
    from pipeline.cluster.submit import submit as send

    words = [f"--set={change}" for change in options.set]
    words += [f"--limit={options.limit}"] if options.limit else []
    words += [f"--on-change={options.on_change}", *(["--allow-errors"] if options.allow_errors else [])]
    words += ["--take-over"] * options.take_over + ["--ray-log"] * options.ray_log
    words += [] if options.retry_errors is None else [f"--retry-errors={options.retry_errors}"]
    order = Order(
        path=options.job,
        changes=options.set,
        date=options.date,
        words=words,
        address=options.address,
        grace_s=options.grace,
    )
    return send(order, follow=options.follow)


def quote(options: argparse.Namespace) -> int:
    from pipeline.inspect.plan import as_json, plan
    from pipeline.inspect.plan.format import lines
    from pipeline.job import load_job

    made = plan(
        load_job.load(options.job, changes=options.set, date=options.date),
        rows=None if options.all else options.sample,
        limit=options.limit,
        answer_tokens=options.answer_tokens,
        gpus=options.gpu,
        price=options.price,
    )
    print(json.dumps(as_json(made), indent=2) if options.json else "\n".join(lines(made)))
    return 0


def export(options: argparse.Namespace) -> int:
    from pipeline.export import table
    from pipeline.job import load_job

    job = load_job.load(options.job, changes=options.set, date=options.date)
    per_file, by = options.rows_per_file, options.partition_by
    table.export(job, options.target, rows_per_file=per_file, partition_by=by, say=print)
    return 0


def check(options: argparse.Namespace) -> int:
    from pipeline.job import load_job, variables
    from pipeline.manifest.files import files
    from pipeline.run import preflight

    if options.explain:
        print("\n".join([*reference.reference(Job), "", variables.EXPLAINED]))
        return 0
    if options.job is None:
        raise PipelineError("check needs a job file, or --explain")
    job = load_job.load(options.job, changes=options.set, date=options.date)
    found = files(job)
    shared = preflight.work(job, found)
    problems = preflight.problems(shared, found)
    if problems:
        raise PipelineError("\n".join([f"{options.job}:", *(f"  {problem}" for problem in problems)]))
    if caution := preflight.caution(shared):
        print(f"careful: {caution}")
    print(f"{options.job} is right: {job.name}, {len(found)} manifest file(s), fingerprint {shared.fingerprint}")
    return 0


def status(options: argparse.Namespace) -> int:
    from pipeline.inspect import status

    found = status.status(options.output, options.question)
    print(json.dumps(status.as_json(found), indent=2) if options.json else "\n".join(status.lines(found)))
    return 0


def report(options: argparse.Namespace) -> int:
    from pathlib import Path

    from pipeline.inspect.report import report
    from pipeline.inspect.report.gather import Wish

    folder = Path() if "://" in options.output else Path(options.output)
    wish = Wish(options.random, options.worst, tuple(options.id))
    written = report(options.output, Path(options.to or folder / "report.html"), wish=wish, question=options.question)
    print(f"{written.path}: {written.rows} rows, {written.bytes / 2**20:.1f} MiB; open it in a browser")
    return 0


def show(options: argparse.Namespace) -> int:
    from pipeline.builtin.demo import demo

    return demo(options.folder)


COMMANDS = {"run": run, "submit": submit, "plan": quote, "status": status, "report": report, "export": export}
COMMANDS |= {"check": check, "demo": show}
LOOKS = ("plan", "status", "report", "check")  # what they print is the last that they do

if __name__ == "__main__":
    sys.exit(main())
