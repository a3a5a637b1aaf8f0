"""The command line: every command with its options, its examples and the function that runs it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from pipeline import commands
from pipeline.new_job.gallery import list_gallery
from pipeline.new_job.schema_text import FIELDS_HELP
from pipeline.output_options import (
    add_compare_options,
    add_json_option,
    add_report_options,
    add_sample_options,
    add_score_options,
    add_status_options,
    parse_positive_int,
)
from pipeline.registry import EXPORTERS
from pipeline.shell_completion import SHELLS

EXIT_CODES_HELP = """\
Exit codes: 0 all rows answered; 1 internal error or crash; 2 the job cannot run; 3 finished, but some rows are in
errors/; 4 stopped early, or rows are missing; 130 interrupted; 143 terminated. Answers are committed as they arrive:
run the same command again to continue."""


RETRY_OPTION = "--retry-errors"
RETRY_KINDS = re.compile(r"[a-z_]+(/[a-z_]+)?(\s*,\s*[a-z_]+(/[a-z_]+)?)*", re.IGNORECASE)


class Command(NamedTuple):
    summary: str
    examples: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None]
    job_argument: Literal["required", "optional", "none"] = "required"


def parse_arguments(description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """After `--retry-errors` argparse would also take a job file for its value."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for position, (option, following) in enumerate(pairwise(given)):
        if option == RETRY_OPTION and not RETRY_KINDS.fullmatch(following):
            given[position] = f"{RETRY_OPTION}="
    return build_parser(description).parse_args(given)


def build_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description=description,
        epilog=EXIT_CODES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"examples:\n{command.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command.job_argument != "none":
            add_job_options(subparser, is_required=command.job_argument == "required")
        subparser.add_argument("--debug", action="store_true", help="show tracebacks")
        command.add_options(subparser)
    subparsers.choices["completion"].set_defaults(parser=parser)  # it completes all commands
    return parser


def add_job_options(parser: argparse.ArgumentParser, *, is_required: bool) -> None:
    parser.add_argument("job", nargs=None if is_required else "?", help="a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the job")
    parser.add_argument("--date", metavar="DAY", help="the value of ${date}, such as 2026-11-20; default: today")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    add_shared_run_options(parser)
    parser.add_argument("--local", action="store_true", help="run in this process, without Ray")
    stop_help = "stop the Ray job if it cannot run (exit code 2), so that KubeRay does not retry it"
    parser.add_argument("--stop-when-refused", action="store_true", help=stop_help)


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    add_shared_run_options(parser)
    parser.add_argument("--address", metavar="URL", help="the cluster's dashboard; default: $RAY_ADDRESS")
    parser.add_argument("--follow", action="store_true", help="show the log, and exit with the code of the run")
    grace_help = "seconds that a stopped run gets to finish; default 60"
    parser.add_argument("--grace", type=parse_positive_int, default=60, metavar="S", help=grace_help)


def add_shared_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=parse_positive_int, metavar="N", help="only the first N rows of the manifest")
    add_allow_errors_option(parser)
    parser.add_argument("--take-over", action="store_true", help="do not wait for another run that holds the output")
    parser.add_argument("--ray-log", action="store_true", help="show the log of Ray and its workers")
    retry_help = "ask failed rows again: all, or those of stages, kinds, or both, such as fetch or decode,fetch/timeout"
    parser.add_argument(RETRY_OPTION, nargs="?", const="", metavar="KINDS", help=retry_help)
    change_help = "what to do if the output holds answers to another question; default: refuse"
    parser.add_argument("--on-change", choices=["refuse", "add"], default="refuse", help=change_help)


def add_allow_errors_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-errors", action="store_true", help="exit with 0 instead of 3 when rows failed")


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    survey = parser.add_mutually_exclusive_group()
    survey.add_argument("--all", action="store_true", help="read the header of every row instead of a sample")
    survey.add_argument(
        "--sample", type=parse_positive_int, default=2000, metavar="N", help="rows to sample; default 2000"
    )
    parser.add_argument("--limit", type=parse_positive_int, metavar="N", help="only the first N rows of the manifest")
    parser.add_argument("--gpu", action="append", default=[], metavar="NAME", help="a GPU to consider; default: all")
    parser.add_argument("--price", type=float, metavar="USD", help="price of one GPU hour; default: a typical one")
    parser.add_argument("--answer-tokens", type=parse_positive_int, metavar="N", help="expected tokens of an answer")
    add_json_option(parser)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="an empty folder: any fsspec URL")
    format_help = f"one of {', '.join(EXPORTERS)}; default table"
    parser.add_argument("--to", default="table", metavar="FORMAT", help=format_help)
    rows_help = "maximum rows in a file; default 1,000,000"
    parser.add_argument("--rows-per-file", type=parse_positive_int, default=1_000_000, metavar="N", help=rows_help)
    partition_help = "one Hive folder per value of a column or of a field such as answer.currency; may be repeated"
    parser.add_argument("--partition-by", action="append", default=[], metavar="COLUMN", help=partition_help)
    calibrated_help = "confidences as the newest score of the question calibrates them"
    parser.add_argument("--calibrated", action="store_true", help=calibrated_help)
    where_help = "only rows for which this is true, as DuckDB writes it: \"answer.total > 100 and 'review' in flags\""
    parser.add_argument("--where", metavar="EXPR", help=where_help)
    split_help = "divide the rows by a hash of their ids: train=0.9,val=0.1"
    parser.add_argument("--split", metavar="SHARES", help=split_help)
    media_help = "copy media into the export, link to the originals, or neither; default: by format"
    parser.add_argument("--media", choices=["copy", "link", "none"], help=media_help)
    complete_help = "export nothing unless every row of the manifest has an answer"
    parser.add_argument("--require-complete", action="store_true", help=complete_help)
    add_allow_errors_option(parser)


def add_check_options(parser: argparse.ArgumentParser) -> None:
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--explain", action="store_true", help="list every key with its meaning")
    schema_help = "print the JSON Schema of job files, by which editors complete and check them"
    instead.add_argument("--json-schema", action="store_true", help=schema_help)


def add_init_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", metavar="TASK", help=f"one of {', '.join(list_gallery())}")
    parser.add_argument("--manifest", metavar="URL", help="a folder of media, or a table with a column of URIs")
    parser.add_argument("--to", metavar="FILE", help="the job file to write; default: TASK.yaml")
    parser.add_argument(
        "--model", metavar="NAME", help="a checkpoint; with --url the name by which the server knows it"
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of one copy of the model; 0 runs on CPU")
    parser.add_argument("--url", help="a server of the OpenAI protocol that runs the model, up to /v1")
    parser.add_argument("--fields", metavar="FIELDS", help=f"write a schema with fields of your own: {FIELDS_HELP}")
    parser.add_argument("--prompt", metavar="TEXT", help="what to ask")
    parser.add_argument("--media", metavar="COLUMN", help="the column with media; default: one that looks like it")
    parser.add_argument("--id", metavar="COLUMN", help="the column that names rows; default: one that looks like it")


def add_completion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="out/demo")


COMMANDS = {
    "init": Command(
        "write a job file for a task: from flags, or from answers to a few questions",
        """\
  python -m pipeline init                                       # asks
  python -m pipeline init caption --manifest ./my-pictures
  python -m pipeline init invoice --manifest scans.parquet --gpus 0 --model builtin:tiny
  python -m pipeline init --manifest ./labels --to wine.yaml \\
      --prompt "Read this label." --fields "producer, year: whole, color: red|white|rose" """,
        commands.write_new_job,
        add_init_options,
        job_argument="none",
    ),
    "run": Command(
        "answer every row of a manifest that has no answer yet",
        """\
  python -m pipeline run jobs/caption.yaml
  python -m pipeline run jobs/caption.yaml --set input.manifest=./my-pictures --limit 20
  python -m pipeline run job.yaml --local --set model.weights=builtin:tiny --set workers.generate.gpus=0
  python -m pipeline run job.yaml --set prompt.user="How many people?" --on-change add
  python -m pipeline run job.yaml --retry-errors fetch""",
        commands.run_job,
        add_run_options,
    ),
    "submit": Command(
        "run a job on a Ray cluster, from this machine",
        """\
  python -m pipeline submit job.yaml --address http://127.0.0.1:8265 --follow
  python -m pipeline submit job.yaml --date 2026-11-20      # a night that was missed""",
        commands.submit_job,
        add_submit_options,
    ),
    "plan": Command(
        "predict tokens, memory, hours, cost and failures, from file headers alone",
        """\
  python -m pipeline plan jobs/caption.yaml --set input.manifest=./my-pictures
  python -m pipeline plan job.yaml --gpu H100 --gpu L4 --price 2.10
  python -m pipeline plan job.yaml --all --json > plan.json""",
        commands.plan_job,
        add_plan_options,
    ),
    "status": Command(
        "show what an output has answered, what failed, what is left, and who works on it",
        """\
  python -m pipeline status out/caption
  python -m pipeline status s3://acme/labels/invoices --json""",
        commands.show_status,
        add_status_options,
        job_argument="none",
    ),
    "report": Command(
        "write an HTML page with figures, answers beside their media, and errors",
        """\
  python -m pipeline report out/caption --roots ./my-pictures
  python -m pipeline report s3://acme/labels/invoices --to invoices.html --random 100
  python -m pipeline report out/caption --roots ./my-pictures --id 000123 --id 000124 --worst 0""",
        commands.write_report,
        add_report_options,
        job_argument="none",
    ),
    "score": Command(
        "measure answers against a truth, field by field, with intervals",
        """\
  python -m pipeline score out/demo/answers/detect --truth truth     # a column that input.keep names
  python -m pipeline score out/invoices --truth checked.csv --truth-id doc_id
  python -m pipeline score out/boxes --truth instances.json --json > score.json    # COCO or Label Studio""",
        commands.score_answers,
        add_score_options,
        job_argument="none",
    ),
    "sample": Command(
        "draw rows to label by hand: fill in the column truth, then score",
        """\
  python -m pipeline sample out/invoices --rows 200 --to check.csv
  python -m pipeline score out/invoices --truth check.csv    # also estimates all other rows""",
        commands.sample_rows,
        add_sample_options,
        job_argument="none",
    ),
    "compare": Command(
        "compare the answers to two questions of an output: two prompts, models or settings",
        """\
  python -m pipeline compare out/invoices --truth check.csv       # the two questions that were asked last
  python -m pipeline compare out/invoices 3f2a91c04d11 b7710e52aa90 --json""",
        commands.compare_answers,
        add_compare_options,
        job_argument="none",
    ),
    "export": Command(
        "write all answers in one format: a clean table in large files, for instance",
        """\
  python -m pipeline export job.yaml s3://acme/tables/invoices-2026-11-20
  python -m pipeline export job.yaml ./table --partition-by answer.currency""",
        commands.export_answers,
        add_export_options,
    ),
    "check": Command(
        "check a job without starting anything",
        """\
  python -m pipeline check job.yaml
  python -m pipeline check --explain                # every key of a job file
  python -m pipeline check --explain | grep -i pixels
  python -m pipeline check --json-schema > job.schema.json    # see the first lines of jobs/caption.yaml""",
        commands.check_job,
        add_check_options,
        job_argument="optional",
    ),
    "demo": Command(
        "draw pictures and run a job over them with the built-in model",
        """\
  python -m pipeline demo
  python -m pipeline demo /tmp/demo""",
        commands.run_demo,
        add_demo_options,
        job_argument="none",
    ),
    "completion": Command(
        "print the script by which a shell completes vlbatch (pip install vlbatch[completion])",
        """\
  source <(vlbatch completion bash)                                   # in ~/.bashrc
  vlbatch completion zsh > "${fpath[1]}/_vlbatch"
  vlbatch completion fish > ~/.config/fish/completions/vlbatch.fish""",
        commands.print_completion,
        add_completion_options,
        job_argument="none",
    ),
}
