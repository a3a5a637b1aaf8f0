"""Jobs with examples, which stand before each row: from the job file to the answers, and their mistakes."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from pipeline.context import RunContext
from pipeline.errors import JobError
from pipeline.job.job_loader import parse_job
from pipeline.job.spec import Job
from pipeline.manifest.chunks import split_file
from pipeline.manifest.files import list_manifest_files
from pipeline.prepare import Preparer
from pipeline.run.preflight import build_run_context, find_job_problems
from pipeline.types import Request, Turn


@pytest.fixture
def shop(workspace):
    """Two rows with pictures, and pictures for examples."""
    workspace.write_manifest(workspace.draw_images(2))
    for name, color in (("cat", "white"), ("dog", "black")):
        Image.new("RGB", (56, 56), color).save(workspace.folder / f"{name}.png")
    return workspace


def name_examples(shop, **changes):
    cat = {"media": [str(shop.folder / "cat.png")], "user": "And this?", "answer": "A cat."}
    dog = {"media": str(shop.folder / "dog.png"), "answer": {"animal": "dog"}}
    return [cat | changes, dog]


def build_context(shop, examples, **sections) -> RunContext:
    job = Job.model_validate(shop.build_job(prompt={"examples": examples}, **sections))
    return build_run_context(job, list_manifest_files(job))


def prepare_all(context: RunContext) -> list[Request]:
    (file,) = list_manifest_files(context.job)
    with closing(Preparer(context)) as preparer:
        chunks = [chunk for chunk, _ in split_file(context.job, file, context.schema_prompt)]
        requests = [request for chunk in chunks for _, request in preparer.prepare_chunk(chunk)]
    assert all(isinstance(request, Request) for request in requests)
    return requests


def test_examples_are_earlier_turns_and_prepared_once(shop):
    requests = prepare_all(build_context(shop, name_examples(shop)))
    one, other = requests
    assert [turn.role for turn in one.turns] == ["user", "assistant", "user", "assistant", "user"]
    texts = [[part for part in turn.parts if isinstance(part, str)] for turn in one.turns]
    assert texts == [["And this?"], ["A cat."], ["What is it?"], ['{"animal": "dog"}'], ["What is it?"]]
    assert [int(clip.pixels.mean()) for clip in one.clips[:2]] == [255, 0]
    assert [first is second for first, second in zip(one.clips, other.clips, strict=True)] == [True, True, False]
    assert one.row_clips == one.clips[2:]
    context = build_context(shop, [])
    with closing(Preparer(context)) as preparer:
        chat = (*one.turns[:4], *prepare_all(context)[0].turns)
        assert np.array_equal(preparer.family.encode_turns(chat).input_ids, one.input_ids)


def test_the_output_tells_of_the_pictures_of_the_row_alone(shop):
    assert shop.run_job(prompt={"examples": name_examples(shop)}) == 0
    with_examples = shop.read_answers()
    names = [[media["uri"].rpartition("/")[2] for media in row["media"]] for row in with_examples]
    assert names == [["0.png"], ["1.png"]]
    assert shop.run_job(prompt={"examples": []}, output={"path": str(shop.folder / "plain")}) == 0
    plain = shop.read_answers("plain")
    for row, other in zip(with_examples, plain, strict=True):
        assert row["tokens"]["prompt"] > 8 + other["tokens"]["prompt"]


def test_an_example_asks_what_the_schema_asks(shop):
    sections = {"answer": {"schema": "caption"}}
    job = Job.model_validate(shop.build_job(**sections))
    prompt = job.prompt.model_copy(update={"user": None, "examples": ()})
    job = job.model_copy(update={"prompt": prompt})
    plain = build_run_context(job, list_manifest_files(job))
    examples = build_context(shop, name_examples(shop)).job.prompt.examples
    job = job.model_copy(update={"prompt": prompt.model_copy(update={"examples": examples})})
    turns = prepare_all(build_run_context(job, list_manifest_files(job)))[0].turns
    assert turns[2].parts[-1] == turns[4].parts[-1] == plain.schema_prompt


def test_the_system_message_stays_first(shop):
    context = build_context(shop, name_examples(shop))
    job = context.job.model_copy(update={"prompt": context.job.prompt.model_copy(update={"system": "Be brief."})})
    request = prepare_all(build_run_context(job, list_manifest_files(job)))[0]
    assert [turn.role for turn in request.turns][:2] == ["system", "user"]
    assert request.turns[0] == Turn("system", ("Be brief.",))


def test_examples_are_a_part_of_the_question_by_their_content(shop):
    first = build_context(shop, name_examples(shop)).fingerprint
    (shop.folder / "copy.png").write_bytes((shop.folder / "cat.png").read_bytes())
    assert build_context(shop, name_examples(shop, media=[str(shop.folder / "copy.png")])).fingerprint == first
    (shop.folder / "cat.png").write_bytes((shop.folder / "copy.png").read_bytes()[::-1])  # of the same length
    others = [name_examples(shop), name_examples(shop, answer="Cat."), name_examples(shop)[::-1], []]
    assert len({first, *(build_context(shop, examples).fingerprint for examples in others)}) == 5
    assert "examples" not in build_context(shop, []).fingerprint_inputs["prompt"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"media": "no.png"}, r"prompt\.examples\.0\.media: no\.png cannot be read: No such file"),
        ({"user": None}, r"prompt\.examples\.0\.user: the question of the rows depends on the row"),
    ],
)
def test_what_cannot_be_read_or_asked_stops_the_job(shop, changes, problem):
    examples = name_examples(shop, **changes)[:1]
    job = Job.model_validate(shop.build_job(prompt={"user": "Hint {hint}: what?", "examples": examples}))
    files = list_manifest_files(job)
    with pytest.raises(JobError, match=problem):
        build_run_context(job, files)


def test_examples_that_leave_no_room_or_are_no_pictures_are_refused_by_check(shop):
    context = build_context(shop, name_examples(shop, user="why " * 3000), model={"context": {"max_length": 900}})
    (problem,) = find_job_problems(context, list_manifest_files(context.job))
    assert problem.startswith("prompt.examples: with them alone, the row needs ")
    (shop.folder / "cat.png").write_bytes(b"no picture")
    context = build_context(shop, name_examples(shop))
    with pytest.raises(JobError, match=r"prompt\.examples: "):
        find_job_problems(context, list_manifest_files(context.job))


def test_an_answer_that_does_not_fit_the_schema_is_refused_by_check(shop):
    fitting = {"caption": "A dog.", "tags": [], "language": "en"}
    answers = ["A cat.", {**fitting, "language": "English"}, fitting]
    examples = [{"user": "?", "answer": answer} for answer in answers]
    context = build_context(shop, examples, answer={"schema": "caption"})
    text, misfit = find_job_problems(context, list_manifest_files(context.job))
    assert text == "prompt.examples.0.answer is not JSON, which answer.schema asks for"
    assert misfit.startswith("prompt.examples.1.answer does not fit answer.schema: ")
    assert "language" in misfit


def test_a_mistake_in_an_example_names_its_line():
    text = "name: a\ninput: {manifest: m}\noutput: {path: o}\nmodel: {weights: w}\n"
    text += "prompt:\n  examples:\n  - {user: a}\n  - {user: a, anser: b}\n"
    with pytest.raises(JobError) as caught:
        parse_job(text, source_name="job.yaml")
    assert "job.yaml:7: prompt.examples.0.answer: is needed" in str(caught.value)
    assert "job.yaml:8: prompt.examples.1.anser" in str(caught.value)
    assert "Did you mean 'answer'?" in str(caught.value)
