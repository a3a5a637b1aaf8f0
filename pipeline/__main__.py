"""python -m pipeline COMMAND

  run JOB [--limit N] [--set key=value] [--local] [--on-change add]
  check JOB [--set key=value]      is this job right? nothing is started
  check --explain                  every key of a job file
  demo [FOLDER]                    draw pictures, run a job over them on the built-in model

Exit codes: 0 every row answered; 1 a surprise (a bug, or a crash); 2 the job cannot run; 3 done, with rows in
errors/; 4 stopped early, or rows missing; 130 interrupted; 143 terminated. Answers are committed as they come:
the same command again does only what is left.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.errors import PipelineError, StoppedError, Terminated
from pipeline.job import Job
from pipeline.run import log


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("run", "check"):
        command = commands.add_parser(name, help=f"{name} a job file")
        command.add_argument("job", nargs="?" if name == "check" else None, help="a YAML file")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the job")
        command.add_argument("--date", metavar="DAY", help="what ${date} stands for, as 2026-11-20; default: today")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        if name == "check":
            command.add_argument("--explain", action="store_true", help="list every key with its meaning")
        else:
            command.add_argument("--limit", type=int, metavar="N", help="only the first N rows of the manifest")
            command.add_argument("--local", action="store_true", help="in this process, without Ray")
            command.add_argument(
                "--on-change", choices=["refuse", "add"], default="refuse", help="another question in the same output"
            )
    demo = commands.add_parser("demo", help="a job on the built-in model")
    demo.add_argument("folder", nargs="?", default="out/demo")
    demo.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    try:
        return {"run": run, "check": check, "demo": show}[options.command](options)
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
    from pipeline import jobfile
    from pipeline.run import drive

    taker = log.taker()
    job = jobfile.load(options.job, changes=options.set, date=options.date)
    if options.limit is not None and options.limit < 1:
        raise PipelineError(f"--limit {options.limit}: give a number of rows, one or more")
    return drive.run(job, limit=options.limit, here=options.local, add=options.on_change == "add", say=taker)


def check(options: argparse.Namespace) -> int:
    from pipeline import jobfile, jobvalues
    from pipeline.intake.manifest import files
    from pipeline.run import brief

    if options.explain:
        print("\n".join([*jobfile.reference(Job), "", jobvalues.EXPLAINED]))
        return 0
    if options.job is None:
        raise PipelineError("check needs a job file, or --explain")
    job = jobfile.load(options.job, changes=options.set, date=options.date)
    found = files(job)
    shared = brief.work(job, found)
    problems = brief.problems(shared, found)
    if problems:
        raise PipelineError("\n".join([f"{options.job}:", *(f"  {problem}" for problem in problems)]))
    if caution := brief.caution(shared):
        print(f"careful: {caution}")
    print(f"{options.job} is right: {job.name}, {len(found)} manifest file(s), fingerprint {shared.fingerprint}")
    return 0


def show(options: argparse.Namespace) -> int:
    from pipeline.tiny.demo import demo

    return demo(options.folder)


if __name__ == "__main__":
    sys.exit(main())
