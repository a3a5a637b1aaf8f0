"""The options of the commands that read an output: status, report, score, sample, neighbours and compare."""

from __future__ import annotations

import argparse

from pipeline.registry import TRUTHS

SERVE_OPTION = "--serve"
OUTPUT_HELP = "the output.path of a job, or the job's file"


def locate_output(options: argparse.Namespace) -> None:
    """Put the output's path in the place of a job's file."""
    output = getattr(options, "output", "")
    if output.endswith((".yaml", ".yml")):
        from pipeline.job.job_loader import load_job

        options.output = load_job(output).output.path


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help=OUTPUT_HELP)
    parser.add_argument("--question", metavar="FP", help="a fingerprint; default: the question that was asked last")


def add_status_options(parser: argparse.ArgumentParser) -> None:
    add_output_options(parser)
    add_json_option(parser)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    add_output_options(parser)
    file_help = "default: report.html in a local output, otherwise in this folder"
    parser.add_argument("--to", metavar="FILE", help=file_help)
    add_serve_option(parser, "in place of a file, a page that follows the output until Ctrl-C")
    parser.add_argument("--random", type=int, default=24, metavar="N", help="random rows to show; default 24")
    parser.add_argument("--worst", type=int, default=12, metavar="N", help="least confident rows to show; default 12")
    parser.add_argument("--id", action="append", default=[], metavar="ID", help="a row to show")
    add_truth_options(parser, is_required=False)
    parser.add_argument("--against", metavar="FP", help="another question, whose answers are shown where they differ")
    add_media_access_options(parser)


def add_media_access_options(parser: argparse.ArgumentParser) -> None:
    for name, place in {"roots": "FOLDER", "hosts": "HOST:PORT", "stores": "URL"}.items():
        place_help = f"show media from there, as with the key input.{name} of a job; may be repeated"
        parser.add_argument(f"--{name}", action="append", default=[], metavar=place, help=place_help)


def add_serve_option(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument(
        SERVE_OPTION, nargs="?", type=int, const=0, metavar="PORT", help=f"{purpose}; default: any free port"
    )


def add_score_options(parser: argparse.ArgumentParser) -> None:
    add_output_options(parser)
    add_truth_options(parser, is_required=True)
    add_json_option(parser)


def add_truth_options(parser: argparse.ArgumentParser, *, is_required: bool) -> None:
    truth_help = "a kept column of the output; or Parquet, JSONL, CSV, or a file of COCO, Label Studio, YOLO, CVAT"
    parser.add_argument("--truth", required=is_required, metavar="WHERE", help=truth_help)
    add_schema_options(parser)


def add_schema_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--truth-id", default="id", metavar="COLUMN", help="the ids in a table of truths; default id")
    schema_help = "the job's own schema, such as path.py:Model, if it says how fields are compared"
    parser.add_argument("--schema", metavar="SCHEMA", help=schema_help)


def add_truth_file_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="what people labelled: a file, or data.yaml of a YOLO folder")
    parser.add_argument("output", help="the output.path, or the file, of the job whose rows these are")
    parser.add_argument("--question", metavar="FP", help="a fingerprint; default: the question that was asked last")
    parser.add_argument("--from", dest="format", choices=[*TRUTHS, "csv"], help="default: the file tells")
    parser.add_argument("--to", default="truth.parquet", metavar="FILE", help="default truth.parquet in this folder")
    add_schema_options(parser)


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    add_output_options(parser)
    parser.add_argument("--rows", type=parse_positive_int, default=200, metavar="N", help="rows to draw; default 200")
    by_help = "confidence: evenly over the answers from doubtful to sure; default random"
    parser.add_argument("--by", choices=["random", "confidence"], default="random", help=by_help)
    from_help = "draw only rows whose id is in this table, such as one that neighbours wrote"
    parser.add_argument("--from", dest="id_table", metavar="TABLE", help=from_help)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another number draws other rows; default 0")
    file_help = "a new file, .csv, .jsonl or .parquet; default sample.csv in this folder"
    parser.add_argument("--to", default="sample.csv", metavar="FILE", help=file_help)


def add_neighbours_options(parser: argparse.ArgumentParser) -> None:
    add_output_options(parser)
    parser.add_argument("--column", metavar="NAME", help="a column of vectors; default: the only one")
    above_help = "rows of at least this cosine are near duplicates; default 0.95, with --whiten 0.8"
    parser.add_argument("--above", type=parse_cosine, metavar="COSINE", help=above_help)
    whiten_help = "give all directions of the vectors the same spread before they are compared: finds more duplicates "
    whiten_help += "in vectors of models that were not trained for comparison, such as `from: vision`"
    parser.add_argument("--whiten", action="store_true", help=whiten_help)
    instead = parser.add_mutually_exclusive_group()
    near_help = "find the rows nearest to this one instead; may be repeated"
    instead.add_argument("--near", action="append", default=[], metavar="ID", help=near_help)
    diverse_help = "choose N rows that are as different as possible instead"
    instead.add_argument("--diverse", type=parse_positive_int, metavar="N", help=diverse_help)
    parser.add_argument(
        "--count", type=parse_positive_int, default=10, metavar="K", help="rows for each --near; default 10"
    )
    approximate_help = "find most duplicates by an index: for many millions of rows; needs vlbatch[neighbours]"
    parser.add_argument("--approximate", action="store_true", help=approximate_help)
    parser.add_argument(
        "--to", default="neighbours.parquet", metavar="FILE", help="default neighbours.parquet in this folder"
    )
    vectors_help = "also write the vectors as they were compared, as Parquet with the columns id and vector"
    parser.add_argument("--vectors", metavar="FILE", help=vectors_help)
    parser.add_argument("--page", metavar="FILE", help="also show them on an HTML page")
    add_media_access_options(parser)


def parse_cosine(text: str) -> float:
    try:
        cosine = float(text)
    except ValueError:
        cosine = 0.0
    if not 0 < cosine <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a cosine above 0, at most 1")
    return cosine


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help=OUTPUT_HELP)
    questions_help = "two fingerprints, which status shows; default: the two questions that were asked last"
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=questions_help)
    add_truth_options(parser, is_required=False)
    parser.add_argument(
        "--price", type=float, metavar="USD", help="of one hour of a worker, where tokens have no price"
    )
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def parse_positive_int(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of 1 or more")
    return number
