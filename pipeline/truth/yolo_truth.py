"""Truths in a folder for YOLO: `data.yaml`, and a text file of boxes for each picture.

Boxes are fractions of the picture, so the sizes that the answered row has make pixels of them. A row is found by the
name of the text file. An empty file says that there is nothing; a picture without a file is not labelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import yaml

from pipeline.errors import OutputError
from pipeline.truth.base import TrueAnswer, TruthFile, TruthReader, list_file_names


class YoloTruthReader(TruthReader):
    description = "data.yaml of YOLO"
    is_about_pictures = True

    @classmethod
    def can_read(cls, file: TruthFile) -> bool:
        return file.url.lower().endswith((".yaml", ".yml"))

    def read(self) -> Iterator[TrueAnswer]:
        boxes = self.file.find_list("boxes")
        filesystem, path = fsspec.core.url_to_fs(self.file.url)
        try:
            settings = yaml.safe_load(filesystem.cat_file(path))
            names = settings["names"]
            labels = dict(enumerate(names)) if isinstance(names, list) else names
            base = path.rpartition("/")[0]
            folders = {settings[split] for split in ("train", "val", "test") if settings.get(split)}
            for folder in sorted(folders):
                label_folder = f"{base}/{settings.get('path', '.')}/{folder}".replace("/./", "/")
                head, _, tail = label_folder.rpartition("images")
                for name in sorted(filesystem.find(f"{head}labels{tail}")):
                    if name.endswith(".txt"):
                        lines = filesystem.cat_file(name).decode().splitlines()
                        elements = [build_box(boxes, line.split(), labels) for line in lines if line.strip()]
                        row_names = list_file_names(name.rpartition("/")[2].removesuffix(".txt"))
                        yield TrueAnswer(row_names, {boxes.name: elements}, in_fractions=True)
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise OutputError(f"--truth {self.file.url}: is no data.yaml of YOLO ({error!r})") from error


def build_box(boxes: Any, words: list[str], labels: Any) -> dict[str, Any]:
    x, y, width, height = map(float, words[1:5])
    corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    named = {boxes.get_member("class"): labels[int(words[0])], boxes.get_member("box"): corners}
    return {name: value for name, value in named.items() if name}
