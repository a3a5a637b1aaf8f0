"""The format `voc`: an XML file of boxes for each picture, and lists of the pictures of each split, as in PASCAL VOC.

Boxes are pixels from 0, as most tools write them now; the first VOC counted from 1. An object has its `score`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa

from pipeline.export.base import ExportTask
from pipeline.export.class_names import ClassNames
from pipeline.export.group_lines import GroupLines, read_group_lines, write_text_file
from pipeline.export.pictures import Picture, PictureReader
from pipeline.export.upload_queue import UploadQueue
from pipeline.output.answer.annotations import Annotation


class VocExporter:
    can_partition, can_split, media_choices = False, True, ("copy", "link", "none")

    def __init__(self, task: ExportTask):
        self.task, self.splits = task, task.options.splits or (("train", 1.0),)
        self.pictures, self.classes = PictureReader(task, "JPEGImages", splits=self.splits), ClassNames(task)

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        lines = GroupLines(self.task.target, name)
        with UploadQueue(self.task.target) as uploads:
            for pictures in self.pictures.read_pictures(tables, uploads):
                for picture, numbers in self.classes.number_boxes(pictures):
                    classes = [self.classes.names[number] for number in numbers]
                    document = ElementTree.tostring(build_document(picture, classes), encoding="utf-8")
                    uploads.add(f"Annotations/{picture.stem}.xml", document + b"\n")
                    lines.add(picture.split, picture.stem)
        return lines.close()

    def finish(self, files: Sequence[str]) -> None:
        self.classes.write_file(self.task.target)
        for split, _ in self.splits:
            with write_text_file(self.task.target, f"ImageSets/Main/{split}.txt") as file:
                file.writelines(f"{stem}\n" for stem in read_group_lines(self.task.target, files, split))


def build_document(picture: Picture, classes: Sequence[str]) -> ElementTree.Element:
    width, height = picture.size
    root = ElementTree.Element("annotation")
    add_members(root, {"folder": "JPEGImages", "filename": picture.file_name.removeprefix("JPEGImages/")})
    add_members(root, {"size": {"width": width, "height": height, "depth": 3}, "segmented": 0})
    for box, name in zip(picture.annotations, classes, strict=True):
        add_members(root, {"object": describe_object(box, name)})
    ElementTree.indent(root)
    return root


def describe_object(box: Annotation, name: str) -> dict[str, Any]:
    corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), (f"{number:g}" for number in box.numbers), strict=True))
    members = {"name": name, "pose": "Unspecified", "truncated": 0, "difficult": 0, "bndbox": corners}
    return members if box.score is None else {**members, "score": f"{box.score:.6f}"}


def add_members(parent: ElementTree.Element, members: dict[str, Any]) -> None:
    for name, value in members.items():
        child = ElementTree.SubElement(parent, name)
        if isinstance(value, dict):
            add_members(child, value)
        else:
            child.text = "".join(char for char in str(value) if char.isprintable())  # XML knows no control characters
