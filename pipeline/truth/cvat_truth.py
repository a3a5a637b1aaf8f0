"""Truths in an XML file of CVAT for images: boxes and points in pixels, and tags.

Boxes and points fill the answer's lists of these. A tag fills the field of choices that has the tag's label among its
choices. A row is found by the name of the image's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import fsspec

from pipeline.errors import OutputError
from pipeline.truth.base import TrueAnswer, TruthFile, TruthReader, list_file_names
from pipeline.truth.compared_fields import ComparedField


class CvatTruthReader(TruthReader):
    description = "XML of CVAT for images"
    is_about_pictures = True

    @classmethod
    def can_read(cls, file: TruthFile) -> bool:
        return file.url.lower().endswith(".xml")

    def read(self) -> Iterator[TrueAnswer]:
        try:
            with fsspec.open(self.file.url, "rb") as file:
                for _, element in ElementTree.iterparse(file):
                    if element.tag == "track":
                        raise OutputError(f"--truth {self.file.url}: holds tracks; export 'CVAT for images' instead")
                    if element.tag == "image":
                        yield TrueAnswer(list_file_names(element.get("name", "")), self.build_answer(element))
                        element.clear()
        except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
            raise OutputError(f"--truth {self.file.url}: is no XML of CVAT for images ({error})") from error

    def build_answer(self, image: ElementTree.Element) -> dict[str, Any]:
        members = self.file.root.members
        answer: dict[str, Any] = {part.name: [] for part in members if part.kind in ("boxes", "points")}
        for shape in image:
            label = shape.get("label", "")
            if shape.tag == "box":
                corners = [float(shape.get(name, "nan")) for name in ("xtl", "ytl", "xbr", "ybr")]
                self.add_place(answer, self.file.find_list("boxes"), "box", corners, label)
            elif shape.tag == "points":
                for pair in shape.get("points", "").split(";"):
                    numbers = [float(number) for number in pair.split(",")]
                    self.add_place(answer, self.file.find_list("points"), "point", numbers, label)
            elif shape.tag == "tag":
                answer |= {part.name: label for part in members if label in part.choices}
        return answer

    def add_place(
        self, answer: dict[str, Any], field: ComparedField, meaning: str, numbers: list[float], label: str
    ) -> None:
        named = {field.get_member(meaning): numbers, field.get_member("class"): label}
        answer[field.name].append({name: value for name, value in named.items() if name})
