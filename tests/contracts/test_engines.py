"""The contract of every engine in the registry, and a toy engine that is added through the registry alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.job.key_types import define_key
from pipeline.job.spec import EngineSettings, Job
from pipeline.model import family_loader
from pipeline.model.engine_thread import EngineThread, generate_replies
from pipeline.model.engines.base import Engine, EngineType, get_engine_type
from pipeline.registry import ENGINES, import_object
from pipeline.types import Clip, Continuation, Failure, Reply, Request, Sampling, Turn
from tests.model.engines.chat_server import ChatServer, ReceivedRequest, ServerResponse, complete, refuse

pytestmark = pytest.mark.process

WIDE = {  # heads that vLLM's CPU kernels have
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "torch": {"slots": 2},
    "scripted": {"slots": 2, "delay_ms": 20},
    "http": {"concurrency": 2},
    "vllm": {"max_num_seqs": 2, "enforce_eager": True, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.3},
}
LONGEST = 512
SCHEMA = '{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"array","items":{"type":"integer"}}},'
SCHEMA += '"required":["a","b"],"additionalProperties":false}'
ASK_ABOUT_JOB = """
import json, sys
from pipeline.job.spec import Job
from pipeline.model.engines.base import get_engine_type

job = Job.model_validate(json.loads(sys.argv[1]))
engine_type = get_engine_type(job)
engine_type.find_problems(job), engine_type.find_warnings(job)
assert engine_type.count_slots(job) > 0
assert not {"torch", "vllm", "transformers", "aiohttp", "ray"} & set(sys.modules), "every command pays for it"
"""


def answer_as_small_model(received: ReceivedRequest) -> ServerResponse:
    """Refuse prompts that are too long for the context."""
    if len(received.text) > 400:
        return refuse(400, "the maximum context length is 512 tokens")
    response = complete(f"ah, {received.text}")
    if "top_logprobs" in received.body:
        told = [{"token": token, "logprob": -2.0} for token in ("red", "blue", "light")]
        response.body["choices"][0]["logprobs"] = {"content": [{"token": "red", "logprob": -2.0, "top_logprobs": told}]}
    return response


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("w"), "qwen2_5_vl", text_config=WIDE, vision_config={"out_hidden_size": 128}
    )


@pytest.fixture(scope="module")
def family(folder: Path) -> Any:
    return family_loader.load_family(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(answer_as_small_model) as server:
        yield server


def list_kinds(kinds: Iterable[str]) -> list[Any]:
    return [pytest.param(kind, marks=pytest.mark.vllm if kind == "vllm" else ()) for kind in kinds]


def list_kinds_that_can(ability: str) -> list[Any]:
    return list_kinds(kind for kind, location in ENGINES.items() if ability in import_object(location).abilities)


@pytest.fixture(scope="module", params=list_kinds(ENGINES))
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "vllm" and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: make test-vllm")
    return str(request.param)


@pytest.fixture(scope="module")
def job(kind: str, folder: Path, server: ChatServer) -> Job:
    return build_job(kind, folder, server.url)


@pytest.fixture(scope="module")
def engine_type(job: Job) -> EngineType:
    return get_engine_type(job)


@pytest.fixture(scope="module")
def engine(job: Job, engine_type: EngineType) -> Iterator[Engine]:
    opened = engine_type.open(job)
    yield opened
    opened.close()


def build_job(kind: str, folder: Path, url: str) -> Job:
    sections = {
        "name": "contract",
        "input": {"manifest": "rows.parquet"},
        "model": {"weights": str(folder), "context": {"max_length": LONGEST}},
        "engine": {"kind": kind, **SETTINGS[kind], **({"url": url} if kind == "http" else {})},
        "output": {"path": "out"},
    }
    return Job.model_validate(sections)


def build_request(family: Any, name: str, *parts: str | Clip, schema: str | None = None, **sampling: Any) -> Request:
    turns = (Turn("user", parts),)
    encoded = family.encode_turns(turns)
    sampling = Sampling(**{"max_new_tokens": 6, **sampling})
    return Request(name, turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, sampling, schema)


@pytest.fixture
def requests(family: Any) -> list[Request]:
    return [build_request(family, str(number), f"question {number}", max_new_tokens=2 + number) for number in range(7)]


def test_the_registry_and_the_settings_agree_on_the_kind(kind, engine_type):
    assert issubclass(engine_type.Settings, EngineSettings)
    assert get_args(engine_type.Settings.model_fields["kind"].annotation) == (kind,)


def test_a_stored_job_is_read_back_equal(job, engine_type):
    assert type(job.engine) is engine_type.Settings
    assert Job.model_validate(job.model_dump(by_alias=True)) == job
    assert Job.model_validate_json(job.model_dump_json(by_alias=True)) == job


def test_questions_about_a_job_are_answered_without_importing_the_engine(job):
    done = subprocess.run(
        [sys.executable, "-c", ASK_ABOUT_JOB, job.model_dump_json(by_alias=True)], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_it_knows_its_slots_before_it_starts(job, engine_type, engine):
    assert engine_type.count_slots(job) == engine.metrics()["slots"] == 2


def test_it_knows_the_conventions_of_its_answers(job, engine_type, family):
    assert engine_type.get_coordinate_system(job, family) == family.coordinates
    assert engine_type.get_time_origin(job, family) in ("clip", "source")


def test_an_idle_engine_has_room_and_nothing_to_do(engine):
    assert engine.has_room()
    assert engine.step() == []


def test_every_request_comes_back_exactly_once(engine, requests):
    answers = list(generate_replies(engine, requests))
    assert sorted(answer.id for answer in answers) == [request.id for request in requests]
    assert all(isinstance(answer, Reply) for answer in answers)
    assert engine.step() == []


def test_the_same_requests_get_the_same_answers(engine, requests):
    first, second = ({answer.id: answer.text for answer in generate_replies(engine, requests)} for _ in range(2))
    assert first == second


def test_a_request_with_a_picture_is_answered(engine, family):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 56, 84), dtype=np.uint8)
    (answer,) = generate_replies(engine, [build_request(family, "p", Clip("image", pixels, (84, 56)), "what is it?")])
    assert isinstance(answer, Reply)


def test_a_reply_has_a_finish_reason_and_a_token_count(engine, family):
    (reply,) = generate_replies(engine, [build_request(family, "r", "words", max_new_tokens=5)])
    assert reply.finish in ("stop", "length")
    assert 0 < reply.output_tokens <= 5


@pytest.mark.parametrize(
    "kind", list_kinds(sorted(ENGINES.keys() - {"scripted"})), indirect=True
)  # that takes any length
def test_a_prompt_that_is_too_long_fails_alone(engine, family):
    rows = [
        build_request(family, "a", "short"),
        build_request(family, "long", "word " * 200),
        build_request(family, "b", "short"),
    ]
    answers = {answer.id: answer for answer in generate_replies(engine, rows)}
    assert isinstance(answers["a"], Reply)
    assert isinstance(answers["b"], Reply)
    assert isinstance(answers["long"], Failure)
    assert (answers["long"].stage, answers["long"].kind) == ("generate", "too_long")


@pytest.mark.parametrize("kind", list_kinds_that_can("guidance"), indirect=True)
def test_with_guidance_an_answer_fits_its_schema_and_budget(engine, family):
    rows = [
        build_request(family, str(budget), "say", schema=SCHEMA, max_new_tokens=budget) for budget in (12, 15, 20, 30)
    ]
    for answer in generate_replies(engine, rows):
        assert json.loads(answer.text).keys() == {"a", "b"}


@pytest.mark.parametrize("kind", list_kinds_that_can("confidence"), indirect=True)
def test_with_confidence_a_reply_has_a_log_probability(engine, requests):
    assert all(answer.logprob <= 0 for answer in generate_replies(engine, requests))


@pytest.mark.parametrize("kind", list_kinds_that_can("confidence"), indirect=True)
def test_with_confidence_every_token_has_its_place_in_the_text(engine, requests):
    for answer in generate_replies(engine, (replace(request, wants_confidence=True) for request in requests)):
        ends = [token.end for token in answer.token_logprobs]
        assert ends == sorted(ends)
        assert ends[-1] == len(answer.text)
        logprobs = [token.logprob for token in answer.token_logprobs if token.logprob is not None]
        assert answer.logprob == pytest.approx(fmean(logprobs), abs=1e-5)


@pytest.mark.parametrize("kind", list_kinds_that_can("choices"), indirect=True)
def test_with_choices_every_continuation_has_a_log_probability(engine, family):
    request = build_request(family, "c", "which one?", max_new_tokens=0)
    texts = ["red", "blue", "light green"]
    tokens = [tuple(family.tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    parts = tuple(Continuation(part, 0, text) for part, text in zip(tokens, texts, strict=True))
    (reply,) = generate_replies(engine, [replace(request, continuations=parts)])
    assert reply.text == ""
    assert len(reply.continuation_logprobs) == 3
    assert all(logprob < 0 for logprob in reply.continuation_logprobs)


def test_a_full_engine_has_room_again_after_some_steps(engine, requests):
    left = len(requests)
    for request in requests:
        for _ in range(1000):
            if engine.has_room():
                break
            left -= len(engine.step())
        assert engine.has_room()
        engine.submit(request)
    while left:
        left -= len(engine.step())


def test_metrics_are_numbers_by_name(engine, requests):
    before = engine.metrics()["rows"]
    list(generate_replies(engine, requests))
    metrics = engine.metrics()
    assert metrics["rows"] == before + len(requests)
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_callers_get_their_own_replies_in_order_and_closing_ends_their_wait(job, engine_type, family, requests):
    with closing(EngineThread(engine_type.open(job))) as thread:
        first, second = thread.answer_requests(requests[:4]), thread.answer_requests(requests[2:])
        assert [answer.id for answer in first] == ["0", "1", "2", "3"]
        assert [answer.id for answer in second] == ["2", "3", "4", "5", "6"]
        long = build_request(family, "", "a long one", max_new_tokens=400)
        waiting = [thread.submit_request(replace(long, id=f"late {number}")) for number in range(200)]
    assert isinstance(waiting[-1].exception(timeout=20), RuntimeError)
    assert all(future.done() for future in waiting)
    assert isinstance(thread.submit_request(requests[0]).exception(timeout=20), RuntimeError)


class ToySettings(EngineSettings):
    kind: Literal["toy"] = define_key("answers every request with one word", affects_answers=False)
    word: str = define_key("the answer", "yes")


class ToyEngine:
    def __init__(self, word: str):
        self.word = word
        self.waiting: deque[Request] = deque()

    def has_room(self) -> bool:
        return len(self.waiting) < 2

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def step(self) -> list[Reply | Failure]:
        return [Reply(self.waiting.popleft().id, self.word, output_tokens=1)] if self.waiting else []

    def metrics(self) -> Mapping[str, float]:
        return {"slots": 2}

    def close(self) -> None:
        pass


class ToyEngineType(EngineType):
    Settings = ToySettings
    runs_model_here = False

    def open(self, job: Job) -> Engine:
        return ToyEngine(job.engine.word)

    def find_problems(self, job: Job) -> list[str]:
        return ["engine.word: nobody says that"] if job.engine.word == "no" else []

    def find_warnings(self, job: Job) -> list[str]:
        return ["engine.kind: this is a toy"]


@pytest.fixture
def toy_job(monkeypatch, workspace) -> str:
    """A job file for an engine that only the registry knows."""
    monkeypatch.setitem(ENGINES, "toy", f"{__name__}:ToyEngineType")
    workspace.write_manifest(workspace.draw_images(3))
    return str(workspace.write_job_file(engine={"kind": "toy"}))


def test_an_engine_is_added_by_one_line_in_the_registry(toy_job, workspace, capsys):
    assert main(["check", toy_job]) == 0
    assert "engine.kind: this is a toy" in capsys.readouterr().out
    assert main(["plan", toy_job]) == 0
    assert "does not fit" not in capsys.readouterr().out
    assert main(["run", toy_job, "--local"]) == 0
    assert [row["text"] for row in workspace.read_answers()] == ["yes"] * 3


def test_the_keys_and_problems_of_an_added_engine_are_checked_and_explained(toy_job, capsys):
    assert main(["check", toy_job, "--set", "engine.wort=x"]) == 2
    assert "engine.wort: there is no such key. Did you mean 'word'?" in capsys.readouterr().err
    assert main(["check", toy_job, "--set", "engine.word=no"]) == 2
    assert "engine.word: nobody says that" in capsys.readouterr().err
    assert main(["check", toy_job, "--set", "engine.kind=toys"]) == 2
    assert "kind must be one of torch, scripted, vllm, http, toy" in capsys.readouterr().err
    assert main(["check", "--explain"]) == 0
    assert 'word: the answer  [default "yes"]' in capsys.readouterr().out
