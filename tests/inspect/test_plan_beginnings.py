"""A plan counts what rows have in common once, as our engine does."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.inspect.plan import plan_job
from pipeline.inspect.plan.gpus import GPUS, TokenLoad, compute_ideal_seconds
from pipeline.inspect.plan.shared_beginnings import REMEMBERED_ROWS, BeginningCounter
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.model.engines.base import get_engine_type
from pipeline.prepare import Preparer
from pipeline.run.preflight import build_run_context
from pipeline.run.resume import split_in_process

pytestmark = pytest.mark.process

QUESTIONS = ("What is left of it?", "What color is it?", "How many are there?", "Is it large?")
TORCH = {"kind": "torch", "slots": 2, "kv_tokens": 4000}


@pytest.fixture
def questions(workspace):
    """Four questions about each of three pictures, behind an example with a picture. Returns the job's sections."""
    pictures = workspace.draw_images(3)
    rows = [
        {**picture, "id": f"{picture['id']}-{number}", "hint": question}
        for picture in pictures
        for number, question in enumerate(QUESTIONS)
    ]
    workspace.write_manifest(rows)
    Image.new("RGB", (84, 84), "red").save(workspace.folder / "red.png")
    example = {
        "media": str(workspace.folder / "red.png"),
        "user": "What is it?",
        "answer": "A red square, and nothing else is in it.",
    }
    prompt = {"user": "{hint}", "system": "Answer in one word and add nothing to it.", "examples": [example]}
    return {"prompt": prompt, "engine": TORCH, "answer": {"max_new_tokens": 4}, "output": {"chunk_rows": 12}}


def plan(workspace, sections):
    return plan_job(Job.model_validate(workspace.build_job(**sections)), sample_rows=None)


def test_the_plan_counts_what_the_engine_copies(workspace, questions):
    job = Job.model_validate(workspace.build_job(**questions))
    files = list_manifest_files(job)
    context = build_run_context(job, files)
    ((chunk, _),) = split_in_process(context.job, files, context.schema_prompt)
    with closing(Preparer(context)) as preparer:
        requests = [request for _, request in preparer.prepare_chunk(chunk)]
    with closing(get_engine_type(job).open(context.pinned_job)) as engine:
        replies = []
        for request in requests:  # one after another, so that what is computed is there
            engine.submit(request)
            while not (done := engine.step()):
                pass
            replies += done
        copied = engine.metrics()["tokens_copied"]
    assert len(replies) == 12
    survey = plan(workspace, questions).survey
    assert survey.copied == copied > 0
    own_picture = requests[0].vision_tokens // 2
    assert survey.copied_vision >= 9 * own_picture + 11 * own_picture  # of rows about the same picture, of examples
    assert plan(workspace, {**questions, "engine": {**TORCH, "reuse_prefixes": False}}).survey.copied == 0


def test_the_plan_says_what_is_computed_once(workspace, questions, capsys):
    assert main(["plan", str(workspace.write_job_file(**questions))]) == 0
    assert "tokens of prompts, " in capsys.readouterr().out
    assert main(["plan", str(workspace.write_job_file(**{**questions, "engine": {}}))]) == 0
    assert "computed once" not in capsys.readouterr().out


def test_copied_tokens_take_no_time(workspace, questions):
    said = plan(workspace, questions)
    load = TokenLoad(10, 4000, 10_000, 0, 1000)
    half = replace(load, copied=5000, copied_vision=2000)
    whole_s, half_s = (compute_ideal_seconds(GPUS["L4"], part, said.model, 1)[0] for part in (load, half))
    assert half_s == pytest.approx(whole_s / 2)
    assert said.load.copied == said.survey.copied


def test_rows_that_are_far_apart_share_nothing(workspace, questions):
    job = Job.model_validate(workspace.build_job(**questions))
    files = list_manifest_files(job)
    context = build_run_context(job, files)
    ((chunk, _),) = split_in_process(context.job, files, context.schema_prompt)
    with closing(Preparer(context)) as preparer:
        one, _, _, _, other, *_ = (request for _, request in preparer.prepare_chunk(chunk))
        counter = BeginningCounter(preparer.family)
    shared = [counter.count_copied(request)[0] for request in (one, one, other, one)]
    assert shared[0] == 0
    assert shared[1] == shared[3] > shared[2] > 0
    for number in range(REMEMBERED_ROWS):
        counter.count_copied(replace(one, input_ids=one.input_ids + number + 1, turns=()))
    assert counter.count_copied(one)[0] == 0
    assert len(counter.rows) == REMEMBERED_ROWS
