"""The contract of every registered format of truths. A toy format shows that the registry is all a new one needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.errors import OutputError
from pipeline.registry import TRUTHS
from pipeline.schema.schema_loader import load_annotated_schema
from pipeline.truth.base import TrueAnswer, TruthReader
from pipeline.truth.compared_fields import build_compared_fields
from pipeline.truth.truth_index import open_truth

BOX = {"bbox_2d": [10, 20, 40, 60], "label": "dog"}
PERCENTS = {"x": 5, "y": 20, "width": 15, "height": 40, "rectanglelabels": ["dog"]}
RESULT = {"type": "rectanglelabels", "original_width": 200, "original_height": 100, "value": PERCENTS}
SAMPLES = {  # a file of each format, in which row `pics/a.png` has BOX
    "table": ("t.jsonl", json.dumps({"id": "pics/a.png", "truth": {"boxes": [BOX]}})),
    "coco": (
        "c.json",
        json.dumps(
            {
                "images": [{"id": 3, "file_name": "a.png"}],
                "categories": [{"id": 1, "name": "dog"}],
                "annotations": [{"image_id": 3, "category_id": 1, "bbox": [10, 20, 30, 40]}],
            }
        ),
    ),
    "label-studio": (
        "l.json",
        json.dumps([{"data": {"image": "s3://b/pics/a.png"}, "annotations": [{"result": [RESULT]}]}]),
    ),
    "yolo": ("data.yaml", "{names: [cat, dog], train: images}"),
    "cvat": (
        "d.xml",
        '<annotations><image name="a.png"><box label="dog" xtl="10" ytl="20" xbr="40" ybr="60"/></image></annotations>',
    ),
    "toy": ("t.toy", "pics/a.png 10 20 40 60 dog"),
}


class ToyTruthReader(TruthReader):
    description = "a toy file"

    @classmethod
    def can_read(cls, file):
        return file.url.endswith(".toy")

    def read(self):
        name, *corners, label = Path(self.file.url).read_text().split()
        yield TrueAnswer((name,), {"boxes": [{"bbox_2d": [int(each) for each in corners], "label": label}]})


@pytest.fixture(params=[*TRUTHS, "toy"])
def file(request, monkeypatch, tmp_path):
    module = ModuleType("toy_truth")
    module.ToyTruthReader = ToyTruthReader
    monkeypatch.setitem(sys.modules, "toy_truth", module)
    monkeypatch.setitem(TRUTHS, "toy", "toy_truth:ToyTruthReader")
    name, text = SAMPLES[request.param]
    (tmp_path / name).write_text(text)
    (tmp_path / "labels").mkdir()  # of YOLO
    (tmp_path / "labels/a.txt").write_text("1 0.125 0.4 0.15 0.4\n")
    return str(tmp_path / name)


def open_boxes(file):
    return open_truth(file, "id", build_compared_fields(load_annotated_schema("boxes", base_folder=Path())), ["kept"])


def test_a_row_finds_its_truth_in_pixels_of_the_original(file):
    truth = open_boxes(file)
    found = truth.find({"id": "pics/a.png", "media": [{"uri": "file:///data/pics/a.png", "width": 200, "height": 100}]})
    [box] = found["boxes"]
    assert {name: box[name] for name in BOX} == {**BOX, "bbox_2d": pytest.approx(BOX["bbox_2d"])}
    assert truth.find({"id": "pics/b.png", "media": [{"uri": "file:///data/pics/b.png"}]}) is None
    assert list(truth.used) == ["pics/a.png"]


def test_what_no_format_reads_is_refused_with_a_list_of_the_formats(file, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(
        OutputError, match=r"neither a kept column of the output .kept. nor Parquet.*, a COCO file, a JSON"
    ):
        open_boxes(str(tmp_path / "other.json"))
