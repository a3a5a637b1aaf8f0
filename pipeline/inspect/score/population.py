"""Estimates what all answered rows are like, from a truth for a random sample of them and the answers of all.

Answers alone are biased, and the sample alone is small. So the mean of all answers is corrected by what they get wrong
in the sample (prediction-powered inference), weighted so that poor answers do not widen the interval.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.inspect.score.comparators import to_list, to_number, to_text
from pipeline.inspect.score.intervals import Estimate, Z, compute_wilson_interval
from pipeline.inspect.score.text_distance import normalize_text
from pipeline.json_values import parse_json_text
from pipeline.truth.compared_fields import ComparedField

Array = np.ndarray[Any, Any]
FigureName = tuple[str, str]  # a path and what is counted there
Figures = dict[FigureName, float]  # of one row; what is not named is 0
PRESENT = ""  # counted for every field that an answer or a truth has, also where it is null
MEAN, NUMBER = "mean", "mean number"
MAX_FIGURES = 20  # of a field, the commonest


class PopulationEstimate(NamedTuple):
    answered: float  # the mean over all answers, as they are
    sample: Estimate  # from the sample alone
    estimate: Estimate  # from both


@dataclass
class Population:
    """Figures of the rows with a truth, row by row, and sums over those without."""

    truths: list[Figures] = field(default_factory=list)
    answers: list[Figures] = field(default_factory=list)
    rest_count: int = 0
    rest_sums: dict[FigureName, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))

    def add_pair(self, truth: Figures, answer: Figures) -> None:
        self.truths.append(truth)
        self.answers.append(answer)

    def add_rest(self, answer: Figures) -> None:
        self.rest_count += 1
        for name, value in answer.items():
            count, total, squares = self.rest_sums[name]
            self.rest_sums[name] = [count + 1, total + value, squares + value**2]

    def estimate(self) -> dict[str, dict[str, PopulationEstimate]]:
        """By path and figure; empty without rows on both sides."""
        found: dict[str, dict[str, PopulationEstimate]] = defaultdict(dict)
        for path, figure in self.list_names() if self.rest_count else ():
            estimate = self.estimate_figure(path, figure)
            if estimate is not None:
                found[path][figure] = estimate
        return dict(found)

    def list_names(self) -> list[FigureName]:
        counts = Counter({name: sums[0] for name, sums in self.rest_sums.items() if name[1] != PRESENT})
        for row in (*self.truths, *self.answers):
            counts.update(dict.fromkeys((name for name in row if name[1] != PRESENT), 1))
        names: dict[str, list[FigureName]] = defaultdict(list)
        for name, _ in counts.most_common():
            names[name[0]].append(name)
        return [name for each in names.values() for name in each[:MAX_FIGURES]]

    def estimate_figure(self, path: str, figure: str) -> PopulationEstimate | None:
        rows = [number for number, truth in enumerate(self.truths) if (path, PRESENT) in truth]
        name = (path, figure)
        has_gaps = figure == MEAN and (
            self.rest_sums[name][0] < self.rest_count
            or any(name not in each[number] for each in (self.truths, self.answers) for number in rows)
        )
        if len(rows) < 2 or has_gaps:
            return None
        true, answered = (np.array([each[row].get(name, 0.0) for row in rows]) for each in (self.truths, self.answers))
        _, total, squares = self.rest_sums[name]
        rest_mean = total / self.rest_count
        rest_variance = max(0.0, squares / self.rest_count - rest_mean**2)
        is_share = figure not in (MEAN, NUMBER) and not figure.startswith(NUMBER)
        return PopulationEstimate(
            answered=(answered.sum() + total) / (len(rows) + self.rest_count),
            sample=estimate_from_sample(true, is_share=is_share),
            estimate=estimate_with_answers(
                true, answered, (rest_mean, rest_variance, self.rest_count), is_share=is_share
            ),
        )


def estimate_from_sample(true: Array, *, is_share: bool) -> Estimate:
    mean = float(true.mean())
    if is_share:
        return Estimate(mean, *compute_wilson_interval(mean, len(true)))
    half = Z * float(true.std(ddof=1)) / math.sqrt(len(true))
    return Estimate(mean, mean - half, mean + half)


def estimate_with_answers(true: Array, answered: Array, rest: tuple[float, float, int], *, is_share: bool) -> Estimate:
    """`rest` holds the mean, the variance and the number of the answers without a truth."""
    rest_mean, rest_variance, rest_count = rest
    weight = _choose_weight(true, answered, len(true) / rest_count)
    value = float(true.mean() + weight * (rest_mean - answered.mean()))
    errors = true - weight * answered
    squares, count = float(((errors - errors.mean()) ** 2).sum()), len(true)
    # Mistakes are rare, and a sample without one does not prove that there is none: shares count one more each way.
    error_variance = (squares + 2) / (count + 2) if is_share else squares / (count - 1)
    half = Z * math.sqrt(error_variance / count + weight**2 * rest_variance / rest_count)
    low, high = value - half, value + half
    return (
        Estimate(*(min(max(each, 0.0), 1.0) for each in (value, low, high))) if is_share else Estimate(value, low, high)
    )


def _choose_weight(true: Array, answered: Array, ratio: float) -> float:
    """How much the answers count, so that the interval is narrowest: 0 where they tell nothing."""
    variance = float(answered.var())
    covariance = float(((true - true.mean()) * (answered - answered.mean())).mean())
    return min(max(covariance / (variance * (1 + ratio)), 0.0), 1.0) if variance else 1.0


def describe_answer(compared: ComparedField, answer: Any) -> Figures:
    """What is counted of an answer or a truth: choices, elements of lists, numbers."""
    figures: Figures = {(compared.path, PRESENT): 1.0}
    answer = parse_json_text(answer)
    if compared.kind == "object":
        for part in compared.members:
            if answer is None or part.name in answer:
                figures |= describe_answer(part, None if answer is None else answer[part.name])
    elif compared.kind == "choice":
        figures[compared.path, f"share of {to_text(answer) or 'null'}"] = 1.0
    elif compared.kind == "set":
        figures |= {(compared.path, f"share with {normalize_text(to_text(value))}"): 1.0 for value in to_list(answer)}
    elif compared.kind == "number" and (number := to_number(answer)) is not None:
        figures[compared.path, MEAN] = float(number)
    elif compared.is_list:
        figures |= count_elements(compared, to_list(answer))
    return figures


def count_elements(compared: ComparedField, elements: Sequence[Mapping[str, Any]]) -> Figures:
    class_name = compared.get_member("class")
    labels = Counter(normalize_text(to_text(element.get(class_name))) for element in elements if class_name)
    figures = {(compared.path, f"{NUMBER} of {label}"): float(count) for label, count in labels.items()}
    return {(compared.path, NUMBER): float(len(elements))} | figures
