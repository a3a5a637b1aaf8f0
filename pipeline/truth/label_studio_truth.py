"""Truths in a JSON export of Label Studio: boxes, key points, time lines, choices, numbers and texts that people gave.

Its percentages become pixels of the original, its frames seconds. Boxes, points and events fill the answer's list of
these; other results fill the field that has the name of their control (`from_name`), such as `seller.name`. A row is
found by `data.id`, or by the name of a file in `data`, without the prefix that uploads get.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.json_values import parse_json_text
from pipeline.truth.base import TrueAnswer, TruthFile, TruthReader, list_file_names
from pipeline.truth.compared_fields import ComparedField

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
PLACE_RESULTS = {"rectanglelabels": "boxes", "keypointlabels": "points", "timelinelabels": "events"}
DEFAULT_FRAME_RATE = 24.0  # of Label Studio, where the task says none as `fps`
NO_FIELD = ComparedField("", "", "ignore")
PLAIN_RESULTS = {"choices": "choices", "textarea": "text", "number": "number", "rating": "rating"}


class LabelStudioTruthReader(TruthReader):
    description = "a JSON export of Label Studio"

    @classmethod
    def can_read(cls, file: TruthFile) -> bool:
        tasks = file.document
        return isinstance(tasks, list) and all(isinstance(task, dict) and "annotations" in task for task in tasks)

    def read(self) -> Iterator[TrueAnswer]:
        """The last annotation of each task that was not cancelled; tasks without one are not labelled."""
        for task in self.file.document:
            done = [each for each in task["annotations"] if not each.get("was_cancelled")]
            if done:
                data = task.get("data", {})
                yield TrueAnswer(list_row_names(data), self.build_answer(done[-1]["result"], data))

    def build_answer(self, results: list[Mapping[str, Any]], data: Mapping[str, Any]) -> Any:
        if self.file.root.kind != "object":  # the answer is one value
            values = [result["value"] for result in results if result.get("type") in PLAIN_RESULTS]
            given = [value.get(name) for value in values for name in PLAIN_RESULTS.values() if name in value]
            return unwrap(given[0], self.file.root) if given else None
        places = [part for part in self.file.root.members if part.kind in PLACE_RESULTS.values()]
        answer: dict[str, Any] = {part.name: [] for part in places}
        texts = {(result.get("id"), result.get("from_name")): result for result in results}
        for result in results:
            kind, value = result.get("type", ""), result.get("value", {})
            if kind in ("rectanglelabels", "rectangle"):
                corners = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
                self.add_place(answer, "boxes", "box", corners, result)
            elif kind in ("keypointlabels", "keypoint"):
                self.add_place(answer, "points", "point", [value["x"], value["y"]], result)
            elif kind == "timelinelabels":
                self.add_event(answer, result, float(data.get("fps") or DEFAULT_FRAME_RATE), texts)
            elif kind in PLAIN_RESULTS:
                self.add_plain_value(answer, value.get(PLAIN_RESULTS[kind]), result.get("from_name", ""))
        return answer

    def add_plain_value(self, answer: dict[str, Any], given: Any, path: str) -> None:
        """The path may lead into the answer's objects: seller.name."""
        part, inner = self.file.root, answer
        *outer, name = path.split(".")
        for step in outer:
            part = next((member for member in part.members if member.name == step), None) or NO_FIELD
            inner = inner.setdefault(step, {}) if part.kind == "object" else {}
        field = next((member for member in part.members if member.name == name), None)
        if field is None or given is None:
            return
        if field.kind == "items" and isinstance(given, list):
            given = [parse_json_text(each) for each in given]
        inner[name] = unwrap(given, field)

    def add_place(
        self, answer: dict[str, Any], kind: str, meaning: str, percents: list[float], result: Mapping[str, Any]
    ) -> None:
        field = self.find_place_field(kind, result)
        sides = (result["original_width"], result["original_height"])
        place = [percent * sides[index % 2] / 100 for index, percent in enumerate(percents)]
        labels: list[str] = next((value for name, value in result["value"].items() if name.endswith("labels")), [])
        page = {field.get_member("image"): result["item_index"] + 1} if result.get("item_index") else {}
        named = {field.get_member(meaning): place, field.get_member("class"): labels[0] if labels else "", **page}
        answer[field.name].append({name: value for name, value in named.items() if name})

    def add_event(
        self, answer: dict[str, Any], result: Mapping[str, Any], frame_rate: float, texts: Mapping[Any, Any]
    ) -> None:
        """Frames count from 1. What happens may stand in a text area of the region."""
        field = self.find_place_field("events", result)
        times = field.list_members("seconds")
        label = field.get_member("class") or next((part.name for part in field.members if part.kind == "text"), None)
        text = texts.get((result.get("id"), f"{result.get('from_name')}.{label}"), {}).get("value", {}).get("text")
        words = (text or result["value"].get("timelinelabels") or [""])[:1]
        for span in result["value"]["ranges"]:
            seconds = [round((span[end] - 1) / frame_rate, 3) for end in ("start", "end")]
            named = dict(zip(times, seconds, strict=False)) | ({label: words[0]} if label else {})
            answer[field.name].append(named)

    def find_place_field(self, kind: str, result: Mapping[str, Any]) -> ComparedField:
        """The field that has the name of the result's control, or else the first of its kind."""
        named = (part for part in self.file.root.members if part.kind == kind and part.name == result.get("from_name"))
        return next(named, None) or self.file.find_list(kind)


def unwrap(given: Any, field: ComparedField) -> Any:
    """The value of a control that may hold several, for a field that holds one."""
    is_single = isinstance(given, list) and field.kind not in ("set", "items") and len(given) == 1
    return given[0] if is_single else given


def list_row_names(data: Mapping[str, Any]) -> tuple[str, ...]:
    names = [str(data["id"])] if "id" in data else []
    for value in data.values():
        if isinstance(value, str) and "/" in value:
            path = value.partition("?")[0]
            names += [*list_file_names(path), *list_file_names(UPLOAD_PREFIX.sub("", path.rpartition("/")[2]))]
    return tuple(dict.fromkeys(names))
