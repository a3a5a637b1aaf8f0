"""`truth` turns labels from other tools into a table that `score` reads: an export that nobody changed is all right."""

from __future__ import annotations

import json

import PIL.Image
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.inspect.score import score_output
from tests.media.sample_media import draw_pixels

pytestmark = pytest.mark.process

DOG, CAT = {"bbox_2d": [28, 14, 140, 98], "label": "dog"}, {"bbox_2d": [7, 7, 84, 70], "label": "cat"}
FOUND = {"both": [DOG, CAT], "none": [], "two": [CAT, {**DOG, "image": 2}]}
SECTIONS = {
    "prompt": {"user": "{hint}"},
    "answer": {"schema": "boxes"},
    "input": {"media": ["image", "other"], "keep": [], "require": "any"},
    "engine": {"replies": {hint: json.dumps({"boxes": boxes}) for hint, boxes in FOUND.items()}},
    "media": {"max_pixels": 280 * 196},
}


@pytest.fixture
def boxes(workspace):
    """Rows whose ids look like the numbers of pictures. The last one has two pictures."""
    (workspace.folder / "pics").mkdir()
    for number in range(4):
        PIL.Image.fromarray(draw_pixels(280, 196, seed=number)).save(workspace.folder / f"pics/p{number}.png")
    pictures = [("both", 0, None), ("none", 1, None), ("two", 2, 3)]
    workspace.write_manifest(
        {"id": str(n), "hint": hint, "image": f"pics/p{one}.png", "other": two and f"pics/p{two}.png"}
        for n, (hint, one, two) in enumerate(pictures)
    )
    assert workspace.run_job(**SECTIONS) == 0
    return workspace


def export(boxes, *options):
    job = str(boxes.write_job_file(**SECTIONS))
    assert main(["export", job, str(boxes.folder / "exported"), *options]) == 0
    return boxes.folder / "exported"


def make_truth(boxes, file, *options):
    table = boxes.folder / "truth.parquet"
    assert main(["truth", str(file), str(boxes.folder / "out"), "--to", str(table), *options]) == 0
    return table


@pytest.mark.parametrize(
    ("format_name", "file"), [("coco", "annotations.json"), ("yolo", "data.yaml"), ("label-studio", "accepted.json")]
)
def test_an_export_that_nobody_changed_comes_back_with_its_values(format_name, file, boxes, capsys):
    target = export(boxes, "--to", format_name)
    if format_name == "label-studio":
        tasks = json.loads((target / "tasks-image-0001.json").read_text())
        accepted = [{**task, "annotations": task["predictions"]} for task in tasks]
        (target / file).write_text(json.dumps(accepted))
    table = make_truth(boxes, target / file, "--from", format_name)
    assert f"{table}: 3 rows\nnext: " in capsys.readouterr().out
    truths, answers = pq.read_table(table), {row["id"]: row["answer"]["boxes"] for row in boxes.read_answers()}
    assert dict(zip(truths["id"].to_pylist(), truths["boxes"].to_pylist(), strict=True)) == answers
    assert score_output(str(boxes.folder / "out"), str(table)).fields["boxes"].measures["right"].value == 1


@pytest.mark.parametrize(("format_name", "ending"), [("csv", "csv"), ("jsonl", "jsonl"), ("table", "parquet")])
def test_an_export_that_is_a_table_is_a_truth(format_name, ending, boxes):
    (file,) = export(boxes, "--to", format_name).rglob(f"*.{ending}")
    right = score_output(str(boxes.folder / "out"), str(file)).fields["boxes"].measures["right"]
    assert right.value == 1
    if ending != "parquet":
        file.write_text(file.read_text().replace("dog", "cow"))
        measures = score_output(str(boxes.folder / "out"), str(file)).fields["boxes"].measures
        assert measures["right"].value == pytest.approx(1 / 3)  # the row without boxes


def test_truths_of_unknown_rows_are_counted_and_files_of_another_format_refused(boxes, capsys):
    lines = ["id,boxes", "0,[]", "7,[]"]
    (boxes.folder / "checked.csv").write_text("\n".join(lines))
    table = make_truth(boxes, boxes.folder / "checked.csv", "--from", "csv")
    first_line, _ = capsys.readouterr().out.splitlines()
    assert first_line == f"{table}: 1 row; truths that belong to no row of {boxes.folder / 'out'}: 1"
    assert pq.read_table(table).to_pylist() == [{"id": "0", "boxes": []}]
    arguments = ["truth", str(boxes.folder / "checked.csv"), str(boxes.folder / "out"), "--from", "coco"]
    assert main(arguments) == 2
    assert "checked.csv is neither a kept column nor a COCO file" in capsys.readouterr().err
