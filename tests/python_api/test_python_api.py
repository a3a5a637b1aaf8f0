"""vlbatch from Python: runs, outputs, and questions to a model, with the answers that jobs get."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from PIL import Image

import vlbatch
from pipeline.builtin.scene_files import write_scene_files
from pipeline.errors import ExitCode
from tests.small_ray import start_small_ray

NOTEBOOK = Path(__file__).parents[2] / "jobs" / "vlbatch.ipynb"


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    write_scene_files(tmp_path / "scenes", "detect", 3)
    monkeypatch.chdir(tmp_path)
    return sorted((tmp_path / "scenes").glob("*.png"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    places = {"roots": [str(tmp_path_factory.getbasetemp())]}
    with vlbatch.Model.open("builtin:tiny", schema="boxes", input=places, answer={"max_new_tokens": 128}) as model:
        yield model


def load_detect_job(**changes: object) -> vlbatch.Job:
    job = NOTEBOOK.parent / "demo" / "detect.yaml"
    return vlbatch.load_job(job, {"input.manifest": "scenes/manifest.parquet", "output.path": "out", **changes})


def test_a_run_returns_its_output_and_read_finds_it_again(workspace):
    workspace.write_manifest([*workspace.draw_images(3), *workspace.write_broken_images(1)])
    messages: list[str] = []
    job = vlbatch.load_job(workspace.write_job_file(), {"prompt.user": "Which color?", "output.chunk_rows": 2})
    output = vlbatch.run(job, say=messages.append)
    assert output.exit_code == ExitCode.FAILED_ROWS
    assert "3 answered, 1 failed" in " ".join(messages)
    again = vlbatch.read(output.path)
    for each in (output, again):
        assert sorted(each.read_answers(["id"])["id"].to_pylist()) == ["r0", "r1", "r2"]
        [error] = each.read_errors().to_pylist()
        assert (error["id"], error["stage"]) == ("bad0", "decode")
    assert sorted(again.read_answers().to_pandas().text) == ["seen r0", "seen r1", "seen r2"]
    assert again.question in str(next((workspace.folder / "out" / "data").iterdir()))
    with pytest.raises(vlbatch.PipelineError, match="no question 000 was asked here"):
        vlbatch.read(output.path, "000")


def test_a_model_answers_as_a_job_does(scenes, model):
    output = vlbatch.run(load_detect_job(**{"answer.max_new_tokens": 128}), say=lambda line: None)
    by_id = {row["id"]: row["answer"] for row in output.read_answers(["id", "answer"]).to_pylist()}
    answers = model.ask([*scenes])
    assert [row["answer"] for row in answers] == [by_id[key] for key in sorted(by_id)]
    assert all(row["answer"]["boxes"] and row["error"] is None for row in answers)


def test_media_come_as_paths_bytes_images_and_lists(scenes, model):
    image = Image.open(scenes[0])
    path, content, picture, pair = model.ask([str(scenes[0]), scenes[0].read_bytes(), image, [scenes[0], image]])
    assert path["answer"] == content["answer"] == picture["answer"]
    assert pair["tokens"]["vision"] == 2 * path["tokens"]["vision"]


def test_an_entry_that_cannot_be_answered_has_an_error(scenes, model):
    broken, whole = model.ask([b"no picture", scenes[0]])
    assert (broken["answer"], broken["error"]["stage"]) == (None, "decode")
    assert whole["error"] is None


def test_a_table_keeps_its_columns_and_its_order(scenes, model):
    names = [f"scenes/{path.name}" for path in scenes]
    table = pa.table({"id": ["b", "a"], "note": [1, 2], "media": names[:2]})
    answered = model.answer_table(table)
    assert answered.select(table.column_names) == table
    assert [row["answer"] for row in model.ask(scenes[:2])] == answered["answer"].to_pylist()
    assert model.answer_table(table.slice(1))["answer"].to_pylist() == answered["answer"].to_pylist()[1:]
    assert model.answer_table(table.slice(2)).schema == answered.schema
    outside = pa.table({"id": ["x"], "media": ["/etc/hostname"]})
    assert model.answer_table(outside)["error"][0]["kind"].as_py() == "root"
    with pytest.raises(vlbatch.PipelineError, match="the column text would be overwritten"):
        model.answer_table(table.append_column("text", [["x", "y"]]))


@pytest.mark.process
@pytest.mark.slow
def test_a_ray_dataset_is_answered_in_ones_own_pipeline(scenes, model):
    job = vlbatch.load_job(
        NOTEBOOK.parent / "demo" / "detect.yaml",
        {"input.manifest": "scenes", "input.media": "media", "input.id": "id", "answer.max_new_tokens": 128},
    )
    rows = [{"id": path.name, "media": str(path)} for path in scenes]
    with start_small_ray():
        dataset = ray.data.from_items(rows).map_batches(
            vlbatch.AnswerTable, fn_constructor_args=[job], batch_format="pyarrow", concurrency=1
        )
        answers = {row["id"]: row["answer"] for row in dataset.take_all()}
    assert [answers[path.name] for path in scenes] == [row["answer"] for row in model.ask(scenes)]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert len(cells) >= 4
    assert "boxes" in capsys.readouterr().out
