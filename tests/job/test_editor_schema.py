"""The JSON Schema by which editors complete and check job files says the same as `check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from pipeline.__main__ import main
from pipeline.errors import JobError
from pipeline.job.editor_schema import build_job_schema
from pipeline.job.job_loader import parse_job

JOBS = Path(__file__).parents[2] / "jobs"
MINIMAL = {
    "name": "small",
    "input": {"manifest": "rows.jsonl"},
    "model": {"weights": "builtin:tiny"},
    "output": {"path": "out"},
}
SCHEMA = build_job_schema()


def find_mistakes(job: dict) -> list[str]:
    """The places of the mistakes that an editor would mark."""
    return [error.json_path for error in Draft7Validator(SCHEMA).iter_errors(job)]


def test_it_is_a_schema_and_the_file_beside_the_jobs_is_it(capsys):
    Draft7Validator.check_schema(SCHEMA)
    assert main(["check", "--json-schema"]) == 0
    advice = "python -m pipeline check --json-schema > jobs/job.schema.json"
    assert capsys.readouterr().out == (JOBS / "job.schema.json").read_text(), advice


@pytest.mark.parametrize("path", sorted(JOBS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(JOBS)))
def test_every_job_file_names_it_and_fits_it(path):
    text = path.read_text()
    assert find_mistakes(yaml.safe_load(text)) == []
    [name] = [line.partition("$schema=")[2] for line in text.splitlines() if line.startswith("# yaml-language-server:")]
    assert json.loads((path.parent / name).read_text())["title"] == "A job of vlbatch"


@pytest.mark.parametrize(
    "change",
    [
        {"x-notes": {"anything": 1}},
        {"workers": None},
        {"input": {"manifest": ["a.parquet", "b.parquet"], "media": "uri", "keep": ["a", "b"]}},
        {"media": {"max_pixels": "1280*28*28", "steps": "crop"}, "limits": {"image": {"bytes": "64mib"}}},
        {"media": {"steps": [{"crop": {"left": 0.5}}]}},
        {"answer": {"max_new_tokens": "${BUDGET:-64}", "guided": "${GUIDED:-true}", "thinking": False}},
        {"answer": {"choices": ["red", 1]}},
        {"answer": {"choices": {"red": "a warm color", "blue": None}, "multi": True}},
        {"model": {"weights": "a/b", "quantize": "${BITS:-int4}", "coordinates": "pixels_of_sent"}},
        {"engine": {"slots": 8}},
        {"engine": {"kind": "http", "url": "${URL:-http://127.0.0.1/v1}", "price": {"input": 1}, "body": {"top_k": 1}}},
        {"engine": {"kind": "vllm", "any_argument_of_vllm": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_check_accepts_is_not_marked(change):
    parse_job(yaml.safe_dump(MINIMAL | change), environment={})
    assert find_mistakes(MINIMAL | change) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"answr": {}}, "$"),
        ({"name": "two words"}, "$.name"),
        ({"input": {"media": "uri"}}, "$.input"),
        ({"input": {"manifest": "a", "require": "some"}}, "$.input.require"),
        ({"model": {"weights": "a/b", "family": "qwen4"}}, "$.model.family"),
        ({"answer": {"max_new_tokens": 0}}, "$.answer.max_new_tokens"),
        ({"answer": {"top_p": 2}}, "$.answer.top_p"),
        ({"media": {"max_pixels": "1280x28"}}, "$.media.max_pixels"),
        ({"media": {"steps": ["corp"]}}, "$.media.steps"),
        ({"limits": {"video": {"bytes": "8 gigs"}}}, "$.limits.video.bytes"),
        ({"engine": {"kind": "torches"}}, "$.engine.kind"),
        ({"engine": {"kind": "http"}}, "$.engine"),
        ({"engine": {"kind": "torch", "slot": 8}}, "$.engine"),
        ({"engine": {"url": "http://127.0.0.1/v1"}}, "$.engine"),
        ({"workers": {"generate": {"gpus": "one"}}}, "$.workers.generate.gpus"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_marked_where_it_is(change, place):
    with pytest.raises(JobError):
        parse_job(yaml.safe_dump(MINIMAL | change), environment={})
    [top_place] = find_mistakes(MINIMAL | change)
    errors = list(Draft7Validator(SCHEMA).iter_errors(MINIMAL | change))
    places = {top_place}
    while errors:
        errors = [inner for error in errors for inner in error.context or ()]
        places |= {error.json_path for error in errors}
    assert place in places
    assert all(place.startswith(other) or other.startswith(place) for other in places)
