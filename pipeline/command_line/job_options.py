"""The options of the commands that read or write a job: run, submit, plan, export, check and init."""

from __future__ import annotations

import argparse

from pipeline.command_line.output_options import add_json_option, add_serve_option, parse_positive_int
from pipeline.command_line.shell_completion import SHELLS
from pipeline.new_job.gallery import list_gallery
from pipeline.new_job.schema_text import FIELDS_HELP
from pipeline.registry import EXPORTERS

RETRY_OPTION = "--retry-errors"


def add_job_options(parser: argparse.ArgumentParser, *, is_required: bool) -> None:
    parser.add_argument("job", nargs=None if is_required else "?", help="a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the job")
    parser.add_argument("--date", metavar="DAY", help="the value of ${date}, such as 2026-11-20; default: today")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    add_shared_run_options(parser)
    parser.add_argument("--local", action="store_true", help="run in this process, without Ray")
    shard_help = "only the second of four parts of the manifest; other runs work on the others, on the same output"
    parser.add_argument("--shard", type=parse_shard, metavar="2/4", help=shard_help)
    add_serve_option(parser, "show progress, the last answers and errors on a page in a browser of this machine")
    stop_help = "stop the Ray job if it cannot run (exit code 2), so that KubeRay does not retry it"
    parser.add_argument("--stop-when-refused", action="store_true", help=stop_help)


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    add_shared_run_options(parser)
    parser.add_argument("--address", metavar="URL", help="the cluster's dashboard; default: $RAY_ADDRESS")
    parser.add_argument("--follow", action="store_true", help="show the log, and exit with the code of the run")
    shards_help = "divide the manifest among N drivers, each a Ray job with its part of the cluster"
    parser.add_argument("--shards", type=parse_positive_int, default=1, metavar="N", help=shards_help)
    grace_help = "seconds that a stopped run gets to finish; default 60"
    parser.add_argument("--grace", type=parse_positive_int, default=60, metavar="S", help=grace_help)


def add_shared_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=parse_positive_int, metavar="N", help="only the first N rows of the manifest")
    except_help = "do not ask the rows of this table: people have labelled them, or neighbours names them as duplicates"
    parser.add_argument("--except", dest="labelled_rows", metavar="TABLE", help=except_help)
    add_allow_errors_option(parser)
    parser.add_argument("--take-over", action="store_true", help="do not wait for another run that holds the output")
    parser.add_argument("--ray-log", action="store_true", help="show the log of Ray and its workers")
    retry_help = "ask failed rows again: all, or those of stages, kinds, or both, such as fetch or decode,fetch/timeout"
    parser.add_argument(RETRY_OPTION, nargs="?", const="", metavar="KINDS", help=retry_help)
    change_help = "what to do if the output holds answers to another question; default: refuse"
    parser.add_argument("--on-change", choices=["refuse", "add"], default="refuse", help=change_help)


def parse_shard(text: str) -> tuple[int, int]:
    """
    >>> parse_shard("2/4")
    (2, 4)
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard; the four shards of a manifest are 1/4, 2/4, 3/4, 4/4")
    return int(number), int(count)


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
    push_help = "then put a complete export of the format huggingface on the hub, as a private data set if it is new"
    parser.add_argument("--push", metavar="OWNER/NAME", help=push_help)
    truth_help = "what people corrected replaces what the model answered: a file that `truth` reads, or its table"
    parser.add_argument("--prefer-truth", metavar="TRUTH", help=truth_help)
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
