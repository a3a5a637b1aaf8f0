"""The format `sharegpt`: chats to train on, as LLaMA-Factory and ms-swift read them.

Each line has `messages`, and the paths or URIs of its `images` and `videos`. The answer is what the model wrote, in the
coordinates that the prompt asks for. `dataset_info.json` tells LLaMA-Factory what the columns are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.export.base import ExportTask
from pipeline.export.media_files import copy_file, find_extension, read_head
from pipeline.export.plain_values import encode_json, list_rows
from pipeline.export.split_files import SplitFiles, split_table
from pipeline.manifest.column_selection import find_placeholders
from pipeline.manifest.items import fill_placeholders
from pipeline.output.medium_names import name_medium

DEFAULT_SPLIT = "train"
PLACEHOLDERS = {"image": "<image>", "video": "<video>"}


class ShareGptExporter:
    can_partition, can_split, media_choices = False, True, ("copy", "link")

    def __init__(self, task: ExportTask):
        self.task, job = task, task.context.job
        self.system, self.user = job.prompt.system, job.prompt.user or task.context.schema_prompt
        if self.user is None:
            raise OutputError(
                "--to sharegpt: the rows of this job bring their own chats, which an output does not keep"
            )
        named = dict.fromkeys([*find_placeholders(self.system), *find_placeholders(job.prompt.user)])
        if lost := [name for name in named if name not in job.input.keep]:
            advice = f"add it to input.keep: {', '.join([*job.input.keep, *lost])}"
            raise OutputError(f"--to sharegpt: the prompt names {lost[0]}, which the output does not keep; {advice}")

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        def name_file(split: str) -> str:
            return f"{split or DEFAULT_SPLIT}/{name}.jsonl"

        open_file = partial(open, mode="w", encoding="utf-8")
        with SplitFiles(self.task.target, name_file, open_file) as files:
            for table in tables:
                for split, rows in split_table(table, self.task.options.splits):
                    chat_rows = list_rows(rows)
                    if self.task.options.media == "copy":
                        self.task.media_files.prefetch(chat_rows)
                    chats = map(self.build_chat, chat_rows)
                    files.get_writer(split).writelines(f"{encode_json(chat)}\n" for chat in chats if chat)
            return files.upload()

    def build_chat(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """None where a medium cannot be copied: an answer about what is not there must not be learnt."""
        paths: dict[str, list[str]] = {kind: [] for kind in PLACEHOLDERS}
        marks = ""
        for index, medium in enumerate(row["media"] or []):
            path = self.place_medium(row, index)
            if path is None:
                return None
            paths[medium["kind"]].append(path)
            marks += PLACEHOLDERS[medium["kind"]]
        question = self.user if self.task.context.job.prompt.user is None else fill_placeholders(self.user or "", row)
        messages = [{"role": "system", "content": fill_placeholders(self.system, row)}] if self.system else []
        messages.append({"role": "user", "content": f"{marks}{question}"})
        messages.append({"role": "assistant", "content": row.get("raw") or row["text"]})
        return {"id": row["id"], "messages": messages, "images": paths["image"], "videos": paths["video"]}

    def place_medium(self, row: Mapping[str, Any], index: int) -> str | None:
        medium, media_files = row["media"][index], self.task.media_files
        if self.task.options.media == "link":
            return str(medium["uri"].removeprefix("file://"))
        stem = f"media/{name_medium(row['id'], index)}"
        if medium["kind"] == "image":
            data = media_files.read_picture(row, index, self.task.remarks)
            if data is None:
                return None
            path = f"{stem}.{find_extension(data)}"
            self.task.target.overwrite(path, data)
            return path
        blob = media_files.open_file(row, index, self.task.remarks)
        if blob is None:
            return None
        with blob:
            path = f"{stem}.{find_extension(read_head(blob))}"
            copy_file(blob, path, self.task.target)
        return path

    def finish(self, files: Sequence[str]) -> None:
        columns = {"messages": "messages", "images": "images", "videos": "videos"}
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        tags |= {"system_tag": "system"}
        splits = [name for name, _ in self.task.options.splits] or [DEFAULT_SPLIT]
        entries = {
            split: {"file_name": split, "formatting": "sharegpt", "columns": columns, "tags": tags}
            for split in splits
            if any(file.startswith(f"{split}/") for file in files)
        }
        self.task.target.overwrite("dataset_info.json", json.dumps(entries, indent=1).encode())
