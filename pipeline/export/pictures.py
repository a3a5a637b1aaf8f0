"""Divides a row into pictures with what was found in them: images, pages, and the frames of videos that answers name.

Formats of training sets are about pictures. A picture without annotations counts: it says that there is nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.command_text import tidy_path
from pipeline.errors import OutputError
from pipeline.export.base import ExportTask
from pipeline.export.media_files import find_extension
from pipeline.export.remarks import Remarks
from pipeline.export.splits import Splits, choose_split
from pipeline.export.upload_queue import UploadQueue
from pipeline.output.answer.annotations import Annotation, find_annotations
from pipeline.output.answer.geometry import find_field_meanings
from pipeline.output.medium_names import name_medium
from pipeline.types import Size


@dataclass(frozen=True, slots=True)
class Picture:
    row_id: str
    index: int  # of its medium in the row
    second: float | None  # of a frame
    size: Size
    uri: str
    annotations: tuple[Annotation, ...]
    split: str = ""
    file_name: str = ""  # in the export, or of the original
    is_copied: bool = False

    @property
    def stem(self) -> str:
        """A name without an extension, the same in every export."""
        return name_medium(self.row_id, self.index, self.second)


def require_places(task: ExportTask, kind: str) -> dict[str, str]:
    """The meanings of the schema's fields. Refuse a schema that has no boxes, if these are wanted."""
    meanings = find_field_meanings(task.context.schema.json_schema) if task.context.schema else {}
    if kind not in meanings.values():
        raise OutputError(
            f"this format holds a {kind} for each object, and the answers of {task.context.job.name} have none: their "
            "schema has no field `bbox_2d` and none with `x-means: box`"
        )
    return meanings


class PictureReader:
    """The pictures of tables. With `--media copy`, their files are put into `folder`, in which `{split}` is filled.

    With `other_files`, files of labels have the stems of the pictures, and each stem must stand for one picture.
    """

    def __init__(
        self,
        task: ExportTask,
        folder: str,
        *,
        splits: Splits | None = None,
        kind: str = "box",
        other_files: bool = True,
    ):
        self.task, self.kind, self.folder = task, kind, folder
        self.has_endings = not other_files and task.context.job.input.id is None  # then ids of files are their paths
        self.meanings = require_places(task, kind)
        self.splits = task.options.splits if splits is None else splits

    def read_pictures(self, tables: Iterable[pa.Table], uploads: UploadQueue) -> Iterator[list[Picture]]:
        """Of each table, in order."""
        names = [name for name in ("id", "media", "answer", "confidence") if name in self.task.columns.names]
        for table in tables:
            rows = {row["id"]: row for row in table.select(names).to_pylist()}  # repeats have the same answer
            if self.task.options.media == "copy":
                self.task.media_files.prefetch(rows.values())
            pictures: list[Picture] = []
            for row in rows.values():
                split = choose_split(row["id"], self.splits)
                pictures += self.place_files(
                    row, split, list_pictures(row, self.meanings, self.kind, self.task.remarks), uploads
                )
            yield pictures

    def place_files(
        self, row: Mapping[str, Any], split: str, pictures: Iterable[Picture], uploads: UploadQueue
    ) -> Iterator[Picture]:
        by_medium: dict[int, list[Picture]] = defaultdict(list)
        for picture in pictures:
            by_medium[picture.index].append(picture)
        for index, group in by_medium.items():
            files: list[bytes] = []
            if self.task.options.media == "copy":
                seconds = [picture.second for picture in group]
                files = self.task.media_files.read_pictures(row, index, self.task.remarks, seconds=seconds)
            for number, picture in enumerate(group):
                yield self.place_file(picture, split, files[number] if files else None, uploads)

    def place_file(self, picture: Picture, split: str, data: bytes | None, uploads: UploadQueue) -> Picture:
        file_name = self.name_original(picture)
        if data:
            folder = self.folder.format(split=split).strip("/")
            name = add_ending(picture.stem, find_extension(data), repeats=not self.has_endings)
            file_name = f"{folder}/{name}"
            uploads.add(file_name, data)
        return replace(picture, split=split, file_name=file_name, is_copied=bool(data))

    def name_original(self, picture: Picture) -> str:
        """The URI with `--media link`, otherwise the name of the file. Bytes and frames have no file of their own."""
        is_file = not picture.uri.startswith(("(", "data:"))
        if self.task.options.media == "link" and is_file:
            return tidy_path(picture.uri.removeprefix("file://")) + (
                f"#t={picture.second}" if picture.second is not None else ""
            )
        name = picture.uri.partition("#")[0].rpartition("/")[2]
        return name if is_file and picture.second is None and "#" not in picture.uri else f"{picture.stem}.png"


def add_ending(stem: str, ending: str, *, repeats: bool) -> str:
    """
    >>> [add_ending(stem, "jpg", repeats=False) for stem in ("horse.jpg", "HORSE.JPEG", "horse.png", "horse")]
    ['horse.jpg', 'HORSE.JPEG', 'horse.png.jpg', 'horse.jpg']
    """
    has_ending = stem.lower().replace(".jpeg", ".jpg").endswith(f".{ending}")
    return stem if has_ending and not repeats else f"{stem}.{ending}"


def list_pictures(
    row: Mapping[str, Any], meanings: Mapping[str, str], kind: str, remarks: Remarks
) -> Iterator[Picture]:
    """Every image and page of a row, and those frames of its videos that an annotation names by its time."""
    found = [each for each in find_annotations(row["answer"], meanings, row.get("confidence")) if each.kind == kind]
    for index, medium in enumerate(row["media"]):
        own = [each for each in found if each.media_index == index]
        frames: dict[float | None, list[Annotation]] = defaultdict(list) if medium["kind"] == "video" else {None: own}
        if medium["kind"] == "video":
            for annotation in own:
                second = find_shown_second(annotation, medium["times"] or [])
                if second is None:
                    remarks.add(f"{kind} in a video, without a time that names a frame", f"of row {row['id']}")
                else:
                    frames[second].append(annotation)
        size = medium["width"], medium["height"]
        for second, shown in sorted(frames.items(), key=lambda frame: frame[0] or 0.0):
            yield Picture(row["id"], index, second, size, medium["uri"], tuple(shown))
    if lost := [each for each in found if each.media_index >= len(row["media"])]:
        remarks.add(f"{kind} in a picture that the row does not have", f"of row {row['id']}", len(lost))


def find_shown_second(annotation: Annotation, times: list[float]) -> float | None:
    """The time of the frame that the model saw and that is nearest to an annotation's own."""
    if annotation.second is None:
        return times[0] if len(times) == 1 else None
    return min(times, key=lambda time: abs(time - (annotation.second or 0.0)), default=annotation.second)
