"""Truths in a JSON export of Label Studio: boxes, key points, choices, numbers and texts that people gave.

Its percentages become pixels of the original. Boxes and points fill the answer's list of boxes or points; other
results fill the field that has the name of their control (`from_name`). A row is found by `data.id`, or by the name of
a file in `data`, without the prefix that uploads get.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.truth.base import TrueAnswer, TruthFile, TruthReader, list_file_names

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
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
                yield TrueAnswer(list_row_names(task.get("data", {})), self.build_answer(done[-1]["result"]))

    def build_answer(self, results: list[Mapping[str, Any]]) -> dict[str, Any]:
        answer: dict[str, Any] = {part.name: [] for part in self.file.root.members if part.kind in ("boxes", "points")}
        fields = {part.name: part for part in self.file.root.members}
        for result in results:
            kind, value = result.get("type", ""), result.get("value", {})
            if kind in ("rectanglelabels", "rectangle"):
                corners = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
                self.add_place(answer, "boxes", "box", corners, result)
            elif kind in ("keypointlabels", "keypoint"):
                self.add_place(answer, "points", "point", [value["x"], value["y"]], result)
            elif kind in PLAIN_RESULTS and result.get("from_name") in fields:
                given, name = value[PLAIN_RESULTS[kind]], result["from_name"]
                is_single = isinstance(given, list) and fields[name].kind != "set" and len(given) == 1
                answer[name] = given[0] if is_single else given
        return answer

    def add_place(
        self, answer: dict[str, Any], kind: str, meaning: str, percents: list[float], result: Mapping[str, Any]
    ) -> None:
        field = self.file.find_list(kind)
        sides = (result["original_width"], result["original_height"])
        place = [percent * sides[index % 2] / 100 for index, percent in enumerate(percents)]
        labels: list[str] = next((value for name, value in result["value"].items() if name.endswith("labels")), [])
        named = {field.get_member(meaning): place, field.get_member("class"): labels[0] if labels else ""}
        answer[field.name].append({name: value for name, value in named.items() if name})


def list_row_names(data: Mapping[str, Any]) -> tuple[str, ...]:
    names = [str(data["id"])] if "id" in data else []
    for value in data.values():
        if isinstance(value, str) and "/" in value:
            path = value.partition("?")[0]
            names += [*list_file_names(path), *list_file_names(UPLOAD_PREFIX.sub("", path.rpartition("/")[2]))]
    return tuple(dict.fromkeys(names))
