"""Jobs with a model that nothing is known about, behind a server: no checkpoint is named, and none is read."""

from __future__ import annotations

import base64
import io
import json
import re
import threading

import pytest
import yaml
from PIL import Image

from pipeline.__main__ import main
from pipeline.model.engines.http import client
from pipeline.retry_policy import RetryPolicy
from tests.model.engines.chat_server import ChatServer, ServerResponse, complete
from tests.workspace import ROOT

pytestmark = pytest.mark.process

BOXES = {"answer": {"schema": "boxes"}}
POINTS_IN_FRACTIONS = {
    "type": "object",
    "properties": {"point_2d": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
    "required": ["point_2d"],
}


@pytest.fixture(autouse=True)
def shorten_waits(monkeypatch):
    monkeypatch.setattr(client, "RETRY_POLICY", RetryPolicy(first_wait_s=0.01, longest_wait_s=0.01))


@pytest.fixture
def manifest(workspace):
    """A picture of 200x100 and one of 40x20."""
    (workspace.folder / "pics").mkdir()
    for name, size in (("large", (200, 100)), ("small", (40, 20))):
        Image.new("RGB", size, (9, 90, 160)).save(workspace.folder / f"pics/{name}.png")
    workspace.write_manifest([{"id": name, "image": f"pics/{name}.png", "hint": "h"} for name in ("large", "small")])
    return workspace


def build_engine(server, kind="http", **keys):
    return {"kind": kind, **({"url": server.url, "model": "m", **keys} if kind == "http" else keys)}


def run(workspace, server, *arguments, **sections):
    """The exit code of a command over a job that names no weights."""
    job = workspace.build_job(
        **{
            "media": {"max_pixels": 5000},
            **sections,
            "engine": build_engine(server, **sections.get("engine", {})),
        }
    )
    job["model"] = {"family": "generic", **sections.get("model", {})}
    path = workspace.folder / "generic.yaml"
    path.write_text(json.dumps(job))
    return main([arguments[0], str(path), *arguments[1:]])


def test_pictures_go_to_the_server_and_its_answers_and_tokens_come_back(manifest, capsys):
    with ChatServer() as server:
        assert run(manifest, server, "run", "--local") == 0
        sizes = {
            Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size
            for received in server.received
            for url in received.image_urls
        }
    assert sizes == {(100, 50), (40, 20)}
    rows = manifest.read_answers()
    assert [row["text"] for row in rows] == ["you said What is it?"] * 2
    assert [row["tokens"] for row in rows] == [{"vision": 0, "prompt": 7, "output": 3}] * 2
    assert {row["model"] for row in rows} == {"m"}
    assert "model.family: generic: the program that runs the model decides" in capsys.readouterr().err
    out, page = str(manifest.folder / "out"), manifest.folder / "page.html"
    assert main(["status", out]) == 0
    assert main(["report", out, "--to", str(page)]) == 0
    assert "you said What is it?" in page.read_text()


@pytest.mark.parametrize(
    ("coordinates", "written"),
    [
        ("pixels", [50, 0, 100, 25]),
        ("pixels_of_sent", [50, 0, 100, 25]),
        ("pixels_of_original", [100, 0, 200, 50]),
        ("thousandths", [500, 0, 1000, 500]),
    ],
)
def test_boxes_are_mapped_from_the_coordinates_that_the_job_states(manifest, coordinates, written):
    answer = {"boxes": [{"bbox_2d": written, "label": "upper right"}]}
    with ChatServer(lambda received: complete(json.dumps(answer))) as server:
        assert run(manifest, server, "run", "--local", "--limit", "1", model={"coordinates": coordinates}, **BOXES) == 0
        assert server.received[0].body["response_format"]["type"] == "json_schema"
        assert "Write coordinates in" not in server.received[0].text  # the job's own prompt is left as it is
    (row,) = manifest.read_answers()
    assert row["answer"]["boxes"][0]["bbox_2d"] == [100, 0, 200, 50]


def test_a_schema_s_own_prompt_says_how_to_write_boxes(manifest):
    job = {"prompt": {"user": None}, "answer": {"schema": "boxes"}, "model": {"coordinates": "thousandths"}}
    with ChatServer(lambda received: complete('{"boxes": []}')) as server:
        assert run(manifest, server, "run", "--local", **job) == 0
        assert "Write coordinates in thousandths" in server.received[0].text
        assert run(manifest, server, "run", "--local", **job | {"model": {"coordinates": "pixels"}}) == 2
        assert run(manifest, server, "check", **{**job, "answer": {"schema": "caption"}}) == 0


def test_fractions_need_a_schema_that_takes_them(manifest, capsys):
    (manifest.folder / "points.json").write_text(json.dumps(POINTS_IN_FRACTIONS))
    fraction = {"model": {"coordinates": "fraction"}}
    with ChatServer(lambda received: complete('{"point_2d": [0.25, 0.5]}')) as server:
        assert run(manifest, server, "check", **fraction, **BOXES) == 2
        assert "fraction does not fit the schema, which has whole numbers in bbox_2d" in capsys.readouterr().err
        points = {"answer": {"schema": str(manifest.folder / "points.json")}}
        assert run(manifest, server, "run", "--local", **fraction, **points) == 0
    answers = {row["id"]: row["answer"]["point_2d"] for row in manifest.read_answers()}
    assert answers == {"large": [50, 50], "small": [10, 10]}


def test_an_invalid_answer_is_asked_again_and_a_cut_one_is_completed(manifest):
    lock, seen = threading.Lock(), []

    def respond(received):
        with lock:
            seen.append(received)
            if len(seen) == 1:
                return complete("no idea")
            return complete('{"boxes": [{"bbox_2d": [0, 0, 500, 500], "label": "ox!', "length")

    job = {"model": {"coordinates": "thousandths"}, "answer": {"schema": "boxes", "retries": 2}}
    with ChatServer(respond) as server:
        assert run(manifest, server, "run", "--local", "--limit", "1", **job) == 0
    assert len(seen) == 2
    (row,) = manifest.read_answers()
    assert row["answer"]["boxes"] == [{"bbox_2d": [0, 0, 100, 50], "label": "ox!", "image": None}]
    assert (row["attempts"], row["tokens"]["prompt"]) == (2, 7)


def test_a_vllm_server_resizes_pictures_as_its_model_wants(manifest):
    models = ServerResponse(body={"data": [{"id": "m", "owned_by": "vllm"}]})
    with ChatServer(models=models) as server:
        assert run(manifest, server, "run", "--local", answer={"thinking": False}) == 0
        bodies = [received.body for received in server.received]
    assert all("mm_processor_kwargs" not in body for body in bodies)
    assert {body["chat_template_kwargs"]["enable_thinking"] for body in bodies} == {False}


def test_a_plan_estimates_tokens_and_says_so(manifest, capsys):
    with ChatServer() as server:
        engine = {"price": {"input": 2.0, "output": 10.0}}
        assert run(manifest, server, "plan", engine=engine, media={"max_pixels": 28 * 28 * 100}) == 0
        assert server.received == []
    out = capsys.readouterr().out
    assert "vision tokens   28" in out  # 26 and 2
    assert "a token is taken as 28*28 pixels or 4 bytes" in out
    assert "at engine.price, for estimated tokens" in out


def test_vllm_is_planned_without_knowing_the_size_of_the_model(manifest, capsys, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text('{"model_type": "internvl"}')
    job = {"engine": {"kind": "vllm"}, "model": {"weights": str(tmp_path / "foreign")}}
    assert run(manifest, None, "check", **job) == 0
    assert run(manifest, None, "plan", **job) == 0
    out = capsys.readouterr().out
    assert "a token is taken as 28*28 pixels or 4 bytes" in out
    assert "GPU hours" not in out
    job["model"] = {}
    assert run(manifest, None, "check", **job) == 2
    assert "model.weights: vLLM runs the model here, so name its checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (BOXES, "model.coordinates: model.family generic does not tell how this model writes boxes and points"),
        ({"engine": {"model": None}}, "engine.model: name the model, because nothing else tells"),
        ({"engine": {"video": "native"}}, "engine.video: native is for Qwen-VL models"),
        ({"engine": {"send": "uri", "coordinates": "pixels"}}, "say model.coordinates: pixels_of_original"),
        ({"engine": {"kind": "torch"}}, "is for engines that run models of their own"),
        ({"model": {"family": "qwen3_vl"}}, "model.weights: is needed and not given"),
        ({"model": {"family": "generics"}}, "model.family: must be one of qwen2_vl"),
    ],
)
def test_a_job_that_leaves_too_much_unsaid_is_refused(manifest, capsys, sections, message):
    with ChatServer() as server:
        assert run(manifest, server, "check", **sections) == 2
    assert message in capsys.readouterr().err


def test_another_model_of_the_server_is_another_question(manifest, capsys):
    with ChatServer(models=("m", "n")) as server:
        assert run(manifest, server, "run", "--local") == 0
        assert run(manifest, server, "run", "--local", engine={"model": "n"}) == 2
    assert 'engine.model: was "m", is "n"' in capsys.readouterr().err


def read_example(source, server):
    if source == "REFERENCE":
        reference = (ROOT / "REFERENCE.md").read_text(encoding="utf-8")
        (snippet,) = re.findall(r"```yaml\n(model: \{family: generic.*?)```", reference, re.DOTALL)
        shown = "https://llm.acme.com/v1"
        assert shown in snippet
        return yaml.safe_load(snippet.replace(shown, server.url)) | {"answer": {"schema": "boxes"}}
    sections = yaml.safe_load((ROOT / "jobs/endpoint.yaml").read_text(encoding="utf-8"))
    return {name: sections[name] for name in ("prompt", "model", "engine", "media", "answer")}


@pytest.mark.parametrize("source", ["REFERENCE", "jobs/endpoint.yaml"])
def test_the_printed_examples_run_as_they_are(manifest, monkeypatch, source):
    answer = complete('{"boxes": [{"bbox_2d": [500, 0, 1000, 500], "label": "car"}]}')
    with ChatServer(lambda received: answer, models=[]) as server:
        monkeypatch.setenv("LLM_URL", server.url)
        monkeypatch.setenv("LLM_KEY", "k")
        path = manifest.folder / "example.yaml"
        defaults = manifest.build_job()
        path.write_text(yaml.safe_dump({**defaults, **read_example(source, server)}))
        assert main(["run", str(path), "--local"]) == 0
    boxes = {row["id"]: row["answer"]["boxes"][0]["bbox_2d"] for row in manifest.read_answers()}
    assert boxes == {"large": [100, 0, 200, 50], "small": [20, 0, 40, 10]}
