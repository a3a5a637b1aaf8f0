"""Pairs the elements of an answered list with those of the true list: boxes, points, events and other objects.

Elements are paired only within a picture and within a class. Boxes that overlap by half count as found, as in the COCO
evaluation; points within a share of the picture's diagonal (`within`, by default 0.02); events whose time spans overlap
by half (`overlap`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.inspect.score.assignment import assign_best
from pipeline.inspect.score.box_matching import BoxMatches, match_boxes
from pipeline.inspect.score.comparators import to_text
from pipeline.inspect.score.text_distance import normalize_text
from pipeline.truth.compared_fields import ComparedField

Element = Mapping[str, Any]
DEFAULT_WITHIN = 0.02  # of the diagonal
DEFAULT_OVERLAP = 0.5


class ElementGroup(NamedTuple):
    """The elements of one class in one picture."""

    label: str
    answered: list[Element]
    true: list[Element]


class Pair(NamedTuple):
    answered: Element
    true: Element
    quality: float  # IoU of boxes and time spans, distance of points, similarity of others
    is_found: bool


def group_elements(field: ComparedField, answered: Sequence[Element], true: Sequence[Element]) -> list[ElementGroup]:
    class_name, image_name = field.get_member("class"), field.get_member("image")
    groups: dict[tuple[str, int], ElementGroup] = {}

    def find_group(element: Element) -> ElementGroup:
        label = normalize_text(to_text(element.get(class_name))) if class_name else ""
        image = element.get(image_name) if image_name else None
        return groups.setdefault((label, int(image or 1)), ElementGroup(label, [], []))

    for element in answered:
        find_group(element).answered.append(element)
    for element in true:
        find_group(element).true.append(element)
    return list(groups.values())


def match_box_group(field: ComparedField, group: ElementGroup, scores: Any) -> BoxMatches:
    name = field.get_member("box") or ""
    boxes, truths = (
        np.array([element[name] for element in elements], dtype=float).reshape(-1, 4)
        for elements in (group.answered, group.true)
    )
    return match_boxes(boxes, scores, truths, get_crowds(group.true))


def get_crowds(true: Sequence[Element]) -> Any:
    """COCO marks regions with too many objects to count; its reader keeps the mark."""
    return np.array([bool(element.get("iscrowd")) for element in true], dtype=bool)


def pair_boxes(group: ElementGroup, matches: BoxMatches) -> list[Pair]:
    """The pairs at an overlap of one half."""
    return [
        Pair(group.answered[box], group.true[truth], 1.0, True)
        for box, truth in zip(matches.order, matches.truths[0], strict=True)
        if truth >= 0 and not group.true[truth].get("iscrowd")
    ]


def pair_points(field: ComparedField, group: ElementGroup, diagonal: float) -> list[Pair]:
    name, within = field.get_member("point") or "", field.settings.get("within", DEFAULT_WITHIN) * diagonal

    def weigh(one: Element, other: Element) -> float:
        distance = math.dist(one[name], other[name])
        return 0.0 if distance > within else 2 - (distance / within if within else 0)

    pairs = _pair_best(group, weigh)
    return [Pair(one, other, math.dist(one[name], other[name]), True) for one, other, _ in pairs]


def pair_events(field: ComparedField, group: ElementGroup) -> list[Pair]:
    start, end = field.list_members("seconds")
    overlap = field.settings.get("overlap", DEFAULT_OVERLAP)

    def compute_overlap(one: Element, other: Element) -> float:
        return compute_span_iou((one[start], one[end]), (other[start], other[end]))

    return [Pair(one, other, iou, iou >= overlap) for one, other, iou in _pair_best(group, compute_overlap)]


def pair_items(group: ElementGroup, compare: Callable[[Element, Element], tuple[bool, float]]) -> list[Pair]:
    """Other objects: those are paired that have most in common, and found are those that are right in every field."""
    pairs = _pair_best(group, lambda one, other: compare(one, other)[1])
    return [Pair(one, other, similarity, compare(one, other)[0]) for one, other, similarity in pairs]


def _pair_best(
    group: ElementGroup, compute_weight: Callable[[Element, Element], float]
) -> Iterator[tuple[Element, Element, float]]:
    weights = [[compute_weight(one, other) for other in group.true] for one in group.answered]
    table = np.array(weights, dtype=float).reshape(len(group.answered), len(group.true))
    for row, column in assign_best(table):
        if table[row, column] > 0:
            yield group.answered[row], group.true[column], float(table[row, column])


def compute_span_iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    """
    >>> compute_span_iou((0, 2), (1, 3)), compute_span_iou((0, 1), (2, 3)), compute_span_iou((1, 1), (1, 1))
    (0.3333333333333333, 0.0, 1.0)
    """
    shared = min(one[1], other[1]) - max(one[0], other[0])
    whole = max(one[1], other[1]) - min(one[0], other[0])
    return 1.0 if whole == 0 else max(shared, 0.0) / whole
