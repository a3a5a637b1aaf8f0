"""The format `coco`: one JSON file of images, categories and annotations, for each split.

Boxes are [x, y, width, height] in pixels, and annotations have a `score`. Images have the id of their row as `row`, and
a `name` by which a truth finds them again. Pictures without boxes are listed. The file is put together from the lines
of all groups, so it is never held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from pipeline.export.base import ExportTask
from pipeline.export.class_names import ClassNames
from pipeline.export.group_lines import GroupLines, dump, read_group_lines, write_elements, write_text_file
from pipeline.export.pictures import Picture, PictureReader
from pipeline.export.upload_queue import UploadQueue
from pipeline.output.answer.annotations import Annotation


class CocoExporter:
    can_partition, can_split, media_choices = False, True, ("link", "copy", "none")

    def __init__(self, task: ExportTask):
        self.task = task
        self.pictures, self.classes = PictureReader(task, "images/{split}", other_files=False), ClassNames(task)

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        lines = GroupLines(self.task.target, name)
        with UploadQueue(self.task.target) as uploads:
            for pictures in self.pictures.read_pictures(tables, uploads):
                for picture, numbers in self.classes.number_boxes(pictures):
                    numbered = zip(picture.annotations, numbers, strict=True)
                    boxes = [{**describe_box(box), "category_id": number + 1} for box, number in numbered]
                    lines.add(picture.split, [describe_image(picture), boxes])
        return lines.close()

    def finish(self, files: Sequence[str]) -> None:
        self.classes.write_file(self.task.target)
        for split in [name for name, _ in self.task.options.splits] or [""]:
            name = f"annotations/{split}.json" if split else "annotations.json"
            with write_text_file(self.task.target, name) as file:
                self.write_document(file, files, split)

    def write_document(self, file: IO[str], files: Sequence[str], split: str) -> None:
        job, target = self.task.context.job, self.task.target
        info = {
            "description": job.name,
            "model": self.task.context.model_name,
            "question": self.task.context.fingerprint,
        }
        categories = [
            {"id": number, "name": name, "supercategory": ""}
            for number, name in enumerate(self.classes.list_names(), 1)
        ]
        file.write(f'{{"info": {dump(info)},\n"licenses": [],\n"categories": {dump(categories)},\n"images": [')
        images = enumerate((image for image, _ in read_group_lines(target, files, split)), 1)
        write_elements(file, (dump({"id": number, **image}) for number, image in images))
        file.write('],\n"annotations": [')
        write_elements(file, map(dump, number_annotations(read_group_lines(target, files, split))))
        file.write("]}\n")


def number_annotations(lines: Iterable[tuple[Any, Sequence[dict[str, Any]]]]) -> Iterator[dict[str, Any]]:
    number = 0
    for image_number, (_, boxes) in enumerate(lines, 1):
        for annotation in boxes:
            number += 1
            yield {"id": number, "image_id": image_number, **annotation}


def describe_image(picture: Picture) -> dict[str, Any]:
    width, height = picture.size
    names = {"name": picture.stem, "row": picture.row_id}
    image = {"file_name": picture.file_name, "width": width, "height": height, **names}
    return image if picture.second is None else {**image, "second": picture.second}


def describe_box(box: Annotation) -> dict[str, Any]:
    left, top, right, bottom = map(shorten, box.numbers)
    width, height = shorten(right - left), shorten(bottom - top)
    score = {} if box.score is None else {"score": round(box.score, 6)}
    return {"bbox": [left, top, width, height], "area": shorten(width * height), "iscrowd": 0, **score}


def shorten(number: float) -> float:
    """
    >>> shorten(12.0), shorten(12.34567)
    (12, 12.346)
    """
    return int(number) if float(number).is_integer() else round(number, 3)
