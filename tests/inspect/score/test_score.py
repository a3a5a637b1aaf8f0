"""`score` on outputs of the scripted engine, with truths of every kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.errors import OutputError
from pipeline.inspect.score import score_output
from pipeline.inspect.score.comparators import COMPARATORS
from pipeline.registry import SCHEMAS
from pipeline.schema.schema_loader import load_annotated_schema, load_schema
from pipeline.truth.compared_fields import VALUE_KINDS

pytestmark = pytest.mark.process

SIZE = (56, 56)  # a multiple of the model's tokens, so that it sees pictures as they are
ORDER = """
from datetime import date
from typing import Annotated, Literal
from pydantic import BaseModel, Field

class Item(BaseModel):
    name: str
    amount: float

class Order(BaseModel):
    kind: Literal["order", "offer"]
    number: str = Field(json_schema_extra={"x-compare": "code"})
    weight: float = Field(json_schema_extra={"x-compare": {"by": "number", "tolerance": 0.5}})
    day: date | None = None
    tags: list[str] = []
    items: list[Item] = []
"""
TRUE_ORDER = {"kind": "order", "number": "A-17", "weight": 2.0, "day": "2026-03-02", "tags": ["new", "big"]}
TRUE_ORDER |= {"items": [{"name": "ink", "amount": 1.5}, {"name": "pen", "amount": 2.0}]}
ORDERS = [  # as answered
    {**TRUE_ORDER, "number": "a17", "weight": 2.4, "items": TRUE_ORDER["items"][::-1]},
    {**TRUE_ORDER, "kind": "offer", "weight": 2.6, "day": None, "tags": ["BIG"]},
    {**TRUE_ORDER, "items": [{"name": "pen", "amount": 2.5}]},
]


def answer_rows(workspace, schema, answers, truths=(), **more):
    """Run a job that gives these answers. Truths are a kept column."""
    rows = workspace.draw_images(len(answers))
    for number, row in enumerate(rows):
        row["hint"] = f"q{number}q"
        Image.new("RGB", SIZE).save(workspace.folder / row["image"])
        if truths:
            row["truth"] = truths[number]
    workspace.write_manifest([*rows, *more.pop("rows", [])])
    replies = {f"q{number}q": json.dumps(answer) for number, answer in enumerate(answers)}
    workspace.run_job(
        input={"keep": ["truth"] if truths else []},
        prompt={"user": "{hint}"},
        engine={"replies": replies},
        answer={"schema": schema},
        media={"min_pixels": 784},
        **more,
    )
    return str(workspace.folder / "out")


def to_cell(value):
    return json.dumps(value) if isinstance(value, list) else value


def get_value(score, path, measure="right"):
    return score.fields[path].measures[measure].value


@pytest.fixture
def orders(workspace):
    (workspace.folder / "order.py").write_text(ORDER)
    return answer_rows(workspace, f"{workspace.folder}/order.py:Order", ORDERS)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_fields_are_compared_as_the_schema_and_their_types_say(orders, workspace, kind):
    place = workspace.folder / f"truth.{kind}"
    truths = [{"doc": f"r{number}", **TRUE_ORDER} for number in range(3)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(truths), place)
    elif kind == "jsonl":
        place.write_text("".join(json.dumps(truth) + "\n" for truth in truths))
    else:
        table = pd.DataFrame([{name: to_cell(value) for name, value in truth.items()} for truth in truths])
        table.to_csv(place, index=False)
    score = score_output(orders, str(place), id_column="doc", schema_spec=f"{workspace.folder}/order.py:Order")
    right = {path: [row_id for row_id in ("r0", "r1", "r2") if row_id not in field.wrong]
             for path, field in score.fields.items() if "[]" not in path}  # fmt: skip
    assert right == {
        "kind": ["r0", "r2"],
        "number": ["r0", "r1", "r2"],
        "weight": ["r0", "r2"],
        "day": ["r0", "r2"],
        "tags": ["r0", "r2"],
        "items": ["r0", "r1"],
        "answer": ["r0"],
    }
    assert score.fields["kind"].confusion == [("order", "order", 2), ("order", "offer", 1)]
    assert get_value(score, "tags", "recall") == pytest.approx(5 / 6)
    assert get_value(score, "items", "F1") == pytest.approx(2 * 4 / (5 + 6))
    assert get_value(score, "items[].amount") == pytest.approx(4 / 5)
    assert get_value(score, "weight", "mean error") == pytest.approx((0.4 + 0.6) / 3)


def build_object(**properties):
    return {"type": "object", "properties": properties, "required": [*properties]}


@pytest.mark.parametrize(
    ("schema", "answer", "other"),
    [
        (
            build_object(
                shape={
                    "anyOf": [
                        build_object(kind={"const": "circle"}, radius={"type": "integer"}),
                        build_object(kind={"const": "label"}, text={"type": "string"}),
                    ]
                }
            ),
            {"shape": {"kind": "circle", "radius": 3}},
            {"shape": {"kind": "circle", "radius": 4}},
        ),
        (
            build_object(count={"type": "object", "additionalProperties": {"type": "integer"}}),
            {"count": {"dog": 2, "cat": 1}},
            {"count": {"dog": 2}},
        ),
        (build_object(value={"anyOf": [{"type": "string"}, {"type": "integer"}]}), {"value": "a"}, {"value": 7}),
        (
            build_object(pair={"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}]}),
            {"pair": ["a", True]},
            {"pair": ["a", False]},
        ),
        ({"enum": ["yes", "no"]}, "yes", "no"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, ["a", "b"], ["a"]),
    ],
)
def test_an_answer_of_any_shape_is_right_if_the_truth_is_what_the_model_wrote(schema, answer, other, workspace):
    (workspace.folder / "s.json").write_text(json.dumps(schema))
    output = answer_rows(workspace, f"{workspace.folder}/s.json", [answer, answer])
    truth = workspace.folder / "truth.jsonl"
    truth.write_text(
        "".join(f"{json.dumps({'id': f'r{n}', 'truth': each})}\n" for n, each in enumerate([answer, other]))
    )
    assert get_value(score_output(output, str(truth)), "answer") == 0.5
    typed = pa.table({"id": ["r0"], "truth": [next(row for row in workspace.read_answers())["text"]]})
    pq.write_table(typed, workspace.folder / "truth.parquet")
    assert get_value(score_output(output, str(workspace.folder / "truth.parquet")), "answer") == 1


def test_a_schema_that_an_output_names_is_not_run(orders, workspace):
    (workspace.folder / "order.py").write_text("raise SystemExit('run')")
    (workspace.folder / "truth.jsonl").write_text('{"id": "r0", "number": "A-17"}\n')
    score = score_output(orders, str(workspace.folder / "truth.jsonl"))
    assert get_value(score, "number") == 0.0  # without the comparator, texts are texts
    assert (score.rows, score.unlabelled) == (1, 2)


@pytest.fixture
def boxes(workspace):
    """Boxes of a dog and a cat in two pictures, and a picture without any; the second is a row that failed."""
    dog, cat = {"bbox_2d": [2, 2, 12, 12], "label": "dog"}, {"bbox_2d": [20, 10, 36, 26], "label": "cat"}
    answers = [{"boxes": [dog, {**cat, "bbox_2d": [21, 10, 37, 26]}]}, {"boxes": [{**dog, "label": "cat"}]}]
    truths = [json.dumps({"boxes": boxes}) for boxes in ([dog, cat], [dog])]
    broken = [{**row, "hint": "q9q", "truth": json.dumps({"boxes": [dog]})} for row in workspace.write_broken_images(1)]
    return answer_rows(workspace, "boxes", answers, truths, rows=broken, model={"weights": "builtin:tiny"})


def test_boxes_are_scored_by_class_and_failed_rows_count_as_missed(boxes, capsys):
    assert main(["score", boxes, "--truth", "truth", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    measures = {name: each and each["value"] for name, each in printed["fields"]["boxes"]["measures"].items()}
    assert (printed["rows"], printed["failed"]) == (3, 1)
    assert measures["F1"] == pytest.approx(2 * 2 / (3 + 4))
    assert measures["AP50"] == pytest.approx((1.0 + 34 / 101) / 2)
    assert printed["fields"]["boxes"]["wrong"] == ["bad0", "r1"]
    [file] = Path(boxes, "scores", printed["question"]).iterdir()
    assert json.loads(file.read_text()) == printed
    assert main(["score", boxes, "--truth", "truth"]) == 0
    assert re.search(r"^ +AP50 +0\.668 ", capsys.readouterr().out, re.MULTILINE)


def test_scores_do_not_disturb_readers_of_the_answers(boxes, capsys):
    before = ds.dataset(Path(boxes, "data")).count_rows()
    assert main(["score", boxes, "--truth", "truth"]) == 0
    assert ds.dataset(Path(boxes, "data")).count_rows() == before
    assert main(["status", boxes]) == 0
    assert main(["report", boxes]) == 0


def test_a_coco_file_and_an_export_of_label_studio_say_the_same(boxes, workspace):
    images = [{"id": 7, "file_name": "train/0.png"}, {"id": 8, "file_name": "train/1.png"}]
    places = [(7, [2, 2, 10, 10], 1), (7, [20, 10, 16, 16], 2), (8, [2, 2, 10, 10], 1)]
    coco = {
        "images": images,
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": number, "image_id": image, "bbox": box, "category_id": label, "iscrowd": 0}
            for number, (image, box, label) in enumerate(places)
        ],
    }
    names = {1: "dog", 2: "cat"}
    tasks = [
        {
            "data": {"image": f"/data/upload/1/0a1b2c3d-{image['file_name'].rpartition('/')[2]}"},
            "annotations": [{"result": [
                {
                    "type": "rectanglelabels",
                    "original_width": SIZE[0],
                    "original_height": SIZE[1],
                    "value": {"rectanglelabels": [names[label]]}
                    | dict(zip(("x", "y", "width", "height"), [100 * side / 56 for side in box], strict=True)),
                }
                for owner, box, label in places if owner == image["id"]
            ]}],
        }
        for image in images
    ]  # fmt: skip
    scores = []
    for name, content in (("coco.json", coco), ("tasks.json", tasks)):
        (workspace.folder / name).write_text(json.dumps(content))
        scores.append(score_output(boxes, str(workspace.folder / name)))
    assert scores[0].fields == scores[1].fields
    assert scores[0].fields["boxes"].classes["dog"]["recall"] == 0.5
    assert (scores[0].rows, scores[0].unused, scores[0].fields["boxes"].wrong) == (2, 0, ["r1"])


def test_what_is_wrong_with_a_truth_is_said(boxes, workspace):
    cases = {
        '{"id": "r0", "truth": "{\\"boxes\\": [{\\"label\\": \\"dog\\"}]}"}': "row r0 has not the shape of an answer",
        '{"id": "r0", "truth": "{\\"box\\": []}"}': "the answer has boxes; none is in both",
        '{"id": "other", "truth": "{\\"boxes\\": []}"}': "none of its rows is in",
        '{"id": "r0", "answer": "{}", "truth": ""}': "no row of it has a true answer yet",
        '{"name": "r0", "truth": "{\\"boxes\\": []}"}': "has no column 'id'; it has name, truth",
        '{"id": "r0", "truth": "{}"}\n{"id": "r0", "truth": "{\\"boxes\\": []}"}': "two truths for 'r0'",
    }
    for text, message in cases.items():
        (workspace.folder / "bad.jsonl").write_text(text + "\n")
        with pytest.raises(OutputError, match=message):
            score_output(boxes, str(workspace.folder / "bad.jsonl"))
    with pytest.raises(OutputError, match=r"neither a kept column of the output \(truth\) nor Parquet, JSONL or CSV"):
        score_output(boxes, "truths")


@pytest.mark.parametrize("name", SCHEMAS)
def test_comparators_of_shipped_schemas_are_no_part_of_their_questions(name):
    annotated = json.dumps(load_annotated_schema(name, base_folder=Path()))
    assert "x-compare" in annotated
    assert "x-compare" not in load_schema(name, base_folder=Path()).text


def test_answers_without_a_schema_are_compared_as_texts(workspace, capsys):
    rows = workspace.draw_images(2)
    workspace.write_manifest([{**row, "said": f"Seen  {row['id']}" if at else "other"} for at, row in enumerate(rows)])
    workspace.run_job(input={"keep": ["said"]})
    score = score_output(str(workspace.folder / "out"), "said")
    assert score.fields["answer"].wrong == ["r0"]
    assert score.fields["answer"].measures["exact"].value == 0.0
    assert main(["report", str(workspace.folder / "out"), "--truth", "said"]) == 0
    assert "answer: the truth is other" in (workspace.folder / "out/report.html").read_text()


def test_every_kind_of_value_has_a_comparator():
    assert tuple(COMPARATORS) == VALUE_KINDS


def test_places_in_a_taxonomy_are_compared_level_by_level(workspace, monkeypatch):
    """Hierarchical F1: the shared levels from the top, of all levels that were answered and that are true."""
    paths = ["Home > Kitchen > Pans", "home>kitchen", "Home > Garden > Kitchen > Pans", None]
    truths = ["Home > Kitchen > Pans", "Home > Kitchen > Knives", "Home > Kitchen > Pans", "Home"]
    monkeypatch.chdir(workspace.folder)
    (workspace.folder / "s.py").write_text(
        "from pydantic import BaseModel, Field\n"
        "class Place(BaseModel):\n"
        "    place: str | None = Field(json_schema_extra={'x-compare': 'path'})\n"
    )
    answers = [{"place": path} for path in paths]
    answer_rows(workspace, "s.py:Place", answers, [json.dumps({"place": path}) for path in truths])
    score = score_output(str(workspace.folder / "out"), "truth", schema_spec="s.py:Place")
    measures = score.fields["place"].measures
    assert measures["right"].value == 1 / 4
    assert measures["precision"].value == 6 / 9
    assert measures["recall"].value == 6 / 10
    assert measures["F1"].value == 12 / 19


def score_choices(workspace, capsys, truths, replies, **answer):
    """The measures and confidences of each field, for rows that ask q0q, q1q, ..."""
    rows = workspace.draw_images(len(truths))
    for number, (row, truth) in enumerate(zip(rows, truths, strict=True)):
        row |= {"hint": f"q{number}q", "truth": truth}
    workspace.write_manifest(rows)
    engine = {"replies": replies, "default": "no"}
    job = {"engine": engine, "input": {"keep": ["truth"]}, "prompt": {"user": "{hint}"}}
    assert workspace.run_job(**job, answer={"choices": ["red", "blue"], **answer}) == 0
    assert main(["score", str(workspace.folder / "out"), "--truth", "truth", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["fields"]


@pytest.mark.parametrize("truth", ["red", '"red"'], ids=["plain", "JSON"])
def test_a_choice_is_right_if_it_is_the_true_one_and_its_confidence_is_judged(workspace, capsys, truth):
    replies = {f"q{number}q": "red" if number % 3 else "blue" for number in range(24)}
    fields = score_choices(workspace, capsys, [truth] * 24, replies)
    assert fields["answer"]["measures"]["right"]["value"] == pytest.approx(2 / 3)
    assert fields["answer"]["confidence"]["auroc"] == 0.5


@pytest.mark.parametrize(
    "truths",
    [[["red"], [], ["red", "blue"]], ['["red"]', "[]", '{"red": true, "blue": true}']],
    ids=["lists", "JSON"],
)
def test_with_multi_each_choice_is_scored_and_a_truth_may_list_those_that_apply(workspace, capsys, truths):
    replies = {"q0q\nIs it red": "yes", "q2q\nIs it red": "Yes"}
    fields = score_choices(workspace, capsys, truths, replies, multi=True, choice_format="\nIs it {choice}?")
    right = {name: fields[name]["measures"]["right"]["value"] for name in ("red", "blue")}
    assert right == {"red": 1, "blue": pytest.approx(2 / 3)}


def test_commands_show_on_a_terminal_how_far_they_are(workspace, capsys, monkeypatch):
    box = {"boxes": [{"bbox_2d": [0, 0, 9, 9], "label": "a"}]}
    out = answer_rows(workspace, "boxes", [box, box], truths=[json.dumps(box)] * 2)
    commands = {
        ("score", out, "--truth", "truth"): ["answers", "marks", "intervals"],
        ("sample", out, "--rows", "1"): ["answers"],
        ("report", out): ["pictures"],
    }
    for is_terminal in (False, True):
        if is_terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
        for command, labels in commands.items():
            to = ["--to", str(workspace.folder / f"{is_terminal}.csv")] if command[0] == "sample" else []
            capsys.readouterr()
            assert main([*command, *to]) == 0
            shown = capsys.readouterr().err
            assert [label in shown for label in labels] == [is_terminal] * len(labels), command
