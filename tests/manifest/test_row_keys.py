"""Rows that name the same file ask the same; rows that name different files do not."""

from __future__ import annotations

import json

import pytest

from pipeline.job.spec import Job
from pipeline.manifest.chunks import split_file
from pipeline.manifest.files import list_manifest_files
from pipeline.manifest.row_reader import RowReader

RELATIVE_ROWS = {
    "image": {"image": "a.png"},
    "list": {"image": ["a.png", "s3://scans/b.png"]},
    "struct": {"image": {"path": "a.png"}},
    "messages": {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]},
    "frames": {"messages": [{"role": "user", "content": [{"type": "video", "video": ["a.png", "b.png"]}]}]},
}


@pytest.fixture
def read_questions(workspace):
    """The questions of a manifest, in the order of its files."""

    def read(row, folders=("day1", "day2"), manifest="in/*/m.jsonl"):
        for folder in folders:
            (workspace.folder / "in" / folder).mkdir(parents=True, exist_ok=True)
            (workspace.folder / "in" / folder / "m.jsonl").write_text(json.dumps(row) + "\n")
        urls = [str(workspace.folder / url) for url in ([manifest] if isinstance(manifest, str) else manifest)]
        column = {"messages": "messages", "media": []} if "messages" in row else {"media": ["image"]}
        sections = workspace.build_job(input={"manifest": urls, "id": None, "keep": [], **column})
        sections["prompt"] = {} if "messages" in row else {"user": "What?"}
        job = Job.model_validate(sections)
        files = list_manifest_files(job)
        chunks = [(file, chunk) for file in files for chunk, _ in split_file(job, file, None)]
        return [RowReader(job, file, None).read_rows(chunk.span)[0].question for file, chunk in chunks]

    return read


@pytest.mark.parametrize("row", RELATIVE_ROWS.values(), ids=RELATIVE_ROWS)
@pytest.mark.parametrize("manifest", ["in", "in/*/m.jsonl", ["in/day1", "in/day2/m.jsonl"]])
def test_the_same_relative_path_in_two_folders_is_two_questions(row, manifest, read_questions):
    first, second = read_questions(row, manifest=manifest)
    assert first != second


@pytest.mark.parametrize("row", RELATIVE_ROWS.values(), ids=RELATIVE_ROWS)
def test_a_manifest_in_one_folder_asks_the_same_wherever_it_is(row, read_questions):
    [first] = read_questions(row, manifest="in/day1/m.jsonl")
    assert [first] == read_questions(row, manifest="in/day2")
    assert first == read_questions(row, manifest=["in/day1/*.jsonl", "in/day2/m.jsonl"])[0]


def test_questions_of_existing_outputs_are_what_they_were(read_questions):
    assert read_questions({"image": "a.png"}, manifest="in/day1/m.jsonl") == ["fb99d30429551cd6cf7a3c831af2eb8f"]


@pytest.mark.parametrize("uri", ["s3://scans/a.png", "/scans/a.png", "data:image/png;base64,iVBO"])
def test_a_uri_that_names_one_file_in_all_folders_is_one_question(uri, read_questions):
    first, second = read_questions({"image": uri})
    assert first == second


def test_a_malformed_row_has_a_question(read_questions):
    first, second = read_questions({"image": {"size": 3}})
    assert first == second


@pytest.mark.parametrize("manifest", ["in", ["in/day1/m.jsonl", "in/day2/m.jsonl"]])
def test_pictures_of_the_same_name_in_two_folders_have_an_answer_each(manifest, workspace):
    pictures = [row["image"] for row in workspace.draw_images(2)]
    for folder, picture in zip(("day1", "day2"), pictures, strict=True):
        (workspace.folder / "in" / folder).mkdir(parents=True)
        (workspace.folder / picture).rename(workspace.folder / "in" / folder / "a.jpg")
        (workspace.folder / "in" / folder / "m.jsonl").write_text('{"image": "a.jpg"}\n')
    urls = [str(workspace.folder / url) for url in ([manifest] if isinstance(manifest, str) else manifest)]
    assert workspace.run_job(input={"manifest": urls, "id": None, "keep": []}) == 0
    shown = [row["media"][0]["uri"].partition("/in/")[2] for row in workspace.read_answers()]
    assert sorted(shown) == ["day1/a.jpg", "day2/a.jpg"]
