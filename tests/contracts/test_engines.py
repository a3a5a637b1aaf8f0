"""What every engine in the registry promises to whoever drives it."""

import pytest

from pipeline.job import Job
from pipeline.model import weights
from pipeline.model.generate import run
from pipeline.registry import ENGINES, find
from pipeline.tiny.checkpoint import make
from pipeline.types import Failure, Reply, Request, Sampling, Turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("weights"), "qwen2_5_vl")


@pytest.fixture(params=ENGINES)
def engine(request, folder):
    said = {
        "name": "contract",
        "input": {"manifest": "rows.parquet"},
        "model": {"weights": str(folder)},
        "engine": {"kind": request.param, "slots": 2},
        "output": {"path": "out"},
    }
    if request.param in ("http", "vllm"):
        pytest.skip("needs a server or another environment")
    made = find(ENGINES, request.param, "engine").open(Job.model_validate(said))
    yield made
    made.close()


@pytest.fixture
def requests(folder) -> list[Request]:
    family = weights.family(folder)
    made = []
    for number in range(7):
        turns = (Turn("user", (f"question {number}",)),)
        encoded = family.encode(turns)
        how = Sampling(max_new_tokens=2 + number)
        made.append(Request(str(number), turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, how))
    return made


def test_an_idle_engine_has_room_and_nothing_to_do(engine):
    assert engine.room()
    assert engine.step() == []


def test_every_request_comes_back_exactly_once(engine, requests):
    answers = list(run(engine, requests))
    assert sorted(answer.id for answer in answers) == [request.id for request in requests]
    assert all(isinstance(answer, Reply | Failure) for answer in answers)
    assert engine.step() == []


def test_asked_again_it_says_the_same(engine, requests):
    first, second = ({answer.id: answer.text for answer in run(engine, requests)} for _ in range(2))
    assert first == second


def test_it_refuses_nobody_for_ever(engine, requests):
    """Where there is no room, steps make some."""
    for request in requests:
        for _ in range(1000):
            if engine.room():
                break
            engine.step()
        assert engine.room()
        engine.submit(request)


def test_metrics_are_numbers_by_name(engine, requests):
    list(run(engine, requests))
    metrics = engine.metrics()
    assert metrics["rows"] == len(requests)
    assert all(isinstance(value, int | float) for value in metrics.values())
