"""The format `huggingface`: a data set that `datasets.load_dataset` reads from the folder, and the hub shows.

Parquet with the columns of the table. The first picture of a row is in `image`, a column of the type Image, and each
value that the schema gives a list of choices for has a column of the type ClassLabel. Maps, which data sets do not
have, are lists of keys and values. README.md is the data set card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.base import ExportTask
from pipeline.export.dataset_card import write_card
from pipeline.export.formats.table import buffer_rows
from pipeline.export.media_files import find_extension
from pipeline.export.split_files import SplitFiles, split_table
from pipeline.output.medium_names import name_medium
from pipeline.schema.json_schema import enter_schema

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DEFAULT_SPLIT = "train"


class HuggingFaceExporter:
    can_partition, can_split, can_push, media_choices = False, True, True, ("copy", "link", "none")

    def __init__(self, task: ExportTask):
        self.task = task
        taken = {name.lower() for name in task.columns.names}
        self.image_column = "" if task.options.media == "none" else choose_name("image", taken)
        self.labels = {choose_name(name, taken): (name, choices) for name, choices in find_choices(task).items()}
        fields = [*task.columns, *([pa.field(self.image_column, IMAGE_TYPE)] if self.image_column else [])]
        fields += [pa.field(name, pa.int64()) for name in self.labels]
        features: dict[str, Any] = {
            name: {"names": choices, "_type": "ClassLabel"} for name, (_, choices) in self.labels.items()
        }
        features |= {self.image_column: {"_type": "Image"}} if self.image_column else {}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
        plain = [field.with_type(replace_maps(field.type)) for field in fields]
        self.schema = pa.schema(plain, metadata=metadata)

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        def name_file(split: str) -> str:
            return f"data/{split or DEFAULT_SPLIT}-{name}.parquet"

        with SplitFiles(self.task.target, name_file, self.open_file) as files:
            for table in tables if self.task.options.media == "copy" else buffer_rows(tables):
                for split, rows in split_table(table, self.task.options.splits):
                    files.get_writer(split).write_table(self.build_rows(rows))
            return files.upload()

    def open_file(self, path: Path) -> pq.ParquetWriter:
        return pq.ParquetWriter(path, self.schema, compression="zstd")

    def build_rows(self, table: pa.Table) -> pa.Table:
        columns = [convert_column(table[name], self.schema.field(name).type) for name in table.column_names]
        if self.image_column:
            rows = table.select(["id", "media"]).to_pylist()
            if self.task.options.media == "copy":
                self.task.media_files.prefetch(rows)
            columns.append(pa.array([self.find_image(row) for row in rows], IMAGE_TYPE))
        answers = table["answer"].to_pylist() if self.labels else []
        for name, choices in self.labels.values():
            values = (answer.get(name) if isinstance(answer, dict) else answer for answer in answers)
            columns.append(
                pa.array([choices.index(value) if value in choices else None for value in values], pa.int64())
            )
        return pa.table(columns, schema=self.schema)

    def find_image(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        media = row["media"] or []
        if len(media) > 1:
            self.task.remarks.add("row with several pictures, of which `image` has the first", f"row {row['id']}")
        if not media or media[0]["kind"] != "image":
            if media:
                self.task.remarks.add("row with a video, which has no `image`", f"row {row['id']}")
            return None
        if self.task.options.media == "link":
            return {"bytes": None, "path": media[0]["uri"].removeprefix("file://")}
        data = self.task.media_files.read_picture(row, 0, self.task.remarks)
        return {"bytes": data, "path": f"{name_medium(row['id'])}.{find_extension(data)}"} if data else None

    def finish(self, files: Sequence[str]) -> None:
        splits = [name for name, _ in self.task.options.splits] or [DEFAULT_SPLIT]
        filled = [split for split in splits if any(file.startswith(f"data/{split}-") for file in files)]
        write_card(self.task, {split: f"data/{split}-*.parquet" for split in filled})


def find_choices(task: ExportTask) -> dict[str, list[str]]:
    """The choices for each value at the top of an answer that has any."""
    answer = task.context.job.answer
    if answer.choices and not answer.multi:
        return {"label": list(answer.choices)}
    schema = task.context.schema.json_schema if task.context.schema else {}
    found = {}
    for name, node in schema.get("properties", {}).items():
        cursor = enter_schema(node, schema)
        choices = [value for value in (cursor.constants if cursor else None) or () if isinstance(value, str)]
        if choices:
            found[name] = choices
    return found


def choose_name(name: str, taken: set[str]) -> str:
    """A column that the table does not have yet."""
    while name in taken:
        name = f"{name}_"
    taken.add(name)
    return name


def replace_maps(data_type: pa.DataType) -> pa.DataType:
    """
    >>> replace_maps(pa.struct([("a", pa.map_(pa.string(), pa.int64()))]))
    StructType(struct<a: list<item: struct<key: string, value: int64>>>)
    """
    if pa.types.is_map(data_type):
        return pa.list_(pa.struct([("key", data_type.key_type), ("value", replace_maps(data_type.item_type))]))
    if pa.types.is_struct(data_type):
        return pa.struct([field.with_type(replace_maps(field.type)) for field in data_type])
    return pa.list_(replace_maps(data_type.value_type)) if pa.types.is_list(data_type) else data_type


def convert_column(column: pa.ChunkedArray, data_type: pa.DataType) -> pa.ChunkedArray:
    if column.type == data_type:
        return column
    return pa.chunked_array([[list_pairs(value, column.type) for value in column.to_pylist()]], data_type)


def list_pairs(value: Any, data_type: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_map(data_type):
        return [{"key": key, "value": list_pairs(part, data_type.item_type)} for key, part in value]
    if pa.types.is_struct(data_type):
        return {field.name: list_pairs(value[field.name], field.type) for field in data_type}
    return [list_pairs(part, data_type.value_type) for part in value] if pa.types.is_list(data_type) else value
