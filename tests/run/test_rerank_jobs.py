"""Jobs that say how well each row fits a query, from manifest to Parquet, and their mistakes."""

from __future__ import annotations

import pytest

from pipeline.errors import JobError

RERANK = {"rerank": {"query": "a red car"}}


def test_the_answer_is_the_probability_that_the_row_fits(workspace):
    workspace.write_manifest([row | {"title": f"car {row['id']}"} for row in workspace.draw_images(3)])
    engine = {"replies": {"car r1": "yes"}, "default": "no"}
    sections = {"prompt": {"user": "{title}"}, "engine": engine}
    assert workspace.run_job(**sections, answer=RERANK) == 0
    rows = {row["id"]: row for row in workspace.read_answers()}
    assert rows["r1"]["answer"] == pytest.approx(0.9)
    assert rows["r0"]["answer"] == rows["r2"]["answer"] == pytest.approx(0.1)
    assert rows["r0"]["confidence"] == pytest.approx(0.9)
    assert rows["r1"]["text"] == "0.9000"
    assert rows["r1"]["tokens"]["output"] == 0
    other = {"rerank": {"query": "a blue car"}}
    assert workspace.run_job(**sections, answer=other, allow_other_questions=True) == 0
    assert len(workspace.read_answers()) == 6


def test_pictures_need_no_words_and_words_no_pictures(workspace):
    workspace.write_manifest(workspace.draw_images(2))
    sections = {"answer": RERANK, "engine": {"replies": {"<Query>:a red car\n<Document>:": "yes"}}}
    assert workspace.run_job(prompt={"user": None}, **sections) == 0
    assert {round(row["answer"], 3) for row in workspace.read_answers()} == {0.9}
    options = {"input": {"media": []}, "prompt": {"user": "{hint}"}, "allow_other_questions": True}
    assert workspace.run_job(**options, **sections) == 0


def test_a_system_message_of_the_job_is_refused(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    with pytest.raises(JobError, match=r"prompt\.system: answer\.rerank has"):
        workspace.run_job(prompt={"user": None, "system": "Be kind."}, answer=RERANK)
