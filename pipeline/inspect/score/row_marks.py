"""Marks the answer of one row: which fields are right, and what it adds to each measure.

Every measure is a sum over rows divided by another sum, so rows can be added up, and resampled for intervals. Only the
average precision of boxes needs all rows together; the matches for it are collected in a BoxRanking for each field.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import OutputError
from pipeline.inspect.score.box_matching import BoxRanking
from pipeline.inspect.score.comparators import Share, compare_values, count_hits, to_list, to_text
from pipeline.inspect.score.place_matching import (
    ElementGroup,
    Pair,
    get_crowds,
    group_elements,
    match_box_group,
    pair_boxes,
    pair_events,
    pair_items,
    pair_points,
)
from pipeline.json_values import parse_json_text
from pipeline.output.answer.confidence import SCORE, list_confidences
from pipeline.truth.compared_fields import ComparedField

ERROR_MEASURES = ("mean error", "mean distance", "character error rate")  # where less is better
RIGHT = "right"  # the measure that every field has: the share of right values
Verdict = tuple[bool, float]  # whether a value is right, and how similar it is to the true one
SKIPPED_KINDS = ("class", "ignore")
PLACES = ("box", "point", "image")  # elements are paired by them
TIMES = ("seconds",)  # and by these, which are marked, too


@dataclass
class RowMarks:
    sums: dict[str, dict[str, Share]] = field(default_factory=lambda: defaultdict(dict))  # by path and measure
    choices: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))  # (truth, answer)
    classes: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # by path: class -> hits, answered, true
    judged: dict[str, list[tuple[float, bool]]] = field(default_factory=lambda: defaultdict(list))  # (sure, right)

    def add(self, path: str, measure: str, share: Share) -> None:
        total, count = self.sums[path].get(measure, (0.0, 0.0))
        self.sums[path][measure] = (total + share[0], count + share[1])

    def is_right(self, path: str) -> bool | None:
        """None where the truth says nothing about the field."""
        total, count = self.sums.get(path, {}).get(RIGHT, (0.0, 0.0))
        return total == count if count else None


@dataclass
class RowMarker:
    """Marks one row."""

    row: int
    diagonal: float  # of its first picture, in pixels
    rank: float  # of its boxes among those of other rows, where they have no score
    rankings: dict[str, BoxRanking]  # by path, shared by all rows
    marks: RowMarks = field(default_factory=RowMarks)
    confidences: dict[int, Any] = field(default_factory=dict)  # by the identity of objects in the answer

    def take_confidences(self, answer: Any, confidence: Any) -> None:
        """Remember the confidence of every object in an answer; `confidence` has the shape of the answer."""
        if isinstance(answer, dict) and isinstance(confidence, dict):
            self.confidences[id(answer)] = confidence
            for name, part in answer.items():
                self.take_confidences(part, confidence.get(name))
        if isinstance(answer, list) and isinstance(confidence, list) and len(answer) == len(confidence):
            for part, part_confidence in zip(answer, confidence, strict=True):
                self.take_confidences(part, part_confidence)

    def get_confidence(self, element: Any, name: str) -> Any:
        return self.confidences.get(id(element), {}).get(name)

    def mark_value(self, compared: ComparedField, answer: Any, truth: Any, confidence: Any = None) -> Verdict:
        if compared.kind == "object":
            verdict = self.mark_object(compared, answer, truth)
        elif compared.is_list:
            verdict = self.mark_list(compared, to_list(answer), to_list(truth))
        else:
            comparison = compare_values(compared.kind, answer, truth, compared.settings)
            for measure, share in comparison.figures.items():
                self.marks.add(compared.path, measure, share)
            if compared.kind == "choice":
                self.marks.choices[compared.path].append((to_text(truth), to_text(answer)))
            verdict = comparison.is_right, comparison.similarity
            least = min(list_confidences(confidence, answer), default=None)
            if least is not None:
                self.marks.judged[compared.path].append((least, comparison.is_right))
        self.marks.add(compared.path, RIGHT, (float(verdict[0]), 1.0))
        return verdict

    def mark_object(
        self, compared: ComparedField, answer: Any, truth: Any, *, skipped: tuple[str, ...] = ()
    ) -> Verdict:
        """Only fields that the truth has. Of an object that is null in the truth, every field must be null."""
        answer, truth = parse_json_text(answer) or {}, parse_json_text(truth)
        members = [
            part
            for part in compared.members
            if (truth is None or part.name in truth) and part.kind not in SKIPPED_KINDS and part.meaning not in skipped
        ]
        verdicts = [
            self.mark_value(
                part,
                answer.get(part.name),
                None if truth is None else truth[part.name],
                self.get_confidence(answer, part.name),
            )
            for part in members
        ]
        similarity = sum(verdict[1] for verdict in verdicts) / len(verdicts) if verdicts else 1.0
        return all(verdict[0] for verdict in verdicts), similarity

    def mark_list(self, compared: ComparedField, answered: list[Any], true: list[Any]) -> Verdict:
        groups = group_elements(compared, answered, true)
        hits = answered_count = true_count = 0
        has_wrong_member = False
        for group in groups:
            pairs, ignored = self.pair_group(compared, group)
            found = sum(pair.is_found for pair in pairs)
            counts = [found, len(group.answered) - ignored, len(group.true) - int(get_crowds(group.true).sum())]
            self.add_class(compared.path, group.label, counts)
            self.add_qualities(compared, pairs, counts)
            hits, answered_count, true_count = (
                total + count for total, count in zip((hits, answered_count, true_count), counts, strict=True)
            )
            self.judge_scores(compared, group, pairs)
            for pair in pairs:
                self.mark_object(compared, pair.answered, pair.true, skipped=PLACES)
                has_wrong_member |= not self.judge_pair(compared, pair.answered, pair.true)[0]
        for measure, share in count_hits(hits, answered_count, true_count).items():
            self.marks.add(compared.path, measure, share)
        most = max(answered_count, true_count)
        return hits == most and not has_wrong_member, hits / most if most else 1.0

    def pair_group(self, compared: ComparedField, group: ElementGroup) -> tuple[list[Pair], int]:
        """The pairs, and how many answered elements do not count."""
        if compared.kind == "boxes":
            known = [self.get_confidence(element, SCORE) for element in group.answered]
            scores = np.array([self.rank if score is None else score for score in known])
            matches = match_box_group(compared, group, scores)
            ranking = self.rankings.setdefault(compared.path, BoxRanking())
            true_count = len(group.true) - int(get_crowds(group.true).sum())
            ranking.add_picture(self.row, group.label, matches, scores, true_count)
            return pair_boxes(group, matches), int(matches.ignored[0].sum())
        if compared.kind == "points":
            return pair_points(compared, group, self.diagonal), 0
        if compared.kind == "events":
            return pair_events(compared, group), 0
        return pair_items(group, lambda one, other: self.judge_pair(compared, one, other)), 0

    def judge_pair(self, compared: ComparedField, answer: Any, truth: Any) -> Verdict:
        """Whether all but the places and times is right, without marking it."""
        return RowMarker(self.row, self.diagonal, self.rank, {}).mark_object(
            compared, answer, truth, skipped=PLACES + TIMES
        )

    def judge_scores(self, compared: ComparedField, group: ElementGroup, pairs: list[Pair]) -> None:
        """The scores of places, and whether they were found."""
        found = {id(pair.answered) for pair in pairs if pair.is_found}
        scores = [(self.get_confidence(element, SCORE), id(element) in found) for element in group.answered]
        self.marks.judged[compared.path] += [(score, is_found) for score, is_found in scores if score is not None]

    def add_class(self, path: str, label: str, counts: Sequence[float]) -> None:
        sums = self.marks.classes.setdefault(path, {}).setdefault(label, [0.0, 0.0, 0.0])
        self.marks.classes[path][label] = [total + count for total, count in zip(sums, counts, strict=True)]

    def add_qualities(self, compared: ComparedField, pairs: list[Pair], counts: Sequence[float]) -> None:
        total = sum(pair.quality for pair in pairs)
        if compared.kind == "points":
            self.marks.add(compared.path, "mean distance", (total, len(pairs)))
        if compared.kind == "events":  # what is missed or invented overlaps with nothing
            self.marks.add(compared.path, "mean overlap", (total, counts[1] + counts[2] - len(pairs)))


def mark_row(
    root: ComparedField, row_id: str, answer: Any, truth: Any, marker: RowMarker, confidence: Any = None
) -> RowMarks:
    """`confidence` is that of an answer that is a single value."""
    if root.kind == "object" and not set(require_object(row_id, truth)) & {part.name for part in root.members}:
        raise OutputError(
            f"the truth of row {row_id} has the fields {', '.join(truth) or '(none)'}, and the answer has "
            f"{', '.join(part.name for part in root.members)}; none is in both"
        )
    try:
        marker.mark_value(root, answer, truth, confidence)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutputError(
            f"the truth of row {row_id} has not the shape of an answer ({type(error).__name__}: {error}): {truth}"[:500]
        ) from error
    return marker.marks


def require_object(row_id: str, truth: Any) -> Mapping[str, Any]:
    if not isinstance(truth, Mapping):
        raise OutputError(f"the truth of row {row_id} is no object with the fields of the answer: {truth!r:.200}")
    return truth
