"""What every engine in the registry promises to whoever drives it: one suite, whatever gives the tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.job.spec import Job
from pipeline.model import family_loader
from pipeline.model.engine_thread import EngineThread, generate_replies
from pipeline.model.engines.base import Engine
from pipeline.registry import ENGINES, load_registered
from pipeline.types import Clip, Failure, Reply, Request, Sampling, Turn
from tests.model.engines.chat_server import Act, Heard, Talker, said, wrong

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
GUIDED = ("torch", "vllm")


def script(heard: Heard) -> Act:
    """A server of a small model: what is too long for it is refused."""
    return (
        wrong(400, "the maximum context length is 512 tokens") if len(heard.text) > 400 else said(f"ah, {heard.text}")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("w"), "qwen2_5_vl", text_config=WIDE, vision_config={"out_hidden_size": 128}
    )


@pytest.fixture(scope="module")
def family(folder: Path) -> Any:
    return family_loader.load_family(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[Talker]:
    with Talker(script) as talker:
        yield talker


@pytest.fixture(
    scope="module", params=[pytest.param(k, marks=pytest.mark.vllm if k == "vllm" else ()) for k in ENGINES]
)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "vllm" and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: make test-vllm")
    return str(request.param)


@pytest.fixture(scope="module")
def opened(kind: str, folder: Path, server: Talker) -> Iterator[Engine]:
    engine = start(kind, folder, server)
    yield engine
    engine.close()


def start(kind: str, folder: Path, server: Talker) -> Engine:
    said = {
        "name": "contract",
        "input": {"manifest": "rows.parquet"},
        "model": {"weights": str(folder), "context": {"max_length": LONGEST}},
        "engine": {"kind": kind, **SETTINGS[kind], **({"url": server.url} if kind == "http" else {})},
        "output": {"path": "out"},
    }
    engine: Engine = load_registered(ENGINES, kind, "engine").open(Job.model_validate(said))
    return engine


def ask(family: Any, name: str, *parts: str | Clip, schema: str | None = None, **how: Any) -> Request:
    turns = (Turn("user", parts),)
    encoded = family.encode_turns(turns)
    sampling = Sampling(**{"max_new_tokens": 6, **how})
    return Request(name, turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, sampling, schema)


@pytest.fixture
def requests(family: Any) -> list[Request]:
    return [ask(family, str(number), f"question {number}", max_new_tokens=2 + number) for number in range(7)]


def test_an_idle_engine_has_room_and_nothing_to_do(opened):
    assert opened.has_room()
    assert opened.step() == []


def test_every_request_comes_back_exactly_once(opened, requests):
    answers = list(generate_replies(opened, requests))
    assert sorted(answer.id for answer in answers) == [request.id for request in requests]
    assert all(isinstance(answer, Reply) for answer in answers)
    assert opened.step() == []


def test_asked_again_it_says_the_same(opened, requests):
    first, second = ({answer.id: answer.text for answer in generate_replies(opened, requests)} for _ in range(2))
    assert first == second


def test_pictures_are_looked_at(opened, family):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 56, 84), dtype=np.uint8)
    (answer,) = generate_replies(opened, [ask(family, "p", Clip("image", pixels, (84, 56)), "what is it?")])
    assert isinstance(answer, Reply)


def test_a_reply_says_how_it_ended_and_what_it_took(opened, family):
    (reply,) = generate_replies(opened, [ask(family, "r", "words", max_new_tokens=5)])
    assert reply.finish in ("stop", "length")
    assert 0 < reply.output_tokens <= 5


def test_a_row_that_never_fits_is_an_error_and_its_neighbours_are_answered(opened, kind, family):
    if kind == "scripted":
        pytest.skip("nothing is too long for it")
    rows = [ask(family, "a", "short"), ask(family, "long", "word " * 200), ask(family, "b", "short")]
    answers = {answer.id: answer for answer in generate_replies(opened, rows)}
    assert isinstance(answers["a"], Reply)
    assert isinstance(answers["b"], Reply)
    assert isinstance(answers["long"], Failure)
    assert (answers["long"].stage, answers["long"].kind) == ("generate", "too_long")


def test_a_guided_answer_fits_its_schema_however_small_the_budget(opened, kind, family):
    if kind not in GUIDED:
        pytest.skip("what it says is up to others; it is checked all the same")
    rows = [ask(family, str(budget), "say", schema=SCHEMA, max_new_tokens=budget) for budget in (12, 15, 20, 30)]
    for answer in generate_replies(opened, rows):
        assert json.loads(answer.text).keys() == {"a", "b"}


def test_it_refuses_nobody_for_ever(opened, requests):
    """Where there is no has_room, steps make some."""
    left = len(requests)
    for request in requests:
        for _ in range(1000):
            if opened.has_room():
                break
            left -= len(opened.step())
        assert opened.has_room()
        opened.submit(request)
    while left:
        left -= len(opened.step())


def test_metrics_are_numbers_by_name(opened, requests):
    before = opened.metrics()["rows"]
    list(generate_replies(opened, requests))
    metrics = opened.metrics()
    assert metrics["rows"] == before + len(requests)
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_several_callers_get_their_own_answers_in_order_and_who_waits_at_the_end_is_told(
    kind, folder, server, family, requests
):
    with closing(EngineThread(start(kind, folder, server))) as desk:
        first, second = desk.answer_requests(requests[:4]), desk.answer_requests(requests[2:])
        assert [answer.id for answer in first] == ["0", "1", "2", "3"]
        assert [answer.id for answer in second] == ["2", "3", "4", "5", "6"]
        long = ask(family, "", "a long one", max_new_tokens=400)
        waiting = [desk.submit_request(replace(long, id=f"late {number}")) for number in range(200)]
    assert isinstance(waiting[-1].exception(timeout=20), RuntimeError)
    assert all(future.done() for future in waiting)
    assert isinstance(desk.submit_request(requests[0]).exception(timeout=20), RuntimeError)
