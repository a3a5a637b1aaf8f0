"""Runs the commands about truths: score, sample, truth and compare. Functions import what they need when they run."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

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
    print(json.dumps(scoring.to_json_dict(score), indent=2) if options.json else "\n".join(format_score(score)))
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
    return shlex.join(["python", "-m", "pipeline", "score", options.output, "--truth", options.to])


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
    printed = json.dumps(compare.to_json_dict(comparison), indent=2) if options.json else None
    print(printed or "\n".join(format_comparison(comparison)))
    return ExitCode.ALL_ANSWERED
