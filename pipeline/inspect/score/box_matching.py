"""Matches boxes as the COCO evaluation does, and computes average precision from the matches.

The figures equal those of pycocotools: boxes are ranked by their scores, each takes the free true box of its class that
it overlaps most, crowds may be taken often and count neither way, and at most 100 boxes of a class count in a picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_STEPS = np.linspace(0, 1, 101)
MAX_BOXES = 100  # of a class in a picture


class AveragePrecision(NamedTuple):
    """None where the truth has no box."""

    ap50: float | None
    ap: float | None  # the mean over the thresholds from 0.5 to 0.95
    recall: float | None


class BoxMatches(NamedTuple):
    """The matches of the boxes of one class in one picture, best score first."""

    order: Array  # of the boxes
    truths: Array  # by threshold and box: the index of the true box; -1 where there is none
    ignored: Array  # by threshold and box: whether it belongs to a crowd


@dataclass
class _ClassMatches:
    rows: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    hits: list[Array] = field(default_factory=list)
    ignored: list[Array] = field(default_factory=list)
    truth_rows: list[int] = field(default_factory=list)  # the row of each true box that counts

    @cached_property
    def ranked(self) -> tuple[Array, Array, Array]:
        """The rows of all boxes, best score first; and whether each counts, and is a hit, by threshold."""
        order = np.argsort(-np.concatenate(self.scores), kind="mergesort")
        hits, ignored = (np.concatenate(each, axis=1)[:, order] for each in (self.hits, self.ignored))
        return np.concatenate(self.rows)[order], ~ignored, hits


@dataclass
class BoxRanking:
    """Matches of many pictures, and the precision over all of them once they are added. Classes are told by name."""

    classes: dict[str, _ClassMatches] = field(default_factory=lambda: defaultdict(_ClassMatches))

    def add_picture(self, row: int, label: str, matches: BoxMatches, scores: Array, truth_count: int) -> None:
        """`row` tells which rows belong together when rows are weighted."""
        found = self.classes[label]
        kept = slice(None, MAX_BOXES)
        found.rows.append(np.full(len(matches.order[kept]), row))
        found.scores.append(scores[matches.order[kept]])
        found.hits.append(matches.truths[:, kept] >= 0)
        found.ignored.append(matches.ignored[:, kept])
        found.truth_rows += [row] * truth_count

    def compute_class(self, label: str, row_weights: Array | None = None) -> AveragePrecision:
        found = self.classes[label]
        truth_weights = np.ones(len(found.truth_rows)) if row_weights is None else row_weights[found.truth_rows]
        if not truth_weights.sum():
            return AveragePrecision(None, None, None)
        rows, counts, hits = found.ranked
        counted = counts * (1.0 if row_weights is None else row_weights[rows])
        true_sums, false_sums = np.cumsum(counted * hits, axis=1), np.cumsum(counted * ~hits, axis=1)
        curves = [_compute_precision(*sums, truth_weights.sum()) for sums in zip(true_sums, false_sums, strict=True)]
        means, recalls = [curve[0] for curve in curves], [curve[1] for curve in curves]
        return AveragePrecision(means[0], float(np.mean(means)), float(np.mean(recalls)))

    def compute(self, row_weights: Array | None = None) -> AveragePrecision:
        """The mean over the classes that the truth has."""
        by_class = [self.compute_class(label, row_weights) for label in self.classes]
        return (
            AveragePrecision(*(_compute_mean(values) for values in zip(*by_class, strict=True))) if by_class else NONE
        )


NONE = AveragePrecision(None, None, None)


def _compute_mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _compute_precision(true_sums: Array, false_sums: Array, truth_count: float) -> tuple[float, float]:
    """The mean precision over the steps of recall, and the final recall."""
    if not len(true_sums):
        return 0.0, 0.0
    recall = true_sums / truth_count
    precision = true_sums / (true_sums + false_sums + np.spacing(1))
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(np.mean(precision[np.searchsorted(recall, RECALL_STEPS, side="left")])), float(recall[-1])


def match_boxes(
    boxes: Array, scores: Array, truths: Array, crowds: Array, thresholds: Sequence[float] | Array = IOU_THRESHOLDS
) -> BoxMatches:
    """Match boxes [x1, y1, x2, y2] of one class in one picture."""
    order = np.argsort(-scores, kind="mergesort")
    truth_order = np.argsort(crowds, kind="mergesort")  # crowds last
    ious = compute_ious(boxes[order], truths[truth_order], crowds[truth_order])
    sorted_crowds = crowds[truth_order]
    matched = np.full((len(thresholds), len(boxes)), -1)
    ignored = np.zeros((len(thresholds), len(boxes)), dtype=bool)
    for number, threshold in enumerate(thresholds):
        taken: set[int] = set()
        for box in range(len(boxes)):
            best = _find_best_truth(ious[box], sorted_crowds, taken, min(threshold, 1 - 1e-10))
            if best >= 0:
                taken.add(best)
                matched[number, box], ignored[number, box] = truth_order[best], sorted_crowds[best]
    return BoxMatches(order, matched, ignored)


def _find_best_truth(ious: Array, crowds: Array, taken: set[int], least: float) -> int:
    """The last of the best: a crowd only where no other true box will do."""
    best = -1
    for truth, iou in enumerate(ious):
        if truth in taken and not crowds[truth]:
            continue
        if best >= 0 and crowds[truth] and not crowds[best]:
            break
        if iou >= least:
            best, least = truth, iou
    return best


def compute_ious(boxes: Array, truths: Array, crowds: Array) -> Array:
    """By box and true box. The part of a box that lies in a crowd stands for its IoU with it."""
    corners, true_corners = boxes[:, None, :], truths[None, :, :]
    shared_sides = np.minimum(corners[..., 2:], true_corners[..., 2:]) - np.maximum(
        corners[..., :2], true_corners[..., :2]
    )
    shared = np.prod(np.maximum(shared_sides, 0), axis=2)
    areas, true_areas = (np.prod(each[..., 2:] - each[..., :2], axis=2) for each in (corners, true_corners))
    unions = np.where(crowds[None, :], areas, areas + true_areas - shared)
    ious: Array = np.divide(shared, unions, out=np.zeros_like(shared), where=shared > 0)
    return ious
