"""The format `label-studio`: tasks with the answers as predictions, and a labelling configuration made from the schema.

A row is a task. Its prediction has the least confidence of its values as `score`, so Label Studio can put doubtful rows
first. Places are percentages there, and times are numbers of frames at `fps`. Tasks about images and about videos have
files of their own, because they are labelled with another configuration. Each file has so many tasks as Label Studio
imports at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from pipeline.export.base import ExportTask
from pipeline.export.class_names import ClassNames
from pipeline.export.formats.label_studio_config import FRAME_RATE, build_config, build_controls
from pipeline.export.formats.label_studio_results import ResultBuilder
from pipeline.export.group_lines import GroupLines, dump, read_group_lines, write_elements, write_text_file
from pipeline.export.media_files import copy_file, find_extension, read_head
from pipeline.export.splits import choose_split
from pipeline.output.answer.confidence import list_confidences
from pipeline.output.medium_names import name_medium
from pipeline.truth.compared_fields import build_compared_fields

TASKS_PER_FILE = 10_000
COLUMNS = ("id", "media", "text", "answer", "confidence")


class LabelStudioExporter:
    can_partition, can_split, media_choices = False, True, ("link", "copy", "none")

    def __init__(self, task: ExportTask):
        self.task, self.classes = task, ClassNames(task)
        schema = task.context.schema.json_schema if task.context.schema else None
        self.controls = build_controls(build_compared_fields(schema))
        self.results = ResultBuilder(self.controls, schema, self.classes)

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        lines = GroupLines(self.task.target, name)
        names = [column for column in COLUMNS if column in self.task.columns.names]
        for table in tables:
            rows = {row["id"]: row for row in table.select(names).to_pylist()}  # repeats have the same answer
            if self.task.options.media == "copy":
                self.task.media_files.prefetch(rows.values())
            for row in rows.values():
                kind = row["media"][0]["kind"] if row["media"] else "text"
                split = choose_split(row["id"], self.task.options.splits)
                lines.add(name_channel(split, kind), self.build_task(row, kind))
        return lines.close()

    def build_task(self, row: Mapping[str, Any], kind: str) -> dict[str, Any]:
        answer = row["answer"] if self.task.context.schema else row["text"]
        confidence = row.get("confidence")
        least = min(list_confidences(confidence), default=None)
        score = {} if least is None else {"score": round(least, 6)}
        results = self.results.build(row, answer, confidence, kind)
        prediction = {"model_version": self.task.context.model_name, **score, "result": results}
        return {"data": self.build_data(row, kind), "predictions": [prediction]}

    def build_data(self, row: Mapping[str, Any], kind: str) -> dict[str, Any]:
        media = [medium for medium in row["media"] if medium["kind"] == kind]
        if len(media) < len(row["media"]):
            self.task.remarks.add("media of another kind than the first one of their row", f"of row {row['id']}")
        places = [self.place_medium(row, index) for index, medium in enumerate(row["media"]) if medium["kind"] == kind]
        if kind == "image":
            return {"id": row["id"], "image": places[0], "images": places}
        return {"id": row["id"], **({"video": places[0], "fps": FRAME_RATE} if places else {})}

    def place_medium(self, row: Mapping[str, Any], index: int) -> str:
        """Where Label Studio finds a medium."""
        uri, choice = row["media"][index]["uri"], self.task.options.media
        if choice == "copy" and (name := self.copy_medium(row, index)):
            target = self.task.target
            return serve_local_file(f"{target.root}/{name}") if target.is_local else f"{target.path}/{name}"
        if choice == "link" and "#" not in uri and not uri.startswith(("(", "data:")):
            path = uri.removeprefix("file://")
            return path if "://" in path else serve_local_file(path)
        if choice == "link":
            self.task.remarks.add("pages and bytes, which Label Studio sees with --media copy", f"of row {row['id']}")
        return f"{name_medium(row['id'], index)}"

    def copy_medium(self, row: Mapping[str, Any], index: int) -> str | None:
        files, remarks = self.task.media_files, self.task.remarks
        if row["media"][index]["kind"] == "image":
            if data := files.read_picture(row, index, remarks):
                name = f"media/{name_medium(row['id'], index)}.{find_extension(data)}"
                self.task.target.overwrite(name, data)
                return name
        elif blob := files.open_file(row, index, remarks):
            with blob:
                name = f"media/{name_medium(row['id'], index)}.{find_extension(read_head(blob))}"
                copy_file(blob, name, self.task.target)
                return name
        return None

    def finish(self, files: Sequence[str]) -> None:
        self.classes.write_file(self.task.target)
        for kind in ("image", "video", "text"):
            task_count = most_media = 0
            for split in [name for name, _ in self.task.options.splits] or [""]:
                channel = name_channel(split, kind)
                tasks = read_group_lines(self.task.target, files, channel)
                for number, first in enumerate(tasks, 1):
                    file_tasks = [first, *islice(tasks, TASKS_PER_FILE - 1)]
                    with write_text_file(self.task.target, f"tasks-{channel}-{number:04}.json") as file:
                        file.write("[")
                        write_elements(file, map(dump, file_tasks))
                        file.write("\n]\n")
                    task_count += len(file_tasks)
                    most_media = max(most_media, *(len(task["data"].get("images", "1")) for task in file_tasks))
            if task_count:
                config = build_config(self.controls, kind, self.classes.list_names(), has_pages=most_media > 1)
                self.task.target.overwrite(f"labelling-config-{kind}.xml", config.encode())


def name_channel(split: str, kind: str) -> str:
    return f"{split}-{kind}" if split else kind


def serve_local_file(path: str) -> str:
    """Label Studio serves files of its machine below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which is to be /.

    >>> serve_local_file("/data/my dogs/1.jpg")
    '/data/local-files/?d=data/my%20dogs/1.jpg'
    """
    return f"/data/local-files/?d={quote(path.lstrip('/'))}"
