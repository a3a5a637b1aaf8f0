"""Runs the commands about truths: score, sample, truth and compare. Functions import what they need when they run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline.command_text import format_command
from pipeline.errors import ExitCode, PipelineError


def score_answers(options: argparse.Namespace) -> int:
    from pipeline.inspect import score as scoring
    from pipeline.inspect.score.score_text import format_score

    score = scoring.score_output(
        options.output,
        options.truth,
        question=options.question,
        id_column=options.truth_id,
        schema_spec=options.schema,
    )
    if options.json:
        print(json.dumps(scoring.to_json_dict(score), indent=2))
    else:
        print("\n".join(format_score(score)))
        report = format_command("report", options.output, *list_truth_options(options))
        print(f"\nnext: {report}  # what is wrong, beside the media")
    return ExitCode.ALL_ANSWERED


def sample_rows(options: argparse.Namespace) -> int:
    from pipeline.inspect.score.label_sample import write_sample

    count = write_sample(
        options.output,
        Path(options.to),
        row_count=options.rows,
        order=options.by,
        seed=options.seed,
        question=options.question,
        id_table=options.id_table,
    )
    print(f"{options.to}: {count.drawn:,} of {count.answered:,} answered rows; fill in the column truth")
    print(f"next: {format_score_command(options)}")
    return ExitCode.ALL_ANSWERED


def write_truth(options: argparse.Namespace) -> int:
    from pipeline.inspect.corrections import write_corrections
    from pipeline.run.progress import format_count

    count = write_corrections(
        options.file,
        options.output,
        Path(options.to),
        format_name="table" if options.format == "csv" else options.format,
        question=options.question,
        id_column=options.truth_id,
        schema_spec=options.schema,
    )
    unused = f"; truths that belong to no row of {options.output}: {count.unused:,}" if count.unused else ""
    print(f"{options.to}: {format_count(count.rows, 'row')}{unused}")
    print(f"next: {format_score_command(options)}")
    return ExitCode.ALL_ANSWERED


def format_score_command(options: argparse.Namespace) -> str:
    return format_command("score", options.output, "--truth", options.to)


def list_truth_options(options: argparse.Namespace) -> list[str]:
    """Those that were given, for another command about the same truth."""
    given = {"--question": getattr(options, "question", None), "--truth": options.truth, "--schema": options.schema}
    given |= {"--truth-id": options.truth_id if options.truth_id != "id" else None}
    return [word for option, value in given.items() if value for word in (option, value)]


def compare_answers(options: argparse.Namespace) -> int:
    from pipeline.inspect import compare
    from pipeline.inspect.compare.compare_text import format_comparison

    if len(options.questions) not in (0, 2):
        raise PipelineError("compare takes two questions, or none for the two that were asked last")
    comparison = compare.compare_questions(
        options.output,
        compare.ComparisonOptions(
            tuple(options.questions), options.truth, options.truth_id, options.schema, options.price
        ),
    )
    if options.json:
        print(json.dumps(compare.to_json_dict(comparison), indent=2))
    else:
        print("\n".join(format_comparison(comparison)))
        against = ["--question", comparison.questions[1], "--against", comparison.questions[0]]
        report = format_command("report", options.output, *against, *list_truth_options(options))
        print(f"next: {report}  # both answers side by side")
    return ExitCode.ALL_ANSWERED
