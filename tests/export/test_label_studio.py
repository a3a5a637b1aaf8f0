"""Tasks for Label Studio hold the answers as predictions, and what people make of them comes back as a truth."""

from __future__ import annotations

import copy
import json
from xml.etree import ElementTree

import PIL.Image
import pytest

from pipeline.__main__ import main
from pipeline.inspect.score import score_output
from tests.media.sample_media import draw_pixels, write_video

pytestmark = pytest.mark.process

INVOICE = {
    "number": "17",
    "issued": "2026-03-02",
    "seller": {"name": "Acme Ltd", "tax_id": "EU 5"},
    "currency": "EUR",
    "lines": [{"description": "Paper", "quantity": "2", "amount": "9.00"}, {"description": "Ink", "amount": "1.00"}],
    "net": "10.00",
    "taxes": [],
    "total": "10.00",
}
EVENTS = [{"what": "A car stops.", "start": 0.4, "end": 1.2}, {"what": "It leaves.", "start": 1.6, "end": 2.0}]


def run_and_export(workspace, *options, **sections):
    """Returns the tasks by the names of their files, and the configurations."""
    assert workspace.run_job(**sections) == 0, workspace.messages
    job, target = str(workspace.write_job_file(**sections)), workspace.folder / "exported"
    assert main(["export", job, str(target), "--to", "label-studio", *options]) == 0
    tasks = {path.name: json.loads(path.read_text()) for path in sorted(target.glob("tasks-*.json"))}
    return tasks, {path.name: ElementTree.parse(path).getroot() for path in target.glob("*.xml")}


def accept(tasks):
    """The tasks as Label Studio exports them, after people accepted each prediction as it is."""
    return [{**task, "annotations": [copy.deepcopy(task["predictions"][0])], "predictions": []} for task in tasks]


def score(workspace, tasks):
    path = workspace.folder / "corrected.json"
    path.write_text(json.dumps(tasks))
    return score_output(str(workspace.folder / "out"), str(path)).fields


def check_names(tasks, config):
    """Every result belongs to a control, with a label that the control offers."""
    controls = {tag.get("name"): tag for tag in config.iter() if tag.get("toName")}
    (source,) = [tag.get("name") for tag in config.iter() if tag.get("name") and not tag.get("toName")]
    for task in tasks:
        for result in task["predictions"][0]["result"]:
            control = controls[result["from_name"]]
            assert result["to_name"] == control.get("toName") == source
            assert result["type"] == control.tag.lower()
            offered = {tag.get("value") for tag in control}
            assert not offered or set(result["value"][result["type"]]) <= offered


def write_pictures(workspace, count):
    (workspace.folder / "pics").mkdir()
    for number in range(count):
        PIL.Image.fromarray(draw_pixels(280, 196, seed=number)).save(workspace.folder / f"pics/{number}.png")
    workspace.write_manifest([{"id": f"r{n}", "image": f"pics/{n}.png", "hint": f"<{n}>"} for n in range(count)])


def test_only_the_twenty_boxes_that_were_changed_differ_from_the_answers(workspace):
    write_pictures(workspace, 50)
    replies = {
        f"<{n}>": json.dumps(
            {"boxes": [{"bbox_2d": [n, 20 + k, n + 33, 90], "label": ("dog", "cat")[k % 2]} for k in range(n % 3)]}
        )
        for n in range(50)
    }
    sections = {"answer": {"schema": "boxes"}, "prompt": {"user": "{hint}"}, "engine": {"replies": replies}}
    sections["media"] = {"max_pixels": 280 * 196}
    tasks, configs = run_and_export(workspace, **sections)
    [tasks] = tasks.values()
    check_names(tasks, configs["labelling-config-image.xml"])
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={workspace.folder}/pics/0.png".replace("?d=/", "?d=")
    fields = score(workspace, accept(tasks))
    assert fields["boxes"].measures["right"].value == 1
    corrected = accept(tasks)
    with_boxes = [task for task in corrected if task["annotations"][0]["result"]]
    changed = with_boxes[5:25]
    for number, task in enumerate(changed):
        if number % 2:
            task["annotations"][0]["result"][0]["value"]["x"] += 50
        else:
            task["annotations"][0]["result"][0]["value"]["rectanglelabels"] = ["owl"]
    fields = score(workspace, corrected)
    assert sorted(fields["boxes"].wrong) == sorted(task["data"]["id"] for task in changed)


def test_fields_of_invoices_become_controls_and_come_back(workspace):
    write_pictures(workspace, 2)
    sections = {"answer": {"schema": "invoice"}, "engine": {"default": json.dumps(INVOICE)}}
    tasks, configs = run_and_export(workspace, "--media", "copy", **sections)
    [tasks] = tasks.values()
    config = configs["labelling-config-image.xml"]
    check_names(tasks, config)
    kinds = {tag.get("name"): tag.tag for tag in config.iter() if tag.get("toName")}
    assert (kinds["total"], kinds["seller.name"], kinds["lines"]) == ("Number", "TextArea", "TextArea")
    assert tasks[1]["data"]["image"].endswith("exported/media/r1.png")
    assert {field.measures["right"].value for field in score(workspace, accept(tasks)).values() if field.rows} == {1}
    corrected = accept(tasks)
    for result in corrected[1]["annotations"][0]["result"]:
        if result["from_name"] == "seller.name":
            result["value"]["text"] = ["Acme SA"]
        if result["from_name"] == "lines":
            result["value"]["text"].pop()
    wrong = {path: field.wrong for path, field in score(workspace, corrected).items() if field.wrong}
    assert wrong.pop("seller.name") == wrong.pop("lines") == ["r1"]
    assert set(wrong) <= {"answer", "seller"}


def test_one_of_several_choices_is_a_choice_there_too(workspace):
    write_pictures(workspace, 3)
    sections = {"answer": {"choices": ["red", "blue"]}, "prompt": {"user": "{hint}"}}
    sections["engine"] = {"replies": {"<0>": "red", "<1>": "blue", "<2>": "blue"}}
    tasks, configs = run_and_export(workspace, **sections)
    [tasks] = tasks.values()
    check_names(tasks, configs["labelling-config-image.xml"])
    [choice] = tasks[1]["predictions"][0]["result"]
    assert (choice["value"], choice["from_name"]) == ({"choices": ["blue"]}, "answer")
    assert choice["score"] == tasks[1]["predictions"][0]["score"] > 0.5
    corrected = accept(tasks)
    assert score(workspace, corrected)["answer"].measures["right"].value == 1
    corrected[1]["annotations"][0]["result"][0]["value"]["choices"] = ["red"]
    assert score(workspace, corrected)["answer"].wrong == ["r1"]


def test_events_lie_on_the_time_line_of_their_video(workspace):
    write_video(workspace.folder / "v.mp4", frames=40, size=(112, 84))
    workspace.write_manifest([{"id": "v", "image": "v.mp4"}])
    sections = {
        **{"answer": {"schema": "events"}, "input": {"media": "image", "keep": []}},
        **{"engine": {"default": json.dumps({"events": EVENTS})}, "media": {"video": {"fps": 2.0}}},
    }
    tasks, configs = run_and_export(workspace, **sections)
    check_names(tasks["tasks-video-0001.json"], configs["labelling-config-video.xml"])
    corrected = accept(tasks["tasks-video-0001.json"])
    assert score(workspace, corrected)["events"].measures["right"].value == 1
    [first, *_] = corrected[0]["annotations"][0]["result"]
    assert first["value"]["ranges"] == [{"start": 11, "end": 31}]
    first["value"]["ranges"] = [{"start": 30, "end": 50}]
    assert score(workspace, corrected)["events"].wrong == ["v"]


def test_splits_have_files_of_their_own_and_pictures_of_a_row_are_pages(workspace):
    write_pictures(workspace, 8)
    rows = [{"id": f"r{n}", "image": f"pics/{n}.png", "other": f"pics/{n + 4}.png"} for n in range(4)]
    workspace.write_manifest(rows)
    boxes = [{"bbox_2d": [7, 14, 28, 35], "label": "dog"}, {"bbox_2d": [7, 14, 28, 35], "label": "dog", "image": 2}]
    sections = {
        **{"answer": {"schema": "boxes"}, "engine": {"default": json.dumps({"boxes": boxes})}},
        **{"input": {"media": ["image", "other"], "keep": []}, "media": {"max_pixels": 280 * 196}},
    }
    tasks, configs = run_and_export(workspace, "--split", "train=0.5,val=0.5", **sections)
    assert list(tasks) == ["tasks-train-image-0001.json", "tasks-val-image-0001.json"]
    tasks = [task for file_tasks in tasks.values() for task in file_tasks]
    assert sorted(task["data"]["id"] for task in tasks) == ["r0", "r1", "r2", "r3"]
    assert [result["item_index"] for result in tasks[0]["predictions"][0]["result"]] == [0, 1]
    assert configs["labelling-config-image.xml"].find(".//Image").get("valueList") == "$images"
    assert score(workspace, accept(tasks))["boxes"].measures["right"].value == 1
