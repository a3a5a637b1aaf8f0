"""Answers, truths -> figures between 0 and 1, more is better. An answer that is not there scores nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

Answer = Mapping[str, Any]
INVOICE_FIELDS = ("number", "issued", "total", "currency", "seller", "lines")


def score_answers(task: str, pairs: Sequence[tuple[Answer | None, Answer]]) -> dict[str, float]:
    """Of (answer, truth): the share of answers that are valid, and means over all truths."""
    of: Callable[[Answer, Answer], Sequence[dict[str, float]]] = SCORERS[task]
    valid = fmean(answer is not None for answer, _ in pairs)
    marks = [mark for answer, truth in pairs for mark in of(answer or {}, truth)]
    return {"valid": valid} | {name: fmean(mark[name] for mark in marks) for name in marks[0]}


def score_caption(answer: Answer, truth: Answer) -> list[dict[str, float]]:
    right = answer.get("caption") == truth["caption"], sorted(answer.get("tags", ())) == sorted(truth["tags"])
    return [{"caption": float(right[0]), "all named": float(right[1])}]


def score_boxes(answer: Answer, truth: Answer) -> list[dict[str, float]]:
    """For each box, of the truth or too many: how well the one that lies on it fits, and is called."""
    left, marks = list(answer.get("boxes", ())), []
    for true in truth["boxes"]:
        best = max(left, key=lambda box: compute_iou(box["bbox_2d"], true["bbox_2d"]), default=None)
        shared = compute_iou(best["bbox_2d"], true["bbox_2d"]) if best else 0.0
        marks.append({"IoU": shared, "label": float(bool(best and shared and best["label"] == true["label"]))})
        if best:
            left.remove(best)
    return [*marks, *({"IoU": 0.0, "label": 0.0} for _ in left)]


def score_invoice(answer: Answer, truth: Answer) -> list[dict[str, float]]:
    marks = {name: float(normalize_value(answer.get(name)) == normalize_value(truth[name])) for name in INVOICE_FIELDS}
    return [marks | {"all fields": float(all(marks.values()))}]


def score_events(answer: Answer, truth: Answer) -> list[dict[str, float]]:
    """Events in order, each against the one in its place."""
    marks = []
    for said, true in zip_longest(answer.get("events", ()), truth["events"]):
        both = said is not None and true is not None
        kinds = [event["what"].split(" ", 3)[-1] for event in (said, true)] if both else ["", None]
        span = compute_temporal_iou((said["start"], said["end"]), (true["start"], true["end"])) if both else 0.0
        marks.append(
            {"kind": float(kinds[0] == kinds[1]), "what": float(both and said["what"] == true["what"]), "time": span}
        )
    return marks or [{"kind": 1.0, "what": 1.0, "time": 1.0}]


SCORERS = {"caption": score_caption, "detect": score_boxes, "invoice": score_invoice, "video": score_events}


def compute_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """
    >>> overlap([0, 0, 2, 2], [1, 0, 3, 2])
    0.3333333333333333
    """
    wide, high = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    shared = max(wide, 0) * max(high, 0)
    return shared / (compute_area(one) + compute_area(other) - shared) if shared else 0.0


def compute_area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def compute_temporal_iou(one: Sequence[float], other: Sequence[float]) -> float:
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (max(one[1], other[1]) - min(one[0], other[0])) if shared else 0.0


def normalize_value(value: Any) -> Any:
    """What was printed, whether it comes from a typed column or from JSON.

    >>> plain({"amount": Decimal("4.5000"), "quantity": None}), plain({"amount": "4.50"})
    ({'amount': '4.5'}, {'amount': '4.5'})
    """
    if isinstance(value, Mapping):
        return {name: normalize_value(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [normalize_value(part) for part in value]
    text = str(value)
    return text.rstrip("0").rstrip(".") if "." in text and text.replace(".", "").isdigit() else text
