"""The format `fiftyone`: folders that FiftyOne imports as FIFTYONE_IMAGE_DETECTION_DATASET, one for each split.

`labels.json` has the boxes of each picture, in fractions, with their `confidence`. The pictures are in `data/`, or
`data.json` says where the originals are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.export.base import ExportTask
from pipeline.export.class_names import ClassNames
from pipeline.export.group_lines import GroupLines, dump, read_group_lines, write_elements, write_text_file
from pipeline.export.pictures import PictureReader
from pipeline.export.upload_queue import UploadQueue
from pipeline.output.answer.annotations import Annotation
from pipeline.types import Size


class FiftyoneExporter:
    can_partition, can_split, media_choices = False, True, ("copy", "link")

    def __init__(self, task: ExportTask):
        self.task = task
        self.pictures, self.classes = PictureReader(task, "{split}/data"), ClassNames(task)

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        lines = GroupLines(self.task.target, name)
        with UploadQueue(self.task.target) as uploads:
            for pictures in self.pictures.read_pictures(tables, uploads):
                for picture, numbers in self.classes.number_boxes(pictures):
                    numbered = zip(picture.annotations, numbers, strict=True)
                    boxes = [describe_detection(box, picture.size, number) for box, number in numbered]
                    if picture.is_copied or self.task.options.media == "link":  # it insists on a file for each picture
                        lines.add(picture.split, [picture.stem, picture.file_name, boxes])
        return lines.close()

    def finish(self, files: Sequence[str]) -> None:
        target = self.task.target
        self.classes.write_file(target)
        for split in [name for name, _ in self.task.options.splits] or [""]:
            folder = f"{split}/" if split else ""
            with write_text_file(target, f"{folder}labels.json") as file:
                file.write(f'{{"classes": {dump(self.classes.list_names())},\n"labels": {{')
                lines = read_group_lines(target, files, split)
                write_elements(file, (f"{dump(stem)}: {dump(boxes)}" for stem, _, boxes in lines))
                file.write("}}\n")
            if self.task.options.media == "link":
                with write_text_file(target, f"{folder}data.json") as file:
                    file.write("{")
                    lines = read_group_lines(target, files, split)
                    write_elements(file, (f"{dump(stem)}: {dump(file_name)}" for stem, file_name, _ in lines))
                    file.write("}\n")


def describe_detection(box: Annotation, size: Size, number: int) -> dict[str, Any]:
    left, top, right, bottom = (number / size[index % 2] for index, number in enumerate(box.numbers))
    place = [round(each, 6) for each in (left, top, right - left, bottom - top)]
    score = {} if box.score is None else {"confidence": round(box.score, 6)}
    return {"label": number, "bounding_box": place, **score}
