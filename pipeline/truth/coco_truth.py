"""Truths in a COCO file: boxes [x, y, width, height] in pixels of the original pictures.

A row is found by the name of the picture's file (with or without folders and ending) or by the picture's id. A picture
without annotations has no boxes. Crowds count neither way, as in the COCO evaluation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.truth.base import TrueAnswer, TruthFile, TruthReader, list_file_names
from pipeline.truth.compared_fields import ComparedField


class CocoTruthReader(TruthReader):
    description = "a COCO file"
    is_about_pictures = True

    @classmethod
    def can_read(cls, file: TruthFile) -> bool:
        return isinstance(file.document, dict) and {"images", "annotations"} <= file.document.keys()

    def read(self) -> Iterator[TrueAnswer]:
        boxes, document = self.file.find_list("boxes"), self.file.document
        labels = {category["id"]: category["name"] for category in document.get("categories", ())}
        elements: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in document["annotations"]:
            elements[annotation["image_id"]].append(build_box(boxes, annotation, labels))
        for image in document["images"]:
            names = list_file_names(image.get("file_name", ""))
            names = (image["name"], *names) if image.get("name") else (*names, str(image["id"]))  # our exports have one
            yield TrueAnswer(tuple(filter(None, names)), {boxes.name: elements[image["id"]]})


def build_box(boxes: ComparedField, annotation: Mapping[str, Any], labels: Mapping[Any, str]) -> dict[str, Any]:
    left, top, width, height = annotation["bbox"]
    label = labels.get(annotation.get("category_id"), "")
    named = {boxes.get_member("class"): label, boxes.get_member("box"): [left, top, left + width, top + height]}
    return {name: value for name, value in named.items() if name} | {"iscrowd": annotation.get("iscrowd", 0)}
