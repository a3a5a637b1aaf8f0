"""`export --calibrated` and `answer.review_below` use the newest score of the question."""

from __future__ import annotations

import json
import math

import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.inspect.score import score_output
from pipeline.model.engines.scripted import ScriptedEngine
from pipeline.types import TokenLogprob

pytestmark = pytest.mark.process

HINTS = ("a cat", "a dog")
REPLIES = {text: json.dumps({"caption": text, "tags": [], "language": "en"}) for text in HINTS}
SECTIONS = {
    "prompt": {"user": "{hint}"},
    "answer": {"schema": "caption"},
    "engine": {"replies": REPLIES},
    "input": {"keep": ["hint", "truth"]},
}


@pytest.fixture
def sure_rows(workspace, monkeypatch):
    """Captions that are wrong for cats, of which the engine is sure with 0.9, and right for dogs, with 0.95."""
    build_reply = ScriptedEngine.build_reply

    def build_sure_reply(engine, request):
        reply = build_reply(engine, request)
        sure = 0.9 if "cat" in reply.text else 0.95
        object.__setattr__(reply, "token_logprobs", (TokenLogprob(len(reply.text), math.log(sure)),))
        return reply

    monkeypatch.setattr(ScriptedEngine, "build_reply", build_sure_reply)
    write_rows(workspace, 44)
    assert workspace.run_job(**SECTIONS) == 0
    return workspace


def write_rows(workspace, count):
    truths = [json.dumps({"caption": text}) for text in ("an owl", "a dog")]
    rows = workspace.draw_images(count)
    workspace.write_manifest([{**row, "hint": HINTS[n % 2], "truth": truths[n % 2]} for n, row in enumerate(rows)])


def export(workspace, target, *options):
    job = workspace.write_job_file(**SECTIONS)
    return main(["export", str(job), str(workspace.folder / target), *options])


def read_confidences(workspace, target):
    rows = [row for path in (workspace.folder / target).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {(row["hint"], round(row["confidence"]["caption"], 3)) for row in rows}


def test_confidences_are_exported_as_the_newest_score_calibrates_them(sure_rows, capsys):
    out, as_said = str(sure_rows.folder / "out"), {("a cat", 0.9), ("a dog", 0.95)}
    assert export(sure_rows, "early", "--calibrated") == 2
    assert "python -m pipeline score OUTPUT --truth WHERE" in capsys.readouterr().err
    score_output(out, "truth")
    assert export(sure_rows, "plain") == export(sure_rows, "calibrated", "--calibrated") == 0
    assert read_confidences(sure_rows, "plain") == as_said
    assert read_confidences(sure_rows, "calibrated") == {("a cat", 0.0), ("a dog", 1.0)}
    assert export(sure_rows, "calibrated", "--calibrated") == 0  # it goes on
    for target, options in (("plain", ["--calibrated"]), ("calibrated", [])):
        assert export(sure_rows, target, *options) == 2
        assert "holds another export (calibration: was" in capsys.readouterr().err
    lines = [json.dumps({"id": f"r{number}", "caption": HINTS[number % 2]}) for number in range(44)]
    (sure_rows.folder / "other.jsonl").write_text("\n".join(lines))
    score_output(out, str(sure_rows.folder / "other.jsonl"))  # all are right
    assert export(sure_rows, "calibrated", "--calibrated") == 2
    assert export(sure_rows, "new", "--calibrated") == 0
    assert read_confidences(sure_rows, "new") == {("a cat", 1.0), ("a dog", 1.0)}


def test_rows_are_flagged_by_calibrated_confidences_once_there_is_a_score(sure_rows):
    sections = {**SECTIONS, "answer": {"schema": "caption", "review_below": 0.5}}
    write_rows(sure_rows, 46)
    sure_rows.run_job(**sections)
    score_output(str(sure_rows.folder / "out"), "truth")
    write_rows(sure_rows, 48)
    sure_rows.run_job(**sections)
    assert any("the newest score calibrates the confidences of caption" in line for line in sure_rows.messages)
    assert [row["id"] for row in sure_rows.read_answers() if "review" in row["flags"]] == ["r46"]
    assert {round(row["confidence"]["caption"], 3) for row in sure_rows.read_answers()} == {0.9, 0.95}  # as it was said
