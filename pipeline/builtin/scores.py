"""Score answers against truths: figures between 0 and 1, where more is better. A missing answer scores 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

Answer = Mapping[str, Any]
INVOICE_FIELDS = ("number", "issued", "total", "currency", "seller", "lines")


def score_answers(task: str, pairs: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """The share of valid answers, and the mean of each figure over all truths. `pairs` are (answer, truth)."""
    scorer: Callable[[Any, Any], Sequence[dict[str, float]]] = SCORERS[task]
    valid = fmean(answer is not None for answer, _ in pairs)
    marks = [mark for answer, truth in pairs for mark in scorer(answer or {}, truth)]
    return {"valid": valid} | {name: fmean(mark[name] for mark in marks) for name in marks[0]}


def score_caption(answer: Answer, truth: Answer) -> list[dict[str, float]]:
    is_exact = answer.get("caption") == truth["caption"]
    names_all = sorted(answer.get("tags", ())) == sorted(truth["tags"])
    return [{"caption": float(is_exact), "all named": float(names_all)}]


def score_choice(answer: Any, truth: Any) -> list[dict[str, float]]:
    return [{"right": float(answer == truth)}]


def score_boxes(answer: Answer, truth: Answer) -> list[dict[str, float]]:
    """Match each true box with the best remaining answer; surplus answers count as 0."""
    unmatched, marks = list(answer.get("boxes", ())), []
    for true_box in truth["boxes"]:
        best = max(unmatched, key=lambda box: compute_iou(box["bbox_2d"], true_box["bbox_2d"]), default=None)
        iou = compute_iou(best["bbox_2d"], true_box["bbox_2d"]) if best else 0.0
        marks.append({"IoU": iou, "label": float(bool(best and iou and best["label"] == true_box["label"]))})
        if best:
            unmatched.remove(best)
    return [*marks, *({"IoU": 0.0, "label": 0.0} for _ in unmatched)]


def score_invoice(answer: Answer, truth: Answer) -> list[dict[str, float]]:
    marks = {name: float(normalize_value(answer.get(name)) == normalize_value(truth[name])) for name in INVOICE_FIELDS}
    return [marks | {"all fields": float(all(marks.values()))}]


def score_events(answer: Answer, truth: Answer) -> list[dict[str, float]]:
    """Compare events in order, each with the true event at the same place."""
    marks = []
    for event, true in zip_longest(answer.get("events", ()), truth["events"]):
        if event is None or true is None:
            marks.append({"kind": 0.0, "what": 0.0, "time": 0.0})
            continue
        kind, true_kind = (each["what"].split(" ", 3)[-1] for each in (event, true))
        time_iou = compute_temporal_iou((event["start"], event["end"]), (true["start"], true["end"]))
        marks.append({"kind": float(kind == true_kind), "what": float(event["what"] == true["what"]), "time": time_iou})
    return marks or [{"kind": 1.0, "what": 1.0, "time": 1.0}]


SCORERS = {
    "caption": score_caption,
    "classify": score_choice,
    "detect": score_boxes,
    "invoice": score_invoice,
    "video": score_events,
}


def compute_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """
    >>> compute_iou([0, 0, 2, 2], [1, 0, 3, 2])
    0.3333333333333333
    """
    width, height = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    shared = max(width, 0) * max(height, 0)
    return shared / (compute_area(one) + compute_area(other) - shared) if shared else 0.0


def compute_area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def compute_temporal_iou(one: Sequence[float], other: Sequence[float]) -> float:
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (max(one[1], other[1]) - min(one[0], other[0])) if shared else 0.0


def normalize_value(value: Any) -> Any:
    """The same form for a value of a typed column and for the value printed on the page.

    >>> from decimal import Decimal
    >>> normalize_value({"amount": Decimal("4.5000"), "quantity": None}), normalize_value({"amount": "4.50"})
    ({'amount': '4.5'}, {'amount': '4.5'})
    """
    if isinstance(value, Mapping):
        return {name: normalize_value(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [normalize_value(part) for part in value]
    text = str(value)
    return text.rstrip("0").rstrip(".") if "." in text and text.replace(".", "").isdigit() else text
