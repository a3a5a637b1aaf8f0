"""The command line: every command with its options, its examples and the function that runs it."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Literal, NamedTuple

from pipeline.command_line import commands, output_commands, score_commands
from pipeline.command_line.job_options import (
    RETRY_OPTION,
    add_check_options,
    add_completion_options,
    add_demo_options,
    add_export_options,
    add_init_options,
    add_job_options,
    add_plan_options,
    add_run_options,
    add_submit_options,
)
from pipeline.command_line.output_options import (
    SERVE_OPTION,
    add_compare_options,
    add_neighbours_options,
    add_report_options,
    add_sample_options,
    add_score_options,
    add_status_options,
    add_truth_file_options,
)
from pipeline.command_text import format_program
from pipeline.registry import format_suggestion

HELP_WIDTH = 79  # of a terminal with 80 columns
EXIT_CODES_HELP = """\
exit codes:
  0    all rows are answered
  1    an internal error or a crash
  2    the job cannot run
  3    finished, but some rows are in errors/
  4    stopped early, or rows are missing
  130  interrupted
  143  terminated

Answers are committed as they arrive: run the same command again to continue."""


OPTIONAL_VALUES = {  # of options that may stand without one: what it looks like, and what it is by default
    RETRY_OPTION: (re.compile(r"[a-z_]+(/[a-z_]+)?(\s*,\s*[a-z_]+(/[a-z_]+)?)*", re.IGNORECASE), ""),
    SERVE_OPTION: (re.compile(r"\d+"), "0"),
}


class Command(NamedTuple):
    summary: str
    examples: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None]
    job_argument: Literal["required", "optional", "none"] = "required"


def parse_arguments(description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """After an option that may stand without a value, argparse would also take a job file for one."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for position, (option, following) in enumerate(pairwise(given)):
        pattern, default = OPTIONAL_VALUES.get(option, (None, ""))
        if pattern and not pattern.fullmatch(following):
            given[position] = f"{option}={default}"
    parser = build_parser(description)
    options, unknown = parser.parse_known_args(given)
    if unknown:
        known = dict.fromkeys(chain.from_iterable(action.option_strings for action in options.command_parser._actions))
        hint = format_suggestion(unknown[0].partition("=")[0], known) or f"; {options.command} --help lists all options"
        parser.error(f"unrecognized arguments: {shlex.join(unknown)}{hint}")
    return options


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Usage and examples name the program as it was called."""
    program = format_program()
    parser = argparse.ArgumentParser(
        prog=program,
        description=textwrap.fill(description or "", HELP_WIDTH),
        epilog=EXIT_CODES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        examples = command.examples.replace("python -m pipeline", program)
        subparser = subparsers.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog="examples:\n" + "\n".join(map(break_example, examples.splitlines())),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command.job_argument != "none":
            add_job_options(subparser, is_required=command.job_argument == "required")
        subparser.add_argument("--debug", action="store_true", help="show tracebacks")
        command.add_options(subparser)
        subparser.set_defaults(command_parser=subparser)
    subparsers.choices["completion"].set_defaults(parser=parser)  # it completes all commands
    return parser


def break_example(line: str) -> str:
    """A long command goes on in the next line, from an option on.

    >>> print(break_example("  vlbatch plan a.yaml --set input.manifest=./pictures --set media.max_pixels=250880"))
      vlbatch plan a.yaml --set input.manifest=./pictures \\
          --set media.max_pixels=250880
    """
    first, *options = line.split(" --") if " #" not in line else [line]
    lines = [first]
    for option in options:
        if len(f"{lines[-1]} --{option}") <= HELP_WIDTH - 2:
            lines[-1] += f" --{option}"
        else:
            lines.append(f"      --{option}")
    return " \\\n".join(lines)


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
        output_commands.show_status,
        add_status_options,
        job_argument="none",
    ),
    "report": Command(
        "write an HTML page with figures, answers beside their media, and errors",
        """\
  python -m pipeline report out/caption --roots ./my-pictures
  python -m pipeline report s3://acme/labels/invoices --to invoices.html --random 100
  python -m pipeline report out/caption --roots ./my-pictures --id 000123 --id 000124 --worst 0""",
        output_commands.write_report,
        add_report_options,
        job_argument="none",
    ),
    "score": Command(
        "measure answers against a truth, field by field, with intervals",
        """\
  python -m pipeline score out/demo/answers/detect --truth truth     # a column that input.keep names
  python -m pipeline score out/invoices --truth checked.csv --truth-id doc_id
  python -m pipeline score out/boxes --truth instances.json --json > score.json    # COCO or Label Studio""",
        score_commands.score_answers,
        add_score_options,
        job_argument="none",
    ),
    "sample": Command(
        "draw rows to label by hand: fill in the column truth, then score",
        """\
  python -m pipeline sample out/invoices --rows 200 --to check.csv
  python -m pipeline score out/invoices --truth check.csv    # also estimates all other rows""",
        score_commands.sample_rows,
        add_sample_options,
        job_argument="none",
    ),
    "neighbours": Command(
        "find rows that are alike by a column of vectors: near duplicates, the nearest rows, a diverse choice",
        """\
  python -m pipeline neighbours out/embed --above 0.97 --page duplicates.html --roots ./my-pictures
  python -m pipeline neighbours out/embed --near 000123 --count 20
  python -m pipeline neighbours out/embed --diverse 500 --to diverse.parquet""",
        output_commands.find_neighbours,
        add_neighbours_options,
        job_argument="none",
    ),
    "truth": Command(
        "turn what people labelled or corrected into a table of truths, by the ids of rows",
        """\
  python -m pipeline truth project-1.json out/boxes --from label-studio --to truth.parquet
  python -m pipeline truth yolo/data.yaml out/boxes --from yolo
  python -m pipeline score out/boxes --truth truth.parquet""",
        score_commands.write_truth,
        add_truth_file_options,
        job_argument="none",
    ),
    "compare": Command(
        "compare the answers to two questions of an output: two prompts, models or settings",
        """\
  python -m pipeline compare out/invoices --truth check.csv       # the two questions that were asked last
  python -m pipeline compare out/invoices 3f2a91c04d11 b7710e52aa90 --json""",
        score_commands.compare_answers,
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
