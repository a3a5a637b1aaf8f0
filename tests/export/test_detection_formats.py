"""COCO, YOLO, VOC and FiftyOne folders hold the boxes of the answers, as the libraries of their users read them."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml
from labelformat.formats import COCOObjectDetectionInput, PascalVOCObjectDetectionInput, YOLOv8ObjectDetectionInput
from pycocotools.coco import COCO

from pipeline.__main__ import main
from pipeline.model.engines.scripted import ScriptedEngine
from pipeline.types import TokenLogprob
from tests.media.sample_media import draw_pixels, read_frame_number, write_video

pytestmark = pytest.mark.process

DOG, CAT = {"bbox_2d": [28, 14, 140, 98], "label": "dog"}, {"bbox_2d": [7, 7, 84, 70], "label": "a  cat"}
SECOND_DOG = {"bbox_2d": [56, 28, 112, 84], "label": "Puppy", "image": 2}
FOUND = {"both": [DOG, CAT], "none": [], "two": [CAT, SECOND_DOG]}
CLASSES = {"cat": "a cat", "dog": ["puppy"]}
SECTIONS = {
    "prompt": {"user": "{hint}"},
    "answer": {"schema": "boxes"},
    "input": {"media": ["image", "other"], "keep": [], "require": "any"},
    "engine": {"replies": {hint: json.dumps({"boxes": boxes}) for hint, boxes in FOUND.items()}},
    "media": {"max_pixels": 280 * 196},
    "export": {"classes": CLASSES},
}
EXPECTED = {  # the boxes of each picture, by its name in the export
    "r0": [(DOG["bbox_2d"], "dog"), (CAT["bbox_2d"], "cat")],
    "r1": [],
    "r2": [(CAT["bbox_2d"], "cat")],
    "r2~2": [(SECOND_DOG["bbox_2d"], "dog")],
}


@pytest.fixture
def boxes(workspace, monkeypatch):
    """Answers about four pictures in three rows, of which the engine is sure with 0.5 for each value."""
    build_reply = ScriptedEngine.build_reply

    def build_sure_reply(engine, request):
        reply = build_reply(engine, request)
        logprobs = tuple(TokenLogprob(end, math.log(0.5) / 5) for end in range(1, len(reply.text) + 1))
        object.__setattr__(reply, "token_logprobs", logprobs)
        return reply

    monkeypatch.setattr(ScriptedEngine, "build_reply", build_sure_reply)
    (workspace.folder / "pics").mkdir()
    for number in range(4):
        PIL.Image.fromarray(draw_pixels(280, 196, seed=number)).save(workspace.folder / f"pics/{number}.png")
    hints = {"r0": ("both", "pics/0.png", None), "r1": ("none", "pics/1.png", None)}
    hints["r2"] = ("two", "pics/2.png", "pics/3.png")
    rows = [{"id": name, "hint": hint, "image": one, "other": two} for name, (hint, one, two) in hints.items()]
    workspace.write_manifest(rows)
    assert workspace.run_job(**SECTIONS) == 0
    return workspace


@pytest.fixture
def export(boxes, capsys):
    def run_export(*options, target="exported", **sections):
        job = str(boxes.write_job_file(**{**SECTIONS, **sections}))
        assert main(["export", job, str(boxes.folder / target), *options]) == 0, capsys.readouterr().err
        return boxes.folder / target, capsys.readouterr().out

    return run_export


def read_labels(reader, tolerance=0.01):
    """The boxes of each picture, by its name."""
    found = {}
    for label in reader.get_labels():
        corners = [(box.box.xmin, box.box.ymin, box.box.xmax, box.box.ymax) for box in label.objects]
        names = [box.category.name for box in label.objects]
        boxes = [([round(number, 1) for number in each], name) for each, name in zip(corners, names, strict=True)]
        found[Path(label.image.filename).stem] = boxes
    return found


def test_coco_holds_every_box_with_its_score_and_empty_pictures(export):
    target, said = export("--to", "coco", "--media", "copy")
    assert said.splitlines()[-2] == f"{target}: 3 of 3 rows"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(target / "annotations.json"))
    assert coco.getCatIds(catNms=["dog"]) == [2]
    assert [coco.imgs[number]["row"] for number in coco.getImgIds()] == ["r0", "r1", "r2", "r2"]
    [dog, _] = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert (dog["bbox"], dog["area"], dog["category_id"]) == ([28, 14, 112, 84], 112 * 84, 2)
    assert 0 < dog["score"] < 0.5
    assert coco.getAnnIds(imgIds=[2]) == []
    assert read_labels(COCOObjectDetectionInput(target / "annotations.json")) == EXPECTED
    copied = {path.name: path.read_bytes() for path in (target / "images").iterdir()}
    originals = [(target.parent / f"pics/{number}.png").read_bytes() for number in range(4)]
    assert copied == dict(zip(("r0.png", "r1.png", "r2.png", "r2~2.png"), originals, strict=True))


def test_coco_names_originals_or_only_their_files(export, boxes):
    for choice, prefix in {"link": f"{boxes.folder}/pics/", "none": ""}.items():
        target, _ = export("--to", "coco", "--media", choice, target=choice)
        images = json.loads((target / "annotations.json").read_text())["images"]
        assert [image["file_name"] for image in images] == [f"{prefix}{number}.png" for number in range(4)]


def test_coco_copies_files_of_a_folder_under_their_own_names(boxes, capsys):
    asked_for = {"id": None, "media": [], "manifest": f"{boxes.folder}/pics/../pics"}
    sections = SECTIONS | {"prompt": {"user": "both"}, "input": {**SECTIONS["input"], **asked_for}}
    sections["output"] = {"path": str(boxes.folder / "out_of_folder")}
    assert boxes.run_job(**sections) == 0
    job = str(boxes.write_job_file(**sections))
    for choice, folder in {"copy": "images", "link": f"{boxes.folder}/pics"}.items():
        target = boxes.folder / choice
        assert main(["export", job, str(target), "--to", "coco", "--media", choice]) == 0, capsys.readouterr().err
        images = json.loads((target / "annotations.json").read_text())["images"]
        assert [image["file_name"] for image in images] == [f"{folder}/{number}.png" for number in range(4)]
    copied = {path.name for path in (boxes.folder / "copy/images").iterdir()}
    assert copied == {f"{number}.png" for number in range(4)}


def test_yolo_trains_from_data_yaml(export):
    target, _ = export("--to", "yolo", "--split", "train=0.5,val=0.5")
    settings = yaml.safe_load((target / "data.yaml").read_text())
    assert settings["names"] == {0: "cat", 1: "dog"}
    assert "path" not in settings  # Ultralytics would start at the current folder
    found = {split: read_labels(YOLOv8ObjectDetectionInput(target / "data.yaml", split)) for split in ("train", "val")}
    assert found["train"] | found["val"] == EXPECTED
    assert found["train"].keys() & found["val"].keys() == set()
    assert all(found.values())


def test_voc_lists_pictures_and_has_a_file_for_each(export):
    target, _ = export("--to", "voc")
    assert read_labels(PascalVOCObjectDetectionInput(target / "Annotations", "cat,dog")) == {
        name: [([float(number) for number in corners], label) for corners, label in found]
        for name, found in EXPECTED.items()
    }
    assert (target / "ImageSets/Main/train.txt").read_text().split() == list(EXPECTED)
    assert {path.stem for path in (target / "JPEGImages").iterdir()} == set(EXPECTED)


def test_fiftyone_gets_fractions_and_confidences(export, boxes):
    target, _ = export("--to", "fiftyone", "--media", "link")
    document = json.loads((target / "labels.json").read_text())
    assert document["classes"] == ["cat", "dog"]
    assert {name: [box["label"] for box in found] for name, found in document["labels"].items()} == {
        name: [["cat", "dog"].index(label) for _, label in found] for name, found in EXPECTED.items()
    }
    [dog, _] = document["labels"]["r0"]
    assert dog["bounding_box"] == [0.1, round(14 / 196, 6), 0.4, round(84 / 196, 6)]
    assert 0 < dog["confidence"] < 0.5
    assert json.loads((target / "data.json").read_text())["r2~2"] == str(boxes.folder / "pics/3.png")
    copied, _ = export("--to", "fiftyone", target="copied")
    assert {path.stem for path in (copied / "data").iterdir()} == set(EXPECTED)


def test_classes_keep_their_numbers_and_unknown_ones_are_said(export, boxes):
    first, said = export("--to", "coco", export={"classes": {}})
    assert json.loads((first / "classes.json").read_text()) == {"dog": 0, "a cat": 1, "Puppy": 2}
    second, said = export("--to", "coco", target="second", export={"classes": {"DOG": [], "cat": "a cat"}})
    assert json.loads((second / "classes.json").read_text()) == {"dog": 0, "a cat": 1, "Puppy": 2, "DOG": 3, "cat": 4}
    assert said.splitlines()[-2] == "box of the class 'Puppy', which export.classes does not name: 1"
    [*_, box] = json.loads((second / "annotations.json").read_text())["annotations"]
    assert box["category_id"] == 3
    assert len(list((boxes.folder / "out/classes").iterdir())) == 2


def test_free_text_is_no_class(boxes, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.export.class_names.MAX_CLASSES", 2)
    job = str(boxes.write_job_file(**{**SECTIONS, "export": {}}))
    assert main(["export", job, str(boxes.folder / "exported"), "--to", "coco"]) == 2
    said = capsys.readouterr().err
    assert "the labels are free text: there are more than 2 classes." in said
    assert f"Then delete {boxes.folder / 'out'}/classes, unless" in said
    assert not (boxes.folder / "out/classes").exists()


def test_boxes_of_a_video_belong_to_the_frame_of_their_time(workspace, capsys):
    write_video(workspace.folder / "v.mp4", frames=40, size=(280, 196))
    box = {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}
    seconds = {"anyOf": [{"type": "number", "x-means": "seconds"}, {"type": "null"}]}
    seen = {"type": "object", "properties": {"label": {"type": "string"}, "bbox_2d": box, "at": seconds}}
    schema = {"type": "object", "properties": {"seen": {"type": "array", "items": seen}}, "required": ["seen"]}
    (workspace.folder / "seen.json").write_text(json.dumps(schema))
    places = [{"label": "dog", "bbox_2d": DOG["bbox_2d"], "at": second} for second in (0.4, 1.6, None)]
    sections = {
        **{"answer": {"schema": str(workspace.folder / "seen.json")}, "prompt": {"user": "What is it?"}},
        **{"input": {"media": "image", "keep": []}, "engine": {"default": json.dumps({"seen": places})}},
        "media": {"video": {"fps": 2.0, "max_pixels": 280 * 196}},
    }
    workspace.write_manifest([{"id": "v", "image": "v.mp4"}])
    assert workspace.run_job(**sections) == 0, workspace.messages
    job, target = str(workspace.write_job_file(**sections)), workspace.folder / "exported"
    assert main(["export", job, str(target), "--to", "coco", "--media", "copy"]) == 0
    assert "box in a video, without a time that names a frame: 1, for instance of row v" in capsys.readouterr().out
    document = json.loads((target / "annotations.json").read_text())
    names = [image["file_name"] for image in document["images"]]
    assert names == [f"images/v~1~{second:.3f}s.png" for second in (0.6, 1.7)]
    assert [annotation["image_id"] for annotation in document["annotations"]] == [1, 2]
    frames = [np.asarray(PIL.Image.open(target / name)).transpose(2, 0, 1) for name in names]
    assert [read_frame_number(frame) for frame in frames] == [6, 17]


def test_job_files_name_a_label_for_one_class_only(boxes, capsys):
    job = str(boxes.write_job_file(**{**SECTIONS, "export": {"classes": {"dog": "Puppy", "cat": ["puppy"]}}}))
    assert main(["check", job]) == 2
    assert "'Puppy' stands for 'cat' and for 'dog'; name it once" in capsys.readouterr().err


def test_answers_without_boxes_are_refused_before_anything_is_written(boxes, capsys):
    job = str(boxes.write_job_file(**{**SECTIONS, "answer": {"schema": "caption"}}))
    for name in ("coco", "yolo", "voc", "fiftyone"):
        assert main(["export", job, str(boxes.folder / "target"), "--to", name]) == 2
        assert "the answers of t have none: their schema has no field `bbox_2d`" in capsys.readouterr().err
    assert not (boxes.folder / "target").exists()
