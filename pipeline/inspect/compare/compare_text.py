"""Prints a comparison of two questions."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.inspect.compare import QuestionComparison
from pipeline.inspect.compare.question_costs import QuestionCost
from pipeline.inspect.score.row_marks import RIGHT
from pipeline.truth.compared_fields import WHOLE_ANSWER

MAX_SHOWN_IDS = 5
SIGNIFICANT = 0.05
COST_NAMES = {"tokens": "tokens", "seconds": "worker seconds", "cost": "cost"}


def format_comparison(comparison: QuestionComparison) -> Iterator[str]:
    first, second = comparison.questions
    yield f"{comparison.output}: {comparison.rows:,} rows have answers to both questions"
    yield f"first {first}, second {second}; what differs:"
    yield from (f"  {line}" for line in comparison.differences)
    width = max(len("field"), *map(len, [*comparison.agreement, *comparison.measures]))
    yield f"{'field':<{width}}  {'agree':>7}  {'differ':>7}"
    for path, each in comparison.agreement.items():
        shown = ", ".join(each.differing[:MAX_SHOWN_IDS])
        differing = each.rows - each.agreeing
        more = ", ..." if differing > MAX_SHOWN_IDS else ""
        yield f"{path:<{width}}  {each.share.value:>7.3f}  {differing:>7,}  {shown}{more}".rstrip()
    if comparison.truth:
        yield from format_measures(comparison, width)
    yield from format_costs(comparison.costs)
    yield format_verdict(comparison)


def format_measures(comparison: QuestionComparison, width: int) -> Iterator[str]:
    yield f"{comparison.truth_rows:,} rows against {comparison.truth}:"
    yield f"{'field':<{width}}  {'measure':<21} {'first':>7} {'second':>7}   difference, 95 %            p"
    for path, measures in comparison.measures.items():
        for number, (name, each) in enumerate(sorted(measures.items(), key=lambda item: item[0] != RIGHT)):
            label = "" if number else path
            change = each.difference
            between = f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
            values = f"{each.first:>7.3f} {each.second:>7.3f}   {between:<26} {each.p_value:.3g}"
            yield f"{label:<{width}}  {name:<21} {values}"


def format_costs(costs: tuple[QuestionCost, QuestionCost]) -> Iterator[str]:
    yield f"{'':<31} {'first':>10} {'second':>10}   change"
    for suffix, unit in (("", "row"), ("_per_right", "right answer")):
        for name, label in COST_NAMES.items():
            values = [getattr(cost, f"{name}{suffix}") for cost in costs]
            if None not in values:
                yield f"{f'{label} per {unit}':<31} {values[0]:>10.4g} {values[1]:>10.4g}   {format_change(*values)}"


def format_change(before: float, after: float) -> str:
    """
    >>> format_change(200, 176), format_change(0, 1)
    ('-12 %', '')
    """
    return f"{(after / before - 1) * 100:+.0f} %" if before else ""


def format_verdict(comparison: QuestionComparison) -> str:
    """One sentence that a decision can rest on."""
    right = comparison.measures.get(WHOLE_ANSWER, {}).get(RIGHT)
    if right is None:
        return "Which is better? --truth tells; the command sample draws rows to label"
    points = abs(right.difference.value) * 100
    chance = "p < 0.001" if right.p_value < 0.001 else f"p = {right.p_value:.2g}"
    if right.p_value >= SIGNIFICANT:
        rows = f"{comparison.truth_rows:,} rows"
        return f"The difference of {points:.1f} points in right answers may be chance ({chance}, {rows})"
    better, worse = (1, 0) if right.difference.value > 0 else (0, 1)
    name = "tokens" if comparison.costs[0].cost is None else "cost"
    values = [getattr(comparison.costs[index], f"{name}_per_right") for index in (worse, better)]
    price = f"; {COST_NAMES[name]} per right answer: {format_change(*values)}" if None not in values else ""
    return f"The {('first', 'second')[better]} is better by {points:.1f} points of right answers ({chance}){price}"
