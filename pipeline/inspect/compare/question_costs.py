"""What the answers to a question cost, by the reports of its runs: tokens, seconds and money."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.inspect.output_reader import OutputReader


@dataclass
class QuestionCost:
    """Sums over the runs that ended, discarded replies included, divided by their rows. None where it is not known."""

    rows: int  # of those runs
    tokens: float | None
    seconds: float | None  # that the workers which generate were at work
    cost: float | None
    tokens_per_right: float | None
    seconds_per_right: float | None
    cost_per_right: float | None


def compute_question_cost(
    reader: OutputReader, right_share: float | None, price_per_hour: float | None
) -> QuestionCost:
    """`right_share` is the share of right answers, if there is a truth."""
    reports = [report for report in reader.run_reports if report.get("seconds") is not None]
    rows = sum(report["answered"] + report["failed"] for report in reports)
    tokens = sum(report["prompt_tokens"] + report["output_tokens"] for report in reports)
    seconds = sum(report.get("workers_seconds", {}).get("worked", 0.0) for report in reports)
    costs = [report["cost"] for report in reports if report.get("cost") is not None]
    cost = sum(costs) if costs else None if price_per_hour is None else seconds / 3600 * price_per_hour
    per_row = [None if total is None or not rows else total / rows for total in (tokens, seconds, cost)]
    per_right = [None if each is None or not right_share else each / right_share for each in per_row]
    return QuestionCost(rows, *per_row, *per_right)
