"""The command line, as argparse reads it: every command with its options and examples to copy. Nothing is imported."""

from __future__ import annotations

import argparse
from typing import Any

EXIT_CODES_HELP = """\
Exit codes: 0 every row answered; 1 a surprise (a bug, or a crash); 2 the job cannot run; 3 done, with rows in
errors/; 4 stopped early, or rows missing; 130 interrupted; 143 terminated. Answers are committed as they come:
the same command again does only what is left."""

EXAMPLES = {
    "run": """\
  python -m pipeline run jobs/caption.yaml
  python -m pipeline run jobs/caption.yaml --set input.manifest=./my-pictures --limit 20
  python -m pipeline run job.yaml --local --set model.weights=builtin:tiny --set workers.generate.gpus=0
  python -m pipeline run job.yaml --set prompt.user="How many people?" --on-change add
  python -m pipeline run job.yaml --retry-errors fetch""",
    "submit": """\
  python -m pipeline submit job.yaml --address http://127.0.0.1:8265 --follow
  python -m pipeline submit job.yaml --date 2026-11-20      # a night that was missed""",
    "plan": """\
  python -m pipeline plan jobs/caption.yaml --set input.manifest=./my-pictures
  python -m pipeline plan job.yaml --gpu H100 --gpu L4 --price 2.10
  python -m pipeline plan job.yaml --all --json > plan.json""",
    "status": """\
  python -m pipeline status out/caption
  python -m pipeline status s3://acme/labels/invoices --json""",
    "report": """\
  python -m pipeline report out/caption
  python -m pipeline report s3://acme/labels/invoices --to invoices.html --random 100
  python -m pipeline report out/caption --id 000123 --id 000124 --worst 0""",
    "export": """\
  python -m pipeline export job.yaml s3://acme/tables/invoices-2026-11-20
  python -m pipeline export job.yaml ./table --partition-by answer.currency""",
    "check": """\
  python -m pipeline check job.yaml
  python -m pipeline check --explain                # every key of a job file
  python -m pipeline check --explain | grep -i pixels""",
    "demo": """\
  python -m pipeline demo
  python -m pipeline demo /tmp/demo""",
}


def build_parser(description: str | None) -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m pipeline",
        description=description,
        epilog=EXIT_CODES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run_options(
        _add_command(commands, "run", "ask every row of a manifest that is not answered yet", takes_job=True)
    )
    _add_submit_options(
        _add_command(commands, "submit", "the same as a job on a Ray cluster, from here", takes_job=True)
    )
    _add_plan_options(
        _add_command(commands, "plan", "tokens, memory, hours, cost and failures, from headers alone", takes_job=True)
    )
    _add_output_options(
        _add_command(commands, "status", "what is answered, wrong and left in an output, and who works on it")
    )
    _add_report_options(
        _add_command(commands, "report", "one HTML page with figures, answers beside their pictures, and errors")
    )
    _add_export_options(_add_command(commands, "export", "one table of all answers, in large files", takes_job=True))
    _add_check_options(_add_command(commands, "check", "is this job right? nothing is started", takes_job=None))
    demo = _add_command(commands, "demo", "draw pictures and run a job over them on the built-in model")
    demo.add_argument("folder", nargs="?", default="out/demo")
    return whole


def _add_command(commands: Any, name: str, summary: str, *, takes_job: bool | None = False) -> argparse.ArgumentParser:
    """`job`: whether it takes a job file; None: it may."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"examples:\n{EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if takes_job is not False:
        command.add_argument("job", nargs=None if takes_job else "?", help="a YAML file")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the job")
        command.add_argument("--date", metavar="DAY", help="what ${date} stands for, as 2026-11-20; default: today")
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    return command


def _add_run_options(command: argparse.ArgumentParser) -> None:
    _add_shared_run_options(command)
    command.add_argument("--local", action="store_true", help="in this process, without Ray")


def _add_submit_options(command: argparse.ArgumentParser) -> None:
    _add_shared_run_options(command)
    command.add_argument("--address", metavar="URL", help="the cluster's dashboard; default: $RAY_ADDRESS")
    command.add_argument("--follow", action="store_true", help="show the log, and end as the run ends")
    command.add_argument(
        "--grace", type=_parse_positive_int, default=60, metavar="S", help="seconds a stopped run has; default 60"
    )


def _add_shared_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--limit", type=_parse_positive_int, metavar="N", help="only the first N rows of the manifest")
    command.add_argument("--allow-errors", action="store_true", help="rows in errors/ are no failure: exit 0, not 3")
    command.add_argument("--take-over", action="store_true", help="do not wait for a run that holds the output")
    failed = "ask failed rows again: all, or those of a stage, a kind, or both (fetch, timeout, fetch/timeout)"
    command.add_argument("--ray-log", action="store_true", help="show what Ray and its workers log, too")
    command.add_argument("--retry-errors", nargs="?", const="", metavar="KIND", help=failed)
    command.add_argument(
        "--on-change",
        choices=["refuse", "add"],
        default="refuse",
        help="another question in the same output; default: refuse it",
    )


def _add_plan_options(command: argparse.ArgumentParser) -> None:
    looked = command.add_mutually_exclusive_group()
    looked.add_argument("--all", action="store_true", help="read the header of every row, not of a sample")
    looked.add_argument(
        "--sample", type=_parse_positive_int, default=2000, metavar="N", help="rows to look at; default 2000"
    )
    command.add_argument("--limit", type=_parse_positive_int, metavar="N", help="only the first N rows of the manifest")
    command.add_argument("--gpu", action="append", default=[], metavar="NAME", help="only these; default: all known")
    command.add_argument("--price", type=float, metavar="USD", help="of one GPU hour; default: a typical one")
    command.add_argument("--answer-tokens", type=_parse_positive_int, metavar="N", help="expected length of an answer")
    command.add_argument("--json", action="store_true", help="as JSON, on standard output")


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("output", help="the output.path of a job")
    command.add_argument("--question", metavar="FP", help="a fingerprint; default: the question that was asked last")
    if command.prog.endswith("status"):
        command.add_argument("--json", action="store_true", help="as JSON, on standard output")


def _add_report_options(command: argparse.ArgumentParser) -> None:
    _add_output_options(command)
    command.add_argument("--to", metavar="FILE", help="default: report.html, in a local output or else here")
    command.add_argument("--random", type=int, default=24, metavar="N", help="rows drawn at random; default 24")
    command.add_argument("--worst", type=int, default=12, metavar="N", help="rows of least confidence; default 12")
    command.add_argument("--id", action="append", default=[], metavar="ID", help="this row, too")


def _add_export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", metavar="TARGET", help="an empty folder: any fsspec URL")
    most = "rows in a file, at most; default 1,000,000"
    command.add_argument("--rows-per-file", type=_parse_positive_int, default=1_000_000, metavar="N", help=most)
    parted = "folders by its values, as Hive has them: a column, or a field such as answer.currency; may be repeated"
    command.add_argument("--partition-by", action="append", default=[], metavar="COLUMN", help=parted)


def _add_check_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--explain", action="store_true", help="list every key with its meaning")


def _parse_positive_int(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, one or more")
    return number
