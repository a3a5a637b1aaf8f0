"""The format `yolo`: pictures, a text file of boxes for each, and `data.yaml`, from which Ultralytics trains.

A line has the number of a class, and centre, width and height in fractions of the picture. An empty file says that
there is nothing. The format has no place for scores: choose rows with `--where` instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import yaml

from pipeline.export.base import ExportTask
from pipeline.export.class_names import ClassNames
from pipeline.export.pictures import PictureReader
from pipeline.export.upload_queue import UploadQueue
from pipeline.output.answer.annotations import Annotation
from pipeline.types import Size


class YoloExporter:
    can_partition, can_split, media_choices = False, True, ("copy", "none")

    def __init__(self, task: ExportTask):
        self.task, self.splits = task, task.options.splits or (("train", 1.0),)
        self.pictures, self.classes = PictureReader(task, "images/{split}", splits=self.splits), ClassNames(task)

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        """The files belong to rows, not to the group, so none of them is named in its note."""
        with UploadQueue(self.task.target) as uploads:
            for pictures in self.pictures.read_pictures(tables, uploads):
                for picture, numbers in self.classes.number_boxes(pictures):
                    numbered = zip(picture.annotations, numbers, strict=True)
                    lines = [f"{number} {format_box(box, picture.size)}\n" for box, number in numbered]
                    uploads.add(f"labels/{picture.split}/{picture.stem}.txt", "".join(lines).encode())
        return []

    def finish(self, files: Sequence[str]) -> None:
        """Without splits, `val` is the same as `train`: trainers insist on both. Without `path`, folders start at the
        file, wherever it is."""
        folders = {split: f"images/{split}" for split, _ in self.splits}
        folders.setdefault("val", folders[self.splits[0][0]])
        names = dict(enumerate(self.classes.list_names()))
        text = yaml.safe_dump({**folders, "names": names}, sort_keys=False, allow_unicode=True)
        self.task.target.overwrite("data.yaml", text.encode())
        self.classes.write_file(self.task.target)


def format_box(box: Annotation, size: Size) -> str:
    """
    >>> format_box(Annotation("box", (10, 20, 30, 60), "dog"), (200, 100))
    '0.100000 0.400000 0.100000 0.400000'
    """
    left, top, right, bottom = (number / size[index % 2] for index, number in enumerate(box.numbers))
    return f"{(left + right) / 2:.6f} {(top + bottom) / 2:.6f} {right - left:.6f} {bottom - top:.6f}"
