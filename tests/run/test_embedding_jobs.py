"""Jobs whose answer is a vector, from manifest to Parquet, and their mistakes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import AnswerError, JobError
from pipeline.job.embedding_section import EmbeddingSection
from pipeline.job.job_loader import parse_job
from pipeline.output.answer.embedding_answer import read_embedding

LANGUAGE = {"embedding": {"from": "language", "dim": 16}}
QUIET = {"prompt": {"user": None}}


def read_column(workspace) -> pa.ChunkedArray:
    files = sorted((workspace.folder / "out/data").glob("fp=*/*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files]).sort_by("id")["embedding"]


def to_array(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_vector_is_a_list_of_fixed_size_and_of_length_one(workspace, dtype):
    workspace.write_manifest(workspace.draw_images(6))
    answer = {"embedding": {"from": "language", "dim": 16, "dtype": dtype}}
    assert workspace.run_job(**QUIET, answer=answer, engine={"default": "{id}"}) == 0
    column = read_column(workspace)
    assert column.type == pa.list_(getattr(pa, dtype)(), 16)
    np.testing.assert_allclose(np.linalg.norm(to_array(column), axis=1), 1, atol=1e-3)
    assert len(np.unique(to_array(column), axis=0)) == 6
    row = workspace.read_answers()[0]
    assert row["text"] == ""
    assert "answer" not in row
    assert row["tokens"]["output"] == 0 < row["tokens"]["vision"] < row["tokens"]["prompt"]


def test_without_dim_a_vector_is_as_long_as_the_model_makes_it(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    assert workspace.run_job(**QUIET, answer={"embedding": {"from": "vision", "normalize": False}}) == 0
    column = read_column(workspace)
    assert column.type.list_size == 128
    assert np.linalg.norm(to_array(column)) > 2
    tokens = workspace.read_answers()[0]["tokens"]
    assert tokens["prompt"] == tokens["vision"] > 0


def test_the_instruction_is_the_system_message_and_ends_with_a_full_stop(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    engine = {"default": "{prompt}"}
    assert workspace.run_job(**QUIET, answer=LANGUAGE, engine=engine) == 0
    for text in ("Represent the user's input", "Represent the user's input."):
        answer = {"embedding": LANGUAGE["embedding"] | {"instruction": text}}
        assert workspace.run_job(**QUIET, answer=answer, engine=engine, allow_other_questions=True) == 0
    answer = {"embedding": LANGUAGE["embedding"] | {"instruction": "Find it"}}
    assert workspace.run_job(**QUIET, answer=answer, engine=engine, allow_other_questions=True) == 0
    assert len(np.unique(to_array(read_column(workspace)), axis=0)) == 2


def test_rows_may_be_text_or_pictures_or_both(workspace):
    pictures = workspace.draw_images(2)
    rows = [
        pictures[0] | {"title": "a"},
        pictures[1] | {"title": ""},
        {"id": "text", "image": None, "hint": "h", "title": "a"},
        {"id": "nothing", "image": None, "hint": "h", "title": ""},
    ]
    workspace.write_manifest(rows)
    sections = {"prompt": {"user": "{title}"}, "answer": LANGUAGE}
    assert workspace.run_job(**sections, input={"require": "any"}) == 3
    assert workspace.list_answered_ids() == ["r0", "r1", "text"]
    (letter,) = workspace.read_dead_letters()
    assert (letter["id"], letter["kind"]) == ("nothing", "no_prompt")


def test_a_missing_picture_is_an_error_unless_the_job_allows_it(workspace):
    workspace.write_manifest([{"id": "text", "image": None, "hint": "h", "title": "a"}, *workspace.draw_images(1)])
    assert workspace.run_job(prompt={"user": "{title}"}, answer=LANGUAGE) == 3
    assert [letter["kind"] for letter in workspace.read_dead_letters()] == ["no_media"]


def test_a_manifest_of_text_needs_no_media(workspace):
    workspace.write_manifest([{"id": name, "hint": "h", "title": f"the {name}"} for name in ("a", "b")])
    assert workspace.run_job(input={"media": []}, prompt={"user": "{title}"}, answer=LANGUAGE) == 0
    assert workspace.list_answered_ids() == ["a", "b"]


def test_a_vision_job_says_which_rows_have_nothing_to_see(workspace):
    rows = [{"id": "chat", "hint": "h", "messages": '[{"role": "user", "content": "hello"}]'}]
    workspace.write_manifest(rows)
    answer = {"embedding": {"from": "vision"}}
    assert workspace.run_job(input={"media": []}, **QUIET, answer=answer) == 3
    assert workspace.read_dead_letters()[0]["kind"] == "no_media"


def test_engines_that_cannot_do_it_are_named_and_so_are_those_that_can(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    engine = {"kind": "http", "url": "http://127.0.0.1:9"}
    with pytest.raises(JobError, match=r"answer.embedding: engine http cannot do this; it can be done by torch, scrip"):
        workspace.run_job(**QUIET, answer={"embedding": {"from": "vision"}}, engine=engine)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"answer": {"embedding": {"from": "vision"}}, "engine": {"kind": "vllm"}},
            r"engine vllm cannot do this \(vLLM makes no vectors of a vision tower alone\)",
        ),
        ({"answer": {"embedding": {"from": "language", "dim": 4096}}}, "4096 is more than the 128 numbers"),
        ({"answer": {"embedding": {"from": "vision"}}, "prompt": {"user": "What?"}}, "leave prompt.user out"),
        (
            {"answer": {"embedding": {"from": "language", "instruction": "x"}}, "prompt": {"system": "y", "user": "z"}},
            "leave one of them out",
        ),
        (
            {
                "answer": {"embedding": {"from": "language"}},
                "model": {"weights": "", "family": "generic"},
                "engine": {"kind": "http", "url": "http://127.0.0.1:9", "model": "m"},
            },
            "answer.embedding.dim: nothing here tells",
        ),
        ({"answer": LANGUAGE, "input": {"keep": ["embedding"]}}, "a column embedding of its own"),
    ],
)
def test_jobs_that_cannot_run_are_refused(workspace, sections, problem):
    workspace.write_manifest([row | {"embedding": 1} for row in workspace.draw_images(1)])
    with pytest.raises(JobError, match=problem):
        workspace.run_job(**({"prompt": {"user": None}} | sections))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("embedding: {}", "from"),
        ("embedding: {from: both}", "from"),
        ("embedding: {from: vision, pool: last}", "have no last one"),
        ("embedding: {from: vision, instruction: x}", "reads no text"),
        ("embedding: {from: language}, schema: caption", "`embedding` and `schema` both say"),
        ("embedding: {from: language}, choices: [a, b]", "`embedding` and `choices` both say"),
        ("embedding: {from: language}, thinking: {max_tokens: 5}", "`embedding` and `thinking` both say"),
    ],
)
def test_mistakes_are_refused_with_a_reason(answer, problem):
    job = "name: t\ninput: {manifest: m, media: uri}\nmodel: {weights: builtin:tiny}\noutput: {path: out}\n"
    with pytest.raises(JobError) as caught:
        parse_job(job + f"answer: {{{answer}}}\n", environment={})
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("vector", "settings", "problem"),
    [
        (None, {}, "has 0 numbers"),
        ([1.0], {}, "has 1 numbers"),
        ([0.0, 0.0], {}, "is zero"),
        ([float("nan"), 1.0], {}, "no number"),
        ([1e6, 1.0], {"normalize": False, "dtype": "float16"}, "too large for float16"),
    ],
)
def test_vectors_that_mean_nothing_are_error_rows(vector, settings, problem):
    given = None if vector is None else np.array(vector, np.float32)
    with pytest.raises(AnswerError, match=problem):
        read_embedding(given, EmbeddingSection(source="language", **settings), 2)
